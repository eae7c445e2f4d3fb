"""Does memory grow? A trend with an honest interval, set against the smallest leak that matters.

Readings of memory are not independent: an allocator keeps a page for a while, so a reading resembles the
one before. The interval of the slope is that of least squares, widened for the autocorrelation of the
residuals: with lag-1 autocorrelation r, n readings are worth n (1 - r) / (1 + r) independent ones, in the
standard error and in Student's degrees of freedom (Santer et al. 2000,
https://doi.org/10.1029/1999JD901105). r is corrected for its bias in short series with a trend, (1 + 4 r)
/ n (Kendall 1954).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

MIB = 2**20
_FEWEST = 6.0  # independent readings below which nothing can be said of a slope and its error


class Verdict(StrEnum):
    """What an interval of the slope says.

    ``flat``: a leak as large as the bar is ruled out. ``grows``: it is not, while standing still is. Else
    it is ``undecided``: the readings are too few or too rough to tell.
    """

    FLAT = "flat"
    GROWS = "grows"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Trend:
    """How the memory of one process changed, in MiB and MiB an hour.

    Attributes:
        memory: at the end, the mean of the last tenth of the readings.
        slope: of the line.
        low: lower end of its 95% interval.
        high: upper end.
        worth: independent readings that these were worth.
    """

    memory: float
    slope: float
    low: float
    high: float
    worth: float

    def against(self, bar: float) -> Verdict:
        """Judge it.

        Args:
            bar: the smallest leak that matters, in MiB an hour.
        """
        if self.high < bar:
            return Verdict.FLAT
        return Verdict.GROWS if self.low > 0 else Verdict.UNDECIDED


def trend(seconds: np.ndarray, memory: np.ndarray) -> Trend:
    """Fit a line to readings.

    Args:
        seconds: [n] when they were taken, evenly spaced.
        memory: [n] bytes.
    """
    hours, mib = seconds / 3600, memory / MIB
    end = float(mib[-max(1, len(mib) // 10) :].mean())
    fit = stats.linregress(hours, mib)
    residuals = mib - fit.intercept - fit.slope * hours
    n, squares = len(mib), float(residuals @ residuals)
    if squares <= n * (1e-9 * end) ** 2:  # a straight line to the last bit
        return Trend(end, float(fit.slope), float(fit.slope), float(fit.slope), n)
    r = float(residuals[1:] @ residuals[:-1]) / squares
    r = min(max(0.0, r + (1 + 4 * r) / n), 1.0)
    worth = n * (1 - r) / (1 + r)
    if worth < _FEWEST:
        return Trend(end, float(fit.slope), -math.inf, math.inf, worth)
    error = math.sqrt(squares / (worth - 2) / float(((hours - hours.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.975, worth - 2)) * error
    return Trend(end, float(fit.slope), float(fit.slope) - reach, float(fit.slope) + reach, worth)


def leak(answers: float, size: float, *, each: int = 1000) -> float:
    """What a process would grow by, in MiB an hour, if it kept one answer of ``each``.

    Args:
        answers: a second.
        size: bytes of an answer, in the mean.
        each: how many answers go by for one that is kept.
    """
    return answers * 3600 / each * size / MIB
