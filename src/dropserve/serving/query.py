"""What a host asks of the predictor, and what it gets: arrays, no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import ClassificationStatistics, RegressionStatistics

Array = NDArray[np.generic]
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Query:
    """One request.

    Attributes:
        inputs: for the name of each input, its rows [B, ...] in the dtype of the signature.
        settings: Monte Carlo settings; None asks for the deterministic answer.
    """

    inputs: Mapping[str, Array]
    settings: Settings | None = None

    @property
    def rows(self) -> int:
        """B, the same for every input."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        values: for the name of each output [B, ...]. Classification: probabilities; regression: the value
            in the unit of the target. With Monte Carlo, the mean over samples.
        statistics: Monte Carlo statistics by output, None otherwise. Those of an output whose rows are not
            vectors have its rows flattened: [B, D].
        settings: the effective Monte Carlo settings.
    """

    values: Mapping[str, Float]
    statistics: Mapping[str, ClassificationStatistics | RegressionStatistics] | None = None
    settings: Settings | None = None
