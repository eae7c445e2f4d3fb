"""Prediction intervals for numbers by split conformal prediction.

See ``conformal.py`` for what is guaranteed.

- ``absolute``: residual |y - mean|; every interval has one width (Papadopoulos et al. 2002).
- ``scaled``: the residual divided by a predicted standard deviation; intervals are wide where the model
  doubts (Lei et al., JASA 2018, section 5.2).
- ``cqr``: how far y lies outside of a predicted band, negative inside (Romano, Patterson and Candes,
  "Conformalized quantile regression", NeurIPS 2019). One band serves every coverage: what is asked for
  moves its ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Float, as_float
from dropserve.uncertainty.quantiles import Quantiles, check_coverage, few_rows_note

IntervalMethod = Literal["absolute", "scaled", "cqr"]
INTERVAL_METHODS: tuple[IntervalMethod, ...] = ("absolute", "scaled", "cqr")
LEAST_STD = 1e-12


@dataclass(frozen=True)
class ConformalRegressor:
    """Calibrated intervals for D targets, each on its own, at any coverage.

    A prediction is given as two arrays [B, D] in the unit of the target: ``absolute`` and ``scaled`` take the
    mean and a standard deviation (``absolute`` ignores it), ``cqr`` the lower and upper ends of the band.

    Attributes:
        method: ``absolute``, ``scaled`` or ``cqr``.
        quantiles: of the calibration scores, for each target.
    """

    method: IntervalMethod
    quantiles: tuple[Quantiles, ...]

    @classmethod
    def fit(
        cls, first: ArrayLike, second: ArrayLike, targets: ArrayLike, *, method: IntervalMethod = "scaled"
    ) -> ConformalRegressor:
        """Calibrate on rows that neither training nor model selection has seen.

        Args:
            first: means or lower ends [n, D].
            second: standard deviations or upper ends [n, D].
            targets: [n, D].
            method: which score.

        Raises:
            UsageError: for an unknown method, shapes that differ, or a negative standard deviation.
        """
        if method not in INTERVAL_METHODS:
            raise UsageError(f"interval method {method!r}: expected one of {', '.join(INTERVAL_METHODS)}")
        a, b = _pair(first, second, method)
        y = as_float(targets, "[n, D]")
        if y.shape != a.shape:
            raise UsageError(f"targets {list(y.shape)}: expected {list(a.shape)}, as the predictions")
        scores = np.maximum(a - y, y - b) if method == "cqr" else np.abs(y - a) / _scale(b, method)
        return cls(method, tuple(Quantiles.of(column) for column in scores.T))

    def intervals(self, first: ArrayLike, second: ArrayLike, coverage: int) -> tuple[Float, Float]:
        """Lower and upper ends [B, D] of the intervals.

        A band that must shrink by more than its width becomes its middle, which can only raise coverage.

        Args:
            first: means or lower ends [B, D].
            second: standard deviations or upper ends [B, D].
            coverage: parts per thousand, 1 to 999.

        Returns:
            Infinite where :meth:`note` says that there were too few calibration rows.

        Raises:
            UsageError: for a coverage out of range or arrays that do not fit.
        """
        check_coverage(coverage)
        a, b = _pair(first, second, self.method)
        if a.shape[1] != len(self.quantiles):
            raise UsageError(f"predictions {list(a.shape)}: expected [B, {len(self.quantiles)}]")
        reach = np.array([q.at(coverage) for q in self.quantiles])
        if self.method != "cqr":
            half = reach * _scale(b, self.method)
            return a - half, a + half
        low, high = a - reach, b + reach
        middle = a + (b - a) / 2
        return np.where(low > high, middle, low), np.where(low > high, middle, high)

    def supports(self, coverage: int) -> bool:
        """Whether intervals at this coverage are finite."""
        return self.quantiles[0].supports(coverage)

    def few(self, coverage: int) -> str | None:
        """What the number of calibration rows means for this coverage; None if they were many."""
        return few_rows_note(self.quantiles[0].count, coverage)

    def note(self, coverage: int) -> str | None:
        """Why there are no finite intervals at this coverage; None if there are."""
        return self.quantiles[0].note(coverage)


def _pair(first: ArrayLike, second: ArrayLike, method: IntervalMethod) -> tuple[Float, Float]:
    a, b = as_float(first, "[B, D]"), as_float(second, "[B, D]")
    if a.shape != b.shape:
        raise UsageError(f"predictions {list(a.shape)} and {list(b.shape)}: expected one shape")
    if method == "cqr" and (a > b).any():
        raise UsageError("cqr: a lower end lies above its upper end; expected lower, then upper")
    if method == "scaled" and b.min() < 0:
        raise UsageError(f"scaled: a standard deviation of {b.min():.3g}; expected none below 0")
    return a, b


def _scale(deviation: Float, method: IntervalMethod) -> Float:
    return np.ones_like(deviation) if method == "absolute" else np.maximum(deviation, LEAST_STD)
