"""What a host asks of the predictor, and what it gets: arrays, no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import ClassificationStatistics, RegressionStatistics
from dropserve.uncertainty.answers import CalibratedClasses, CalibratedValues

Array = NDArray[np.generic]
Float = NDArray[np.float64]
Calibrated = CalibratedClasses | CalibratedValues
COVERAGE = 900


class Query(NamedTuple):
    """One request.

    Attributes:
        inputs: for the name of each input, its rows [B, ...] in the dtype of the signature.
        settings: Monte Carlo settings; None asks for the deterministic answer.
        coverage: how often sets and intervals shall hold the truth, in parts per thousand.
        tolerance: Monte Carlo error at which a row may stop, a fraction (``serving.outcome``); None runs all
            samples.
    """

    inputs: Mapping[str, Array]
    settings: Settings | None = None
    coverage: int = COVERAGE
    tolerance: float | None = None

    @property
    def rows(self) -> int:
        """B, the same for every input."""
        return len(next(iter(self.inputs.values())))


class Answer(NamedTuple):
    """The answer to one request.

    Attributes:
        values: for the name of each output [B, ...]. Classification: probabilities; regression: the value
            in the unit of the target. With Monte Carlo, the mean over samples.
        statistics: Monte Carlo statistics by output, None otherwise. Those of an output whose rows are not
            vectors have its rows flattened: [B, D].
        settings: the effective Monte Carlo settings.
        calibrated: what calibration adds to a Monte Carlo answer; None if it does not apply.
        uncalibrated: why it does not, in words.
        coverage: of sets and intervals, in parts per thousand.
        tolerance: the effective one.
        samples: where there was a tolerance, how many samples each row took [B].
        noise: of a heteroscedastic regressor: standard deviation of the noise by output [B, 1].
    """

    values: Mapping[str, Float]
    statistics: Mapping[str, ClassificationStatistics | RegressionStatistics] | None = None
    settings: Settings | None = None
    calibrated: Calibrated | None = None
    uncalibrated: str | None = None
    coverage: int = COVERAGE
    tolerance: float | None = None
    samples: NDArray[np.int64] | None = None
    noise: Mapping[str, Float] = MappingProxyType({})
