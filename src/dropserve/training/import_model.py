"""Make a run from a model that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dropserve.columns import request_row
from dropserve.dropout.examples import example_rows, shortened, variable_axes
from dropserve.dropout.outputs import flatten_outputs
from dropserve.errors import DropoutError, ModelSourceError, RecipeError, UsageError
from dropserve.manifest import Preprocessing, RunManifest, Task
from dropserve.model import ServedModel, load_class, name_inputs, require_eval, require_python, set_mode
from dropserve.signature import Axis, Signature, TensorSpec, output_spec, require_apart
from dropserve.store import Store, Stored, check_name
from dropserve.training.arguments import argument_problems
from dropserve.training.preprocessing_file import read_preprocessing
from dropserve.training.run_folder import (
    RECIPE,
    plain,
    write_instances,
    write_json,
    write_source,
    write_weights,
)
from dropserve.training.seeding import seeded
from dropserve.training.weights import LoadedWeights, load_weights


@dataclass(frozen=True)
class Imported:
    """A model trained elsewhere, in eval mode, with its weights.

    Attributes:
        weights: what had to be done to the weights for them to fit.
    """

    run: Stored[RunManifest]
    model: nn.Module
    weights: LoadedWeights


def import_model(  # noqa: PLR0913  # one for each option of the command
    store: Store,
    spec: str,
    weights: Path,
    inputs: Sequence[str],
    *,
    name: str,
    task: Task = "raw",
    labels: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    preprocessing: Path | None = None,
) -> Imported:
    """Build a model, load its weights, try it, and publish it as a run.

    Args:
        store: where the run goes.
        spec: ``file.py:Class`` or ``module:Class``.
        weights: see :func:`dropserve.training.weights.load_weights`.
        inputs: shapes per row as the command line writes them, one for each input of ``forward``.
        name: of the model in the store.
        task: ``classification`` (one output, logits), ``regression`` (one output) or ``raw``.
        labels: of the classes; 0, 1, 2... by default.
        arguments: of the constructor.
        preprocessing: a file of what rows go through before the model sees them; see
            :func:`dropserve.training.preprocessing_file.read_preprocessing`. ``inputs`` are then as requests
            see them.

    Raises:
        UsageError: if an argument, the weights, the task or the labels do not fit.
        ModelSourceError: if the model cannot be loaded, built or run.
        PublishError: if the run cannot be written.
    """
    check_name(name)
    given = dict(arguments or {})
    source = load_class(spec)
    problems = argument_problems(source.cls, given, "--arg ")
    if problems:
        raise RecipeError(spec, problems)
    specs = name_inputs(inputs, source.cls)
    before = Preprocessing() if preprocessing is None else read_preprocessing(preprocessing, specs)
    with seeded(0), torch.inference_mode():
        model = set_mode(source.build(given))
        require_eval(model)
        require_python(model)
        loaded = load_weights(model, weights)
        served = set_mode(ServedModel(model, before, {spec.name: spec.sized() for spec in specs}))
        outputs = _outputs(model if preprocessing is None else served, specs)
    require_apart(specs, outputs)
    signature = Signature(inputs=specs, outputs=outputs)
    names = _labels(task, labels, outputs)
    with store.staging(name, RunManifest) as staging:
        write_weights(staging.folder, model)
        rows = example_rows(specs, 1)
        row = {spec.name: plain(tensor.numpy())[0] for spec, tensor in zip(specs, rows, strict=True)}
        for key, columns in before.columns.items():
            codes = [0.0 if c.categories else value for c, value in zip(columns, row[key], strict=True)]
            row[key] = request_row(codes, columns)
        write_instances(staging.folder, [row if len(specs) > 1 else next(iter(row.values()))])
        write_json(staging.folder / RECIPE, {})
        manifest = RunManifest(
            id=staging.id,
            name=name,
            task=task,
            labels=names,
            signature=signature,
            source=write_source(staging.folder, source, given),
            preprocessing=before,
            data={"source": "imported", "weights": str(weights)},
        )
        return Imported(store.publish(staging, manifest), model, loaded)


def default_name(spec: str) -> str:
    """A model's name from its class: ``my_net.py:MyNet`` is ``mynet``."""
    return spec.rpartition(":")[2].lower()


def _outputs(model: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Run three rows, then shorter ones, and see what comes out and which of its axes vary."""
    rows = example_rows(inputs, 3)
    whole = _run(model, inputs, rows)
    shapes = {name: list[int | Axis](tensor.shape[1:]) for name, tensor in whole.items()}
    for axis in variable_axes(inputs):
        if axis.maximum == 1:
            continue
        short = _run(model, inputs, shortened(inputs, rows, axis, axis.maximum - 1))
        for name, tensor in whole.items():
            for place, (size, less) in enumerate(zip(tensor.shape[1:], short[name].shape[1:], strict=True)):
                if (size, less) == (axis.maximum, axis.maximum - 1):
                    shapes[name][place] = axis
    return tuple(output_spec(name, str(tensor.dtype), tuple(shapes[name])) for name, tensor in whole.items())


def _run(model: nn.Module, inputs: tuple[TensorSpec, ...], rows: list[Tensor]) -> dict[str, Tensor]:
    kind = type(model.model if isinstance(model, ServedModel) else model).__name__
    listed = ", ".join(
        f"{spec} (a batch of {list(row.shape)})" for spec, row in zip(inputs, rows, strict=True)
    )
    try:
        found = flatten_outputs(model(*rows))
    except DropoutError as error:
        raise ModelSourceError(f"{kind}: {error}") from error
    except Exception as error:
        raise ModelSourceError(
            f"{kind} cannot take {listed}: {type(error).__name__}: {error}. --input is the "
            "shape of one row, without the batch: 16, or 1,28,28, or 7:int64; one for each input of forward"
        ) from error
    for name, tensor in found.items():
        if tensor.dim() == 0 or len(tensor) != len(rows[0]):
            raise ModelSourceError(
                f"{kind}: output {name!r} has shape {list(tensor.shape)} for a batch of "
                f"{len(rows[0])} rows; expected {len(rows[0])} along axis 0"
            )
    return found


def _labels(task: Task, labels: Sequence[str], outputs: tuple[TensorSpec, ...]) -> tuple[str, ...]:
    shown = "; ".join(map(str, outputs))
    if task != "classification":
        if labels:
            raise UsageError(f"--labels: got {','.join(labels)}; labels are for --task classification")
        if task == "regression" and (len(outputs) != 1 or len(outputs[0].shape) > 1):
            raise UsageError(
                f"--task regression: expected one output of values per row, the model gives {shown}"
            )
        return ()
    if len(outputs) != 1 or len(outputs[0].shape) != 1 or isinstance(outputs[0].shape[0], Axis):
        raise UsageError(
            f"--task classification: expected one output of logits per row, the model gives {shown}"
        )
    classes = outputs[0].shape[0]
    if classes < 2:
        raise UsageError(
            f"--task classification: the model gives {shown}; expected a logit for each of 2 or more classes "
            "(for a single logit, add a layer that returns [0, logit], or use --task raw)"
        )
    if not labels:
        return tuple(map(str, range(classes)))
    if len(labels) != classes or len(set(labels)) != classes:
        raise UsageError(
            f"--labels: got {len(set(labels))} different labels ({', '.join(labels)}); "
            f"the model has {classes} classes"
        )
    return tuple(labels)
