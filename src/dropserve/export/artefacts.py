"""Make every graph of a model: deterministic and masked, ONNX and TorchScript."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.dropout.outputs import flatten_outputs
from dropserve.dropout.program import MaskedProgram, masked_program
from dropserve.errors import ExportError
from dropserve.model import ServedModel, require_python
from dropserve.signature import Axis, Signature, Site, TensorSpec, output_spec, require_apart

from .external import with_weights
from .onnx import export_onnx, numpy_arrays, write_onnx
from .settings import ExportSettings
from .subject import InputKind, Subject
from .torchscript import export_torchscript
from .trunk import split

MODEL, MODEL_TS = "model.onnx", "model.ts"
MASKED, MASKED_TS, TRUNK, HEAD = "masked.onnx", "masked.ts", "trunk.onnx", "head.onnx"


@dataclass(frozen=True)
class Artefacts:
    """The graphs of a model.

    Attributes:
        folder: where they are.
        signature: inputs and outputs of the deterministic graphs.
        sites: the dropout sites; empty without masked graphs.
        program: the masked program in eager mode; None without masked graphs.
        paths: the files by name: ``model.onnx``; ``model.ts`` if TorchScript is wanted; with sites
            ``masked.onnx``, ``head.onnx``, ``masked.ts``, and ``trunk.onnx`` if there is a trunk.
        notes: lines for people: where the cut is, what the tracer warned of.
    """

    folder: Path
    signature: Signature
    sites: tuple[Site, ...]
    program: MaskedProgram | None
    paths: Mapping[str, Path]
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> tuple[TensorSpec, ...]:
        """The mask inputs of the masked graphs, in their order."""
        return mask_specs(self.sites)


class NamedOutputs(nn.Module):
    """A model as exporters want it: tensors in, a tuple of tensors out, whatever it returns itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the order of :func:`flatten_outputs`."""
        return tuple(flatten_outputs(self.model(*tensors)).values())


def build(subject: Subject, folder: Path, settings: ExportSettings, *, monte_carlo: bool = True) -> Artefacts:
    """Write every graph of a model into a folder.

    Args:
        subject: the model in eval mode.
        folder: exists; files of the same names are overwritten.
        settings: operator set and formats.
        monte_carlo: whether to make the masked graphs too.

    Raises:
        ExportError: if an exporter refuses, or an output has no batch on axis 0.
        DropoutError: if a dropout cannot be masked, or the batch axis cannot be told.
        ModelSourceError: if a part of the model is TorchScript.
        UsageError: if an output has a dtype that clients cannot be sent, or the name of an input.
    """
    own = subject.module.model if isinstance(subject.module, ServedModel) else subject.module
    require_python(own)
    examples = example_batch(subject)
    signature = Signature(inputs=subject.inputs, outputs=output_specs(subject))
    names = [spec.name for spec in signature.outputs]
    require_apart(subject.inputs, signature.outputs)
    paths, notes = {MODEL: folder / MODEL}, list[str]()
    model = NamedOutputs(subject.module).eval()
    limit = settings.single_file_bytes
    written = {"opset": settings.opset, "limit": limit}
    export_onnx(model, subject.inputs, names, examples, paths[MODEL], **written)
    script = "torchscript" in settings.formats
    if script:
        paths[MODEL_TS] = folder / MODEL_TS
        with no_fused_attention():
            notes += export_torchscript(model, list(examples.values()), paths[MODEL_TS])
    program = masked_program(subject.module, subject.inputs, examples) if monte_carlo else None
    if program is None or not program.sites:
        return Artefacts(folder, signature, (), None, paths, tuple(notes))
    if list(program.output_names) != names:
        raise ExportError(f"outputs {names} in eval mode, but {list(program.output_names)} under masks")
    arguments = dict(examples)
    count = len(next(iter(examples.values())))
    masks = mask_specs(program.sites)
    arguments |= zip((spec.name for spec in masks), program.identity_masks(count), strict=True)
    paths |= {name: folder / name for name in (MASKED, HEAD)}
    specs = (*subject.inputs, *masks)
    export_onnx(program, specs, names, arguments, paths[MASKED], **written)
    whole = onnx.load(paths[MASKED], load_external_data=False)
    parts = split(whole, [spec.name for spec in masks], numpy_arrays(examples), folder)
    notes.append(parts.reason)
    write_onnx(with_weights(parts.head, folder), paths[HEAD], limit)
    if parts.trunk is not None:
        paths[TRUNK] = folder / TRUNK
        write_onnx(with_weights(parts.trunk, folder), paths[TRUNK], limit)
    if script:
        paths[MASKED_TS] = folder / MASKED_TS
        notes += export_torchscript(program, list(arguments.values()), paths[MASKED_TS])
    return Artefacts(folder, signature, program.sites, program, paths, tuple(dict.fromkeys(notes)))


def mask_specs(sites: Sequence[Site]) -> tuple[TensorSpec, ...]:
    """The mask inputs of some sites, in their order."""
    return tuple(
        TensorSpec(name=name, shape=site.shape)
        for site in sites
        for name in (site.scale, site.shift)
        if name is not None
    )


def output_specs(subject: Subject) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes per row of what a model returns.

    Raises:
        ExportError: if the batch is not axis 0 of an output.
        UsageError: if an output has a dtype that clients cannot be sent.
    """
    few, more = _run(subject, 2), _run(subject, 3)
    shorter = {axis: _run(subject, 2, {axis: size - 1}) for axis, size in subject.axes.items() if size > 1}
    specs: list[TensorSpec] = []
    for name, tensor in few.items():
        if name not in more or (tensor.shape[:1], more[name].shape[:1]) != ((2,), (3,)):
            shape = list(more[name].shape) if name in more else "nothing"
            raise ExportError(
                f"output {name!r} has shape {list(tensor.shape)} for 2 rows and {shape} for 3; expected the "
                "rows on axis 0. Transpose or pick it in forward, and return no statistics over the batch."
            )
        axes = tuple(
            _axis(subject, name, position, {axis: run[name] for axis, run in shorter.items()}, size)
            for position, size in enumerate(tensor.shape[1:], 1)
        )
        specs.append(output_spec(name, str(tensor.dtype), axes))
    return tuple(specs)


def _axis(subject: Subject, name: str, position: int, shorter: Mapping[str, Tensor], size: int) -> int | Axis:
    """A number, or the variable axis that an output's axis follows."""
    for axis, tensor in shorter.items():
        if tensor.shape[position] != size:
            followed = size == subject.axes[axis] and tensor.shape[position] == size - 1
            return Axis(name=axis if followed else f"{name}_{position}", maximum=size)
    return size


def _run(subject: Subject, count: int, lengths: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    batch = subject.batch(count, kind=_kind(subject), lengths=lengths)
    with torch.no_grad():
        return flatten_outputs(subject.module(*batch.values()))


def example_batch(subject: Subject) -> dict[str, Tensor]:
    """Rows to trace on, a number of them that is no other size of the model's inputs."""
    sizes = {size for spec in subject.inputs for size in spec.sized()}
    count = next(n for n in itertools.count(3) if n not in sizes)
    return subject.batch(count, kind=_kind(subject))


def _kind(subject: Subject) -> InputKind:
    """Real rows where they reach the greatest lengths, else random ones, which always do."""
    rows = subject.rows
    if rows is None or any(rows[spec.name].shape[1:] != spec.sized() for spec in subject.inputs):
        return "random"
    return "rows"
