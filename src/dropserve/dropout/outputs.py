"""What a model returns, as named tensors, and whether two such tensors agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dropserve.errors import DropoutError


def flatten_outputs(value: Any) -> dict[str, Tensor]:
    """Name the tensors of a model's output.

    A tensor is ``output``; the parts of a tuple or list are ``output_0``, ``output_1``...; those of a dict
    keep their keys; nested names are joined by ``_``. Parts that are None are left out.

    Raises:
        DropoutError: if there is something else than tensors, or two parts would have one name.
    """
    found: dict[str, Tensor] = {}
    _collect(value, "", found)
    if not found:
        raise DropoutError(
            "the model returns no tensor; expected a tensor, or a tuple, list or dict of tensors"
        )
    return found


def _collect(value: Any, name: str, found: dict[str, Tensor]) -> None:
    if value is None:
        return
    if isinstance(value, Tensor):
        name = name or "output"
        if name in found:
            raise DropoutError(f"two outputs of the model are called {name!r}; give them different keys")
        found[name] = value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _collect(part, f"{name}_{key}" if name else str(key), found)
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            _collect(part, f"{name or 'output'}_{index}", found)
    else:
        raise DropoutError(
            f"the model returns a {type(value).__name__} as {name or 'output'!r}; expected a tensor, or a "
            "tuple, list or dict of tensors"
        )


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors have one shape and agree relative to their greatest value; NaN agrees with NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = float(a.double().abs().nan_to_num(posinf=0.0).max()) if a.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=tolerance * scale, equal_nan=True)
