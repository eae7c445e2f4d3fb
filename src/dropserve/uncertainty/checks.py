"""Arguments that every measure of this package takes, checked in one place."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dropserve.errors import UsageError

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Whole = NDArray[np.int64]


def as_float(values: ArrayLike, axes: str) -> Float:
    """Finite float64 numbers with as many axes as the text names, such as ``[T, B, C]``.

    Raises:
        UsageError: for another number of axes, an empty array, NaN or infinity.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != axes.count(",") + 1 or array.size == 0:
        raise UsageError(f"an array of shape {list(array.shape)}: expected {axes}, none of them 0")
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise UsageError(
            f"an array {axes} holds {array[tuple(where)]} at {where}; expected finite numbers. "
            "Find the row that the model cannot compute and leave it out."
        )
    return array


def as_labels(labels: ArrayLike, rows: int, classes: int) -> Whole:
    """Class numbers [B] from 0 to ``classes`` - 1.

    Raises:
        UsageError: for another length, numbers that are not whole, or out of range.
    """
    array = np.asarray(labels)
    if array.shape != (rows,) or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            f"labels {array.dtype}{list(array.shape)}: expected whole numbers [{rows}], one for each row"
        )
    if array.min() < 0 or array.max() >= classes:
        raise UsageError(f"labels from {array.min()} to {array.max()}: expected 0 to {classes - 1}")
    return array.astype(np.int64)


def as_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Float, Whole]:
    """Probabilities [B, C] whose rows sum to 1, and their labels [B].

    Raises:
        UsageError: if they are anything else.
    """
    values = as_float(probabilities, "[B, C]")
    if values.min() < 0 or np.abs(values.sum(axis=1) - 1).max() > 1e-6:
        row = int(np.abs(values.sum(axis=1) - 1).argmax())
        raise UsageError(
            f"probabilities: row {row} sums to {values[row].sum():.9g} and the least is {values.min():.3g}; "
            "expected rows that sum to 1, none negative. Logits need dropout.statistics.softmax first."
        )
    return values, as_labels(labels, *values.shape)
