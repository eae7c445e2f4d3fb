"""Rows to run a model on while it is being looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dropserve.errors import UsageError
from dropserve.signature import Axis, TensorSpec


def example_rows(
    inputs: Sequence[TensorSpec], count: int, examples: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Input tensors [count, ...], variable axes at their maximum, the same at every call.

    Args:
        inputs: names, dtypes and shapes.
        count: how many rows.
        examples: real rows by name, repeated if there are fewer; else numbers are drawn: standard normal,
            or 0 and 1 for whole numbers (an embedding may have two entries).

    Raises:
        UsageError: if an example has another shape than its spec says.
    """
    generator = torch.Generator().manual_seed(0)
    return [_rows(spec, count, (examples or {}).get(spec.name), generator) for spec in inputs]


def _rows(spec: TensorSpec, count: int, example: Tensor | None, generator: torch.Generator) -> Tensor:
    shape, dtype = (count, *spec.sized()), getattr(torch, spec.dtype)
    if example is None:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    if example.dim() != len(shape) or not len(example):
        raise UsageError(
            f"example for input {spec}: expected rows of shape {list(shape[1:])}, got {list(example.shape)}"
        )
    rows = example[torch.arange(count) % len(example)]
    for d, size in enumerate(shape[1:], start=1):  # examples may be shorter than a variable axis allows
        rows = rows.index_select(d, torch.arange(size) % rows.size(d))
    return rows.to(dtype)


def shortened(
    inputs: Sequence[TensorSpec], tensors: Sequence[Tensor], axis: Axis, length: int
) -> list[Tensor]:
    """The tensors with one variable axis cut to a length."""
    cut = list(tensors)
    for index, spec in enumerate(inputs):
        for d, size in enumerate(spec.shape, start=1):
            if size == axis:
                cut[index] = cut[index].narrow(d, 0, length)
    return cut


def variable_axes(inputs: Sequence[TensorSpec]) -> list[Axis]:
    """Every variable axis, once.

    Raises:
        UsageError: if one name has two maxima.
    """
    axes: dict[str, Axis] = {}
    for spec in inputs:
        for axis in spec.shape:
            if isinstance(axis, Axis) and axes.setdefault(axis.name, axis) != axis:
                raise UsageError(
                    f"input {spec}: axis {axis.name} has another maximum elsewhere; one name is one length"
                )
    return list(axes.values())
