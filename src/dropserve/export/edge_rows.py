"""Rows at the edges of what people send: padding, constants, ties, the least and the greatest number.

Row ``i`` of a batch has the same pattern in every input, so that padded ids meet a padded mask; later rows
combine the patterns otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.signature import TensorSpec

from .integers import IntegerRange

Array = NDArray[Any]

PATTERNS = (
    "padded",
    "all padding",
    "greatest",
    "least",
    "one value",
    "ones",
    "ties",
    "left-padded",
    "repeated",
    "repeated",
    "negative",
    "small",
)
"""What the rows of a batch of edge rows are, in this order."""


def edge_rows(
    spec: TensorSpec, base: Array, first: int, shift: int, range_: IntegerRange | None, pad: Any
) -> Array:
    """Make every row of a batch of ordinary ones into one of :data:`PATTERNS`.

    Args:
        spec: the input.
        base: ordinary rows, ``[n, *shape]``.
        first: which pattern the first row has.
        shift: how many patterns this input is ahead after each round of them all.
        range_: for whole numbers.
        pad: the value that stands for "nothing here".
    """
    rows = base.copy()
    for row in range(len(rows)):
        place = first + row
        pattern = PATTERNS[(place + shift * (place // len(PATTERNS))) % len(PATTERNS)]
        rows[row] = _edge_row(pattern, spec, base, row, range_, pad)
    return rows


def padded_rows(base: Array, range_: IntegerRange | None, pad: Any) -> Array:
    """Rows that all end in padding, of several lengths, and hold it nowhere else.

    Args:
        base: ordinary rows, ``[n, *shape]``.
        range_: for whole numbers.
        pad: the value that stands for "nothing here"; for booleans its opposite stands elsewhere.
    """
    rows = _without(base, range_, pad)
    axis = _sequence_axis(rows)
    if axis is None:
        return rows
    length = rows.shape[axis]
    for row in range(len(rows)):
        kept = 1 + row * 2 % (length - 1) if length > 2 else 1
        np.moveaxis(rows[row], axis - 1, 0)[kept:] = pad
    return rows


def _edge_row(
    pattern: str, spec: TensorSpec, base: Array, row: int, range_: IntegerRange | None, pad: Any
) -> Any:
    values = base[row]
    if "padded" in pattern:
        padded = padded_rows(base[row : row + 1], range_, pad)[0]
        return padded if pattern == "padded" else np.flip(padded)
    if pattern == "ties":
        return np.resize(np.sort(values, axis=None)[: max(1, values.size // 3)], values.shape)
    if pattern == "repeated":
        return base[0]
    if spec.numpy_dtype.kind == "f" and pattern in {"negative", "small"}:
        return -np.abs(values) if pattern == "negative" else values * 1e-6
    number = range_ is not None and not range_.limited and spec.numpy_dtype.kind == "i"  # and no index
    constants = {
        "all padding": pad,
        "greatest": _extreme(spec, range_, greatest=True),
        "least": _extreme(spec, range_, greatest=False),
        "one value": values.flat[0],
        "ones": 1 if range_ is None else min(max(1, range_.low), range_.high),
        "negative": -1 if number else None,
        "small": 100 if number else None,
    }
    constant = constants[pattern]
    return values if constant is None else np.full_like(values, constant)


def _extreme(spec: TensorSpec, range_: IntegerRange | None, *, greatest: bool) -> Any:
    if range_ is not None:
        return range_.high if greatest else range_.low
    if spec.dtype == "bool":
        return greatest
    return 10.0 if greatest else -10.0


def _without(base: Array, range_: IntegerRange | None, pad: Any) -> Array:
    """The same without padding: numbers that no padding stands for."""
    if base.dtype.kind == "b":
        return np.full_like(base, not pad)
    if range_ is None:
        return base.copy()
    others = [value for value in (range_.high, range_.low, range_.high - 1) if value not in range_.pads]
    others = [value for value in others if range_.low <= value] or [range_.high]
    return np.where(np.isin(base, range_.pads), others[0], base).astype(base.dtype)


def _sequence_axis(rows: Array) -> int | None:
    """The first axis along which a row can end early."""
    return next((axis for axis, size in enumerate(rows.shape) if axis and size > 1), None)
