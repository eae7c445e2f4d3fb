"""What a run's folder holds, written into a staging folder of the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from dropserve.errors import TrainingError
from dropserve.manifest import SourceRecord
from dropserve.model import WEIGHTS, ModelClass, non_finite, parameter_names

EXAMPLE = "example.json"
RECIPE = "recipe.json"
VALIDATION, CALIBRATION, REFERENCE = "validation.npz", "calibration.npz", "reference.npz"
TEST = "test.npz"  # what the model answered to test rows, and what is true


def write_weights(folder: Path, model: nn.Module) -> None:
    """The state of the user's module, tied tensors written once for each of their names.

    Raises:
        TrainingError: if part of the state is no tensor, or holds NaN.
    """
    state = model.state_dict()
    other = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise TrainingError(
            f"{', '.join(other)} in the model's state is no tensor; only tensors can be stored"
        )
    if wrong := non_finite(state, parameter_names(model)):
        raise TrainingError(
            f"the weights of {type(model).__name__} are not finite: {'; '.join(wrong[:8])}"
            f"{f'; and {len(wrong) - 8} more' if wrong[8:] else ''}. "
            "Lower optimiser.learning_rate, or mend the model"
        )
    # clone: safetensors refuses tensors that share memory. Written by us: its own errors are no OSError,
    # which is what tells the store of a full disk.
    content = save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()})
    (folder / WEIGHTS).write_bytes(content)


def write_source(folder: Path, model: ModelClass, arguments: dict[str, Any]) -> SourceRecord:
    """A copy of the model's file, and the record that pins it."""
    copy = f"source/{model.file.name}"
    (folder / "source").mkdir()
    (folder / copy).write_bytes(model.source)
    return SourceRecord(spec=model.spec, arguments=arguments, sha256=model.sha256, copy_file=copy)


def write_instances(folder: Path, instances: list[Any]) -> None:
    """A request body that any server of this model understands."""
    (folder / EXAMPLE).write_text(json.dumps({"instances": instances}) + "\n", encoding="utf-8")


def plain(array: NDArray[Any]) -> Any:
    """Nested lists with the shortest decimals that read back as the same float32."""
    if array.dtype == np.float32:
        return np.array([float(str(x)) for x in array.ravel()]).reshape(array.shape).tolist()
    return array.tolist()


def write_json(path: Path, content: Any) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
