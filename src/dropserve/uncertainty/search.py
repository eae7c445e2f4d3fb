"""The best value of one positive number, when nothing is known of its scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dropserve.errors import UsageError

End = Literal["low", "high"]


@dataclass(frozen=True)
class Best:
    """Where a function is largest.

    Attributes:
        at: the argument.
        value: of the function there.
        end: the end of the range that was reached, where a wider range might do better; None inside.
    """

    at: float
    value: float
    end: End | None


def maximise(
    function: Callable[[float], float],
    low: float,
    high: float,
    *,
    per_decade: int = 8,
    tolerance: float = 1e-6,
) -> Best:
    """Search a range on a logarithmic scale.

    A grid finds the hill, golden-section search (Kiefer 1953) its top. The result is never worse than the
    best point of the grid, even where the function has several hills.

    Args:
        function: of a number in [low, high]; minus infinity marks a value that is out of the question.
        low: end of the range, above 0.
        high: end of the range.
        per_decade: grid points for each factor of ten.
        tolerance: relative precision of the argument.

    Raises:
        UsageError: for an empty range, or a function that is finite nowhere on the grid.
    """
    if not 0 < low < high < math.inf:
        raise UsageError(f"a search from {low!r} to {high!r}: expected 0 < low < high, both finite")
    start, stop = math.log(low), math.log(high)
    grid = np.linspace(
        start, stop, max(3, math.ceil((stop - start) / math.log(10) * per_decade) + 1)
    ).tolist()
    values = [_clean(function(math.exp(x))) for x in grid]
    top = int(np.argmax(values))
    if values[top] == -math.inf:
        raise UsageError(f"the function is finite nowhere from {low:.3g} to {high:.3g}; widen the range")
    at, value = _golden(
        lambda x: _clean(function(math.exp(x))),
        grid[max(top - 1, 0)],
        grid[min(top + 1, len(grid) - 1)],
        tolerance,
    )
    if value < values[top]:
        at, value = grid[top], values[top]
    end: End | None = None
    if top == 0 and at - start < 2 * tolerance:
        end = "low"
    elif top == len(grid) - 1 and stop - at < 2 * tolerance:
        end = "high"
    return Best(math.exp(at), value, end)


def _golden(
    function: Callable[[float], float], low: float, high: float, tolerance: float
) -> tuple[float, float]:
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > tolerance:
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (left, at_left) if at_left > at_right else (right, at_right)


def _clean(value: float) -> float:
    return -math.inf if math.isnan(value) else value
