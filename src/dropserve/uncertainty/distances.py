"""The combined out-of-distribution score ``auto``: how far a row lies from rows of training, and why.

A graph compares each row with training rows and gives some columns of numbers (``COLUMNS``). Its distances
have units of their own; each is brought to one scale by training rows that the graph does not hold, and the
largest decides. Neither they nor the graph's rows take part in fixing the threshold, which makes its rate of
false alarms that of split conformal prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Bool, Float

EXCESS, PLACE, VALUE, LOW, HIGH = range(5)
COLUMNS = ("range", "place", "value", "low", "high")
"""First columns of what the graph gives: how far the worst value lies outside the range of training rows, in
widths of that range; which value it is; the value; the ends of its range. Then come
the squared distance of inputs and, for some models, the distance of hidden layers."""
RANGE, INPUTS, HIDDEN = "range", "inputs", "hidden"
DISTANCES = (INPUTS, HIDDEN)
OVERALL = ("its mean", "its standard deviation", "its mean step between neighbours")
"""Values of a row of two axes or more that are held against the ranges of training rows."""
CATEGORY = "the category of "
"""Begins the name of a value that is a code."""
_FAR = 1.0  # widths of the range; a value farther outside is told even where no threshold could be fixed
_LEAST_EXCESS = 0.05  # widths; so that ranges which all rows keep to do not divide by zero
_LEAST_SHARE = 0.05
_LARGEST = 1e30


@dataclass(frozen=True)
class Part:
    """One distance of the combined score: it counts as ``(distance - centre) / scale``.

    Attributes:
        name: ``range``, ``inputs`` or ``hidden``.
        centre: median of training rows that the graph does not hold.
        scale: from there to their quantile at one minus the false alarms over the number of parts.
    """

    name: str
    centre: float
    scale: float


def fit_parts(table: ArrayLike, false_alarms: int) -> tuple[Part, ...]:
    """Bring the distances to one scale.

    Args:
        table: what the graph gave for training rows that it does not hold [B, columns].
        false_alarms: parts per thousand.
    """
    values = finite(table)
    distances = [values[:, EXCESS], *values[:, len(COLUMNS) :].T]
    parts: list[Part] = []
    for name, distance in zip((RANGE, *DISTANCES), distances, strict=False):
        level = 1 - false_alarms / 1000 / len(distances)
        centre = 0.0 if name == RANGE else float(np.median(distance))
        reach = float(np.quantile(distance, level, method="higher")) - centre
        least = _LEAST_EXCESS if name == RANGE else max(_LEAST_SHARE * abs(centre), 1e-6)
        parts.append(Part(name, centre, max(reach, least)))
    return tuple(parts)


def finite(table: ArrayLike) -> Float:
    """The graph's numbers, distances not squared; what overflowed 32 bits is very far away."""
    values = np.nan_to_num(np.asarray(table, np.float64), nan=_LARGEST, posinf=_LARGEST, neginf=-_LARGEST)
    values[..., len(COLUMNS)] = np.sqrt(np.maximum(values[..., len(COLUMNS)], 0))
    return values


def each_part(table: ArrayLike, parts: Sequence[Part]) -> Float:
    """The distances of B rows on one scale [B, parts].

    Raises:
        UsageError: if the graph gave another number of distances than there are parts.
    """
    values = finite(table)
    if values.ndim != 2 or values.shape[1] != len(COLUMNS) + len(parts) - 1:
        raise UsageError(
            f"distances {list(values.shape)}: expected [B, {len(COLUMNS) + len(parts) - 1}]; "
            "export the model again"
        )
    distances = np.concatenate([values[:, :1], values[:, len(COLUMNS) :]], axis=1)
    return (distances - [part.centre for part in parts]) / [part.scale for part in parts]


def combined(table: ArrayLike, parts: Sequence[Part]) -> Float:
    """The score [B]: the largest of the distances on one scale."""
    return each_part(table, parts).max(axis=1)


def far_outside(table: ArrayLike) -> Bool:
    """Whether a value lies outside the training range by more than the width of that range [B]."""
    return finite(table)[:, EXCESS] > _FAR


def reason(row: Float, parts: Sequence[Part], threshold: float | None, names: Sequence[str]) -> str:
    """Why a row was flagged, in words.

    Args:
        row: what the graph gave for it [columns].
        parts: of the score.
        threshold: of the score; None where too few rows could fix one.
        names: of the values of a row; values without a name are told by their place.
    """
    scores = each_part(row[None], parts)[0]
    row = finite(row)
    if threshold is None or row[EXCESS] > _FAR or scores[0] > threshold:
        place = int(row[PLACE])
        name = names[place] if place < len(names) else f"value {place}"
        if name.startswith(CATEGORY):
            return f"{name} is one that no training row has"
        low, high = row[LOW], row[HIGH]
        ends = f"are all {low:.6g}" if low == high else f"lie between {low:.6g} and {high:.6g}"
        return f"{name} is {row[VALUE]:.6g}; training rows {ends}"
    worst = int(scores.argmax())
    part = parts[worst]
    what = "hidden layers" if part.name == HIDDEN else "inputs"
    limit = part.centre + threshold * part.scale
    return (
        f"distance of its {what} to the nearest training row {row[len(COLUMNS) + worst - 1]:.4g}, "
        f"threshold {limit:.4g}"
    )
