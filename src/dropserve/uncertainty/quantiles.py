"""Calibration scores, kept as the order statistics that split conformal prediction needs.

With n calibration scores, a set that accepts scores up to the ceil((n + 1) c)-th smallest covers a share of
at least c (Papadopoulos et al. 2002; Lei et al. 2018). A coverage is asked for in whole parts per thousand,
so 999 order statistics are all that can ever be needed, however many rows there were.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BeforeValidator, PlainSerializer

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import as_float

WHOLE = 1000
"""Coverages are in parts per thousand."""


def pack(values: tuple[float, ...]) -> str:
    """Little-endian float64 in base64: exact, and half the size of decimals."""
    return base64.b64encode(np.asarray(values, "<f8").tobytes()).decode("ascii")


def unpack(text: object) -> tuple[float, ...]:
    """What :func:`pack` packed; numbers pass.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(text, tuple | list):
        return tuple(float(value) for value in text)
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__}: expected base64 of little-endian float64")  # noqa: TRY004  # pydantic reports ValueError
    try:
        return tuple(np.frombuffer(base64.b64decode(text, validate=True), "<f8").tolist())
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 of little-endian float64: {error}") from error


Packed = Annotated[tuple[float, ...], BeforeValidator(unpack), PlainSerializer(pack, when_used="json")]


def check_coverage(coverage: object) -> int:
    """A coverage in parts per thousand.

    Raises:
        UsageError: unless it is a whole number from 1 to 999.
    """
    if isinstance(coverage, bool) or not isinstance(coverage, int) or not 0 < coverage < WHOLE:
        raise UsageError(
            f"coverage {coverage!r}: expected a whole number of parts per thousand from 1 to 999, "
            "such as 900 for 90%"
        )
    return coverage


def rank(count: int, coverage: int) -> int:
    """ceil((n + 1) c), in whole numbers: in floats 0.9 * 10 may come out above 9."""
    return -(-(count + 1) * check_coverage(coverage) // WHOLE)


def least_rows(coverage: int) -> int:
    """How many calibration rows it takes for a finite score at a coverage in parts per thousand."""
    return -(-check_coverage(coverage) // (WHOLE - coverage))


@dataclass(frozen=True)
class Quantiles:
    """Order statistics of n calibration scores.

    Attributes:
        count: n, how many scores there were.
        values: all of them in rising order if n is at most 999, else the one for each part per thousand.
    """

    count: int
    values: Packed

    def __post_init__(self) -> None:
        """Refuse what cannot be order statistics.

        Raises:
            UsageError: if there are too many or too few values, or they do not rise.
        """
        if (
            self.count < 1
            or len(self.values) != min(self.count, WHOLE - 1)
            or list(self.values) != sorted(self.values)
        ):
            raise UsageError(
                f"{len(self.values)} order statistics of {self.count} scores: expected "
                f"{min(max(self.count, 1), WHOLE - 1)} numbers in rising order"
            )

    @classmethod
    def of(cls, scores: ArrayLike) -> Quantiles:
        """Keep what is needed of scores [n].

        Raises:
            UsageError: if there are none or one is not finite.
        """
        rising = np.sort(as_float(scores, "[n]"))
        count = len(rising)
        if count >= WHOLE:
            rising = rising[[rank(count, c) - 1 for c in range(1, WHOLE)]]
        return cls(count, tuple(rising.tolist()))

    def at(self, coverage: int) -> float:
        """The score up to which a set reaches to cover ``coverage`` parts per thousand.

        Infinite when there were too few calibration rows for so high a coverage: then only the set of
        everything has the guarantee (see :meth:`note`).

        Raises:
            UsageError: unless the coverage is a whole number from 1 to 999.
        """
        k = rank(self.count, coverage)
        if k > self.count:
            return math.inf
        return self.values[(k if self.count < WHOLE else coverage) - 1]

    @property
    def largest_coverage(self) -> int:
        """The highest coverage in parts per thousand with a finite score; 0 if there is none."""
        return min(WHOLE * self.count // (self.count + 1), WHOLE - 1)

    def supports(self, coverage: int) -> bool:
        """Whether the score at this coverage is finite."""
        return rank(self.count, coverage) <= self.count

    def note(self, coverage: int) -> str | None:
        """Why the score is infinite, in words; None if it is not."""
        if self.supports(coverage):
            return None
        return (
            f"{self.count} calibration rows support a coverage of at most {self.largest_coverage / WHOLE:g}, "
            f"not {coverage / WHOLE:g}; ask for less, or calibrate on at least {least_rows(coverage)} rows"
        )


FEW = 200
"""From fewer rows, how often sets and intervals hold the truth depends on the rows; every answer says so."""


def few_rows_note(count: int, coverage: int) -> str | None:
    """How far the coverage may be from the one asked for with n calibration rows; None if not far."""
    if count >= FEW or rank(count, coverage) > count:
        return None
    mean, deviation = coverage_theory(count, coverage)
    return (
        f"calibrated on {count} rows: asked for {coverage / WHOLE:g}, sets and intervals may hold the truth "
        f"for as few as {max(mean - 2 * deviation, 0):.0%} of new rows, by the luck of those rows"
    )


def coverage_theory(calibration: int, coverage: int, test: int | None = None) -> tuple[float, float]:
    """Mean and standard deviation of the coverage over random calibration sets, when scores have no ties.

    Given the calibration set the coverage is Beta(k, n + 1 - k) with k = ceil((n + 1) c) (Vovk 2012); counted
    on m test rows it is beta-binomial. When a fixed pool is split at random this holds exactly, whatever the
    pool, and splits are independent: the mean over R of them has 1 / sqrt(R) of the deviation.

    Args:
        calibration: n.
        coverage: c, in parts per thousand.
        test: m; None for infinitely many.

    Returns:
        The mean, k / (n + 1), and the standard deviation, as shares. (1, 0) when everything is included.
    """
    k = rank(calibration, coverage)
    a, b = k, calibration + 1 - k
    if b < 1:
        return 1.0, 0.0
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    if test is not None:
        variance *= (a + b + test) / test
    return a / (a + b), math.sqrt(variance)
