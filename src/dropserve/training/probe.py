"""One small pass before training: does the model take these rows, and answer in the right shape?"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from dropserve.errors import ModelSourceError, TrainingError
from dropserve.model import require_eval, require_python, set_mode
from dropserve.signature import Signature, TensorSpec
from dropserve.training.data import INPUT, OUTPUT, Dataset

_FLOATS = frozenset({torch.float16, torch.float32, torch.float64})


def probe(model: nn.Module, dataset: Dataset) -> Signature:
    """Run a few rows through the model in eval mode.

    Returns:
        names, dtypes and shapes of its input and output.

    Raises:
        ModelSourceError: if it fails on a batch, is TorchScript in part, or cannot be put in eval mode.
        TrainingError: if its output does not fit the target; the message says which number to change.
    """
    require_python(model)
    table = dataset.table
    rows = torch.from_numpy(dataset.features[dataset.split.train[:3]])
    training = model.training
    set_mode(model)
    require_eval(model)
    try:
        with torch.inference_mode():
            output = model(rows)
    except Exception as error:
        shape = ", ".join(map(str, rows.shape[1:]))
        named = f" ({_inputs(dataset)})" if table.columns else ""
        raise ModelSourceError(
            f"{type(model).__name__} cannot take {len(rows)} rows of {table.name}, [{shape}] float32 each"
            f"{named}: "
            f"{type(error).__name__}: {error}. Change [model.arguments] to fit that many inputs."
        ) from error
    finally:
        set_mode(model, training=training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(f"{type(model).__name__} has no parameter that learns; there is nothing to train")
    if not isinstance(output, torch.Tensor):
        raise TrainingError(
            f"{type(model).__name__} returns a {type(output).__name__}; expected one tensor of "
            f"{'logits' if table.labels else 'values'}, "
            f"[rows, {2 if dataset.preprocessing.heteroscedastic else max(1, len(table.labels))}]"
        )
    pair = dataset.preprocessing.heteroscedastic
    wanted = [(len(rows), len(table.labels))] if table.labels else [(len(rows), 1), (len(rows),)]
    if pair:
        wanted = [(len(rows), 2)]
    if tuple(output.shape) not in wanted:
        need = "one value, as the task is regression"
        if table.labels:
            need = f"{len(table.labels)} logits, one for each class ({', '.join(table.labels[:10])})"
        elif pair:
            need = "a value and the log variance of its noise, as training.noise is heteroscedastic"
        raise TrainingError(
            f"{type(model).__name__} answers {len(rows)} rows with a tensor of {list(output.shape)}; "
            f"expected {list(wanted[0])}: for each row {need}. Change [model.arguments], or the model."
        )
    if output.dtype not in _FLOATS:
        dtype = str(output.dtype).removeprefix("torch.")
        raise TrainingError(
            f"{type(model).__name__} answers in {dtype}; expected float32. Convert it at the end of forward, "
            "as in `return x.float()`; to train in mixed precision, set training.precision in the recipe."
        )
    if not torch.isfinite(output).all():
        raise TrainingError(
            f"{type(model).__name__} answers NaN or infinity before any training; mend the model"
        )
    shape = tuple(int(size) for size in np.shape(table.features)[1:])
    return Signature(
        inputs=(TensorSpec(name=INPUT, shape=shape),),
        outputs=(TensorSpec(name=OUTPUT, shape=tuple(output.shape[1:])),),
    )


def _inputs(dataset: Dataset) -> str:
    """What the model's inputs are made of."""
    columns = dataset.preprocessing.columns[INPUT]
    parts = [f"{c.name} in {len(c.categories)} categories" if c.categories else c.name for c in columns[:6]]
    return f"{len(columns)} columns: {', '.join(parts)}{', ...' if len(columns) > 6 else ''}"
