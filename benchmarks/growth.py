"""Does memory grow? A slope with an interval, set against the smallest leak that matters.

What a process holds changes in steps: an allocator takes pages now and then, and seldom gives one back.
So the growth of one stretch of time tells little of the next, while readings resemble each other to the
end of the run: a line through readings would trust them far too much. Here the growths of equal stretches
are taken as independent, and the interval of their mean is Student's. Noise that comes and goes makes it
wider, never narrower. When nothing moves for a whole run, that is no proof of none: the rule of three
(Hanley and Lippman-Hand 1983) gives what could still have been missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

MIB = 2**20
STRETCHES = 12
STEP = 16 * 1024  # bytes that CPython's allocator takes at once


class Verdict(StrEnum):
    """What an interval of the slope says.

    ``flat``: a leak as large as the bar is ruled out. ``grows``: it is not, while standing still is. Else
    it is ``undecided``: the run was too short or too rough to tell.
    """

    FLAT = "flat"
    GROWS = "grows"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Trend:
    """How the memory of one process changed, in MiB and MiB an hour.

    Attributes:
        memory: at the end.
        slope: from the first reading to the last.
        low: lower end of its 95% interval.
        high: upper end.
    """

    memory: float
    slope: float
    low: float
    high: float

    def against(self, bar: float) -> Verdict:
        """Judge it.

        Args:
            bar: the smallest leak that matters, in MiB an hour.
        """
        if self.high < bar:
            return Verdict.FLAT
        return Verdict.GROWS if self.low > 0 else Verdict.UNDECIDED


def trend(seconds: np.ndarray, memory: np.ndarray) -> Trend:
    """The slope and its interval.

    Args:
        seconds: [n] when memory was read.
        memory: [n] bytes.

    Raises:
        ValueError: if there are too few readings for the stretches.
    """
    if len(seconds) <= STRETCHES:
        raise ValueError(f"{len(seconds)} readings; expected more than {STRETCHES}")
    edges = np.linspace(0, len(seconds) - 1, STRETCHES + 1).round().astype(int)
    hours, mib = seconds[edges] / 3600, memory[edges] / MIB
    whole = float(hours[-1] - hours[0])
    slope = float(mib[-1] - mib[0]) / whole
    grown = np.diff(mib) - slope * np.diff(hours)  # beyond an even growth: stretches differ by a reading
    error = float(grown.std(ddof=1)) * STRETCHES**0.5 / whole
    reach = float(stats.t.ppf(0.975, STRETCHES - 1)) * error
    missed = 3 * STEP / MIB / whole
    return Trend(float(mib[-1]), slope, slope - reach, slope + max(reach, missed))


def leak(answers: float, size: float, *, each: int = 1000) -> float:
    """What a process would grow by, in MiB an hour, if it kept one answer of ``each``.

    Args:
        answers: a second.
        size: bytes of an answer, in the mean.
        each: how many answers go by for one that is kept.
    """
    return answers * 3600 / each * size / MIB
