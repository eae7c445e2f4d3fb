"""Student's t for whole degrees of freedom, so that a small host needs no scipy."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError


def t_coverage(t: float, df: int) -> float:
    """P(|T| < t) by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(df))
    sine, cosine2 = math.sin(theta), math.cos(theta) ** 2
    term = total = math.cos(theta) if df % 2 else 1.0
    for k in range(df % 2 + 1, df - 2, 2):
        term *= cosine2 * k / (k + 1)
        total += term
    if df % 2 == 0:
        return sine * total
    return 2 / math.pi * (theta + (sine * total if df > 1 else 0.0))


@cache
def t_quantile(level: float, df: int) -> float:
    """The t with P(|T| < t) = level, found by bisection.

    Raises:
        UsageError: for a level outside (0, 1) or fewer than 1 degree of freedom.
    """
    if not 0 < level < 1 or df < 1:
        raise UsageError(
            f"t at level {level!r} with {df!r} degrees of freedom: expected 0 < level < 1, 1 or more"
        )
    low, high = 0.0, 1.0
    while t_coverage(high, df) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_coverage(middle, df) < level else (low, middle)
    return high


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Mean of values [n], and half the width of its interval; infinite for fewer than two values."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean()) if len(array) else math.nan
    if len(array) < 2:
        return mean, math.inf
    return mean, t_quantile(level, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
