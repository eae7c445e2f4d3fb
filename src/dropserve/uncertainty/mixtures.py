"""Equal-weight mixtures of Gaussians: what T samples with a noise variance predict. No scipy.

Shapes: ``means`` [T, ...], ``variances`` anything that broadcasts to it, ``at`` [...]. Targets are taken
one by one: the likelihood of a row with D targets is given for each of them, not jointly.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Float

_EDGE = 9.0  # beyond it the distribution function is 0 or 1 to 1e-18
_PER_UNIT = 64
_BISECTIONS = 60


def normal_cdf(x: ArrayLike) -> Float:
    """Distribution function of the standard normal, to 1e-15 absolute.

    A Taylor step of fifth order from the nearest of 1153 points at which ``math.erfc`` gives the value; the
    derivatives are Hermite polynomials times the density.
    """
    values = np.clip(np.asarray(x, np.float64), -_EDGE, _EDGE)
    nodes, heights, densities = _table()
    index = np.rint((values + _EDGE) * _PER_UNIT).astype(np.intp)
    a = nodes[index]
    d = values - a
    a2 = a * a
    # d/1! - He1 d^2/2! + He2 d^3/3! - He3 d^4/4! + He4 d^5/5!, by Horner
    inner = -a * (a2 - 3) / 24 + d * ((a2 - 6) * a2 + 3) / 120
    series = d * (1 + d * (-a / 2 + d * ((a2 - 1) / 6 + d * inner)))
    return heights[index] + densities[index] * series


@cache
def _table() -> tuple[Float, Float, Float]:
    nodes = np.arange(-_EDGE * _PER_UNIT, _EDGE * _PER_UNIT + 1) / _PER_UNIT
    heights = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in nodes.tolist()])
    return nodes, heights, normal_density(nodes)


def normal_density(x: ArrayLike) -> Float:
    """Density of the standard normal."""
    return np.exp(-np.square(np.asarray(x, np.float64)) / 2) / math.sqrt(2 * math.pi)


def mixture_log_likelihood(means: ArrayLike, variances: ArrayLike, at: ArrayLike) -> Float:
    """Log density of a mixture: logsumexp over T of log N(y | mean_t, variance_t), minus log T.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016, appendix 4.4.

    Returns:
        [...], in nats per unit of the target.

    Raises:
        UsageError: for shapes that do not fit or a variance that is not above 0.
    """
    centre, spread, y = _mixture(means, variances, at)
    logs = -(np.square(y - centre) / spread + np.log(2 * math.pi * spread)) / 2
    top = logs.max(axis=0)
    return top + np.log(np.exp(logs - top).mean(axis=0))


def mixture_quantile(means: ArrayLike, variances: ArrayLike, level: float) -> Float:
    """The value [...] below which a share ``level`` of the mixture lies, by bisection.

    The quantile of a mixture lies between the least and the greatest quantile of its parts.

    Raises:
        UsageError: for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise UsageError(f"a quantile at {level!r}: expected above 0 and below 1")
    centre, spread, _ = _mixture(means, variances, None)
    deviation = np.sqrt(spread)
    ends = centre + NormalDist().inv_cdf(level) * deviation
    low, high = ends.min(axis=0), ends.max(axis=0)
    for _ in range(_BISECTIONS):
        middle = low + (high - low) / 2
        below = normal_cdf((middle - centre) / deviation).mean(axis=0) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low + (high - low) / 2


def _mixture(means: ArrayLike, variances: ArrayLike, at: ArrayLike | None) -> tuple[Float, Float, Float]:
    centre = np.asarray(means, np.float64)
    spread = np.asarray(variances, np.float64)
    y = centre[:1].mean(axis=0) if at is None else np.asarray(at, np.float64)
    if centre.ndim < 1 or len(centre) < 1 or y.shape != centre.shape[1:]:
        raise UsageError(
            f"means {list(centre.shape)} and targets {list(y.shape)}: expected [T, ...] and [...], the same "
            "axes after T"
        )
    if spread.size == 0 or not (spread > 0).all():
        raise UsageError(f"variances from {spread.min(initial=np.inf):.3g}: expected numbers above 0")
    return centre, np.broadcast_to(spread, centre.shape), y
