"""The only place that sees test rows: it measures a finished predictor on them."""

from __future__ import annotations

from dataclasses import dataclass

from dropserve.training.uci.refit import Predictor
from dropserve.training.uci.splits import Part
from dropserve.uncertainty.metrics import rmse

SAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """Figures of one split.

    Attributes:
        rmse: of the mean over samples, in the unit of the target.
        log_likelihood: mean over the test rows of the mixture's log density, in nats.
    """

    rmse: float
    log_likelihood: float


def judge(predictor: Predictor, part: Part, samples: int = SAMPLES) -> Score:
    """Measure on the test rows of a split."""
    drawn = predictor.samples(part, samples)
    likelihood = predictor.noise.log_likelihood(drawn, part.target)
    return Score(rmse(drawn.mean, part.target), float(likelihood.mean()))
