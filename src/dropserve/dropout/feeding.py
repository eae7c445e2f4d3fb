"""Shapes on their way into a head and out of it (numpy alone)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dropserve.dropout.held import Array, Arrays
from dropserve.errors import UsageError
from dropserve.signature import Axis, TensorSpec


def axis_lengths(inputs: Arrays, specs: Sequence[TensorSpec]) -> dict[str, int]:
    """The length of each variable axis in this request.

    Raises:
        UsageError: if one name has two lengths, or a length is above its maximum.
    """
    lengths: dict[str, int] = {}
    for spec in specs:
        for axis, size in zip(spec.shape, inputs[spec.name].shape[1:], strict=True):
            if not isinstance(axis, Axis):
                continue
            if size > axis.maximum or lengths.setdefault(axis.name, size) != size:
                raise UsageError(
                    f"input {spec}: axis {axis.name} has length {size}; expected at most {axis.maximum}, and "
                    f"the same ({lengths.get(axis.name, size)}) wherever the name appears"
                )
    return lengths


def assembled(
    name: str, parts: Sequence[tuple[slice, slice, dict[str, Array]]], samples: int, rows: int
) -> Array:
    """One output [T, B, ...] from the chunks [t * b, ...]."""
    first = parts[0][2][name]
    if len(parts) == 1:
        return first.reshape(samples, rows, *first.shape[1:])
    whole = np.empty((samples, rows, *first.shape[1:]), first.dtype)
    for some, these, found in parts:
        whole[some, these] = found[name].reshape(-1, these.stop - these.start, *first.shape[1:])
    return whole


def row_count(inputs: Arrays) -> int:
    """The number of rows that all inputs share.

    Raises:
        UsageError: if they differ, or there are none.
    """
    rows, *others = {len(array) for array in inputs.values()}
    if others or not rows:
        counts = {name: len(array) for name, array in inputs.items()}
        raise UsageError(f"rows of each input: {counts}; expected the same number everywhere, at least 1")
    return rows


def tile(array: Array, times: int) -> Array:
    """[B, ...] one after the other: [times * B, ...]."""
    return array[None].repeat(times, axis=0).reshape(times * len(array), *array.shape[1:])


def repeat(array: Array, times: int) -> Array:
    """Each of [N, ...] several times in a row: [N * times, ...].

    A copy even once: cached masks are read-only, and torch warns of that.
    """
    return np.repeat(array, times, axis=0)
