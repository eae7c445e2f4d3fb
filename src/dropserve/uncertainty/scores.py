"""Every measure of class probabilities, before and after calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.uncertainty.calibration import Temperature
from dropserve.uncertainty.checks import Float, as_probabilities
from dropserve.uncertainty.folds import folds
from dropserve.uncertainty.metrics import accuracy, brier, ece, nll

BINS = 15


@dataclass(frozen=True)
class Scores:
    """How good probabilities are on some rows.

    Attributes:
        accuracy: share of the rows whose most probable class is right.
        nll: mean negative log-likelihood, in nats.
        brier: Brier score, 0 to 2.
        ece: expected calibration error over 15 bins of equal width.
        ece_mass: the same over 15 bins of about as many rows each.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_mass: float

    @classmethod
    def of(cls, probabilities: ArrayLike, labels: ArrayLike) -> Scores:
        """Measure probabilities [B, C] of rows whose classes are labels [B].

        Raises:
            UsageError: for arrays that do not fit.
        """
        return cls(
            accuracy(probabilities, labels),
            nll(probabilities, labels),
            brier(probabilities, labels),
            ece(probabilities, labels, bins=BINS),
            ece(probabilities, labels, bins=BINS, equal="mass"),
        )


def calibrated_by_others(
    probabilities: ArrayLike, labels: ArrayLike, plain: ArrayLike | None = None
) -> Float:
    """Probabilities [B, C], each row's at a temperature that was chosen on other rows.

    Where all rows together leave the temperature at 1, they are returned as they are: so they are served.

    Args:
        probabilities: means over samples [B, C].
        labels: [B].
        plain: probabilities without dropout [B, C], where they are known.

    Raises:
        UsageError: for arrays that do not fit.
    """
    mean, truth = as_probabilities(probabilities, labels)
    without = None if plain is None else as_probabilities(plain, labels)[0]
    if Temperature.fit(mean, truth, without).value == 1:
        return mean
    calibrated = np.empty_like(mean)
    for others, judged in folds(len(mean)):
        found = Temperature.fit(mean[others], truth[others], None if without is None else without[others])
        calibrated[judged] = found.probabilities(mean[judged])
    return calibrated
