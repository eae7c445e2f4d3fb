"""How good class probabilities are: accuracy, proper scores and calibration error.

Every measure takes probabilities [B, C] in any float dtype and labels [B], and computes in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Float, Whole, as_float, as_probabilities

Bins = Literal["width", "mass"]
_SMALLEST = np.finfo(np.float64).tiny


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Share of the rows whose most probable class is right; the first of equals counts."""
    values, truth = as_probabilities(probabilities, labels)
    return float((values.argmax(axis=1) == truth).mean())


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood in nats.

    A probability of 0 for what came true counts as 2.2e-308, so that the mean stays a number.
    """
    values, truth = as_probabilities(probabilities, labels)
    return float(-np.log(np.maximum(values[np.arange(len(truth)), truth], _SMALLEST)).mean())


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over rows of the squared error summed over classes, 0 to 2 (Brier, 1950)."""
    values, truth = as_probabilities(probabilities, labels)
    return float(np.square(values - np.eye(values.shape[1])[truth]).sum(axis=1).mean())


def rmse(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Root mean squared error of predictions [B] or [B, D], in the unit of the target.

    Raises:
        UsageError: if the shapes differ: [B] against [B, 1] would be broadcast to [B, B].
    """
    made, wanted = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if made.shape != wanted.shape or made.size == 0:
        raise UsageError(
            f"predictions {list(made.shape)} and targets {list(wanted.shape)}: expected one shape"
        )
    return float(np.sqrt(np.square(made - wanted).mean()))


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram of K bins that hold rows (Guo et al., "On calibration", ICML 2017).

    Attributes:
        confidence: mean confidence in each bin [K].
        accuracy: share that was right in each bin [K].
        count: rows in each bin [K].
    """

    confidence: Float
    accuracy: Float
    count: Whole

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, weighted by rows."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.count))


def reliability(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, equal: Bins = "width"
) -> Reliability:
    """Compare confidence with how often it was right.

    Args:
        confidence: of each row [B], 0 to 1.
        correct: whether each row was right [B].
        bins: how many; the lower edge of a bin belongs to the one below.
        equal: ``width``: bins of one width; ``mass``: bins of about as many rows each, where equal
            confidences stay together, in the bin of their middle rank (Nguyen and O'Connor, EMNLP 2015).

    Raises:
        UsageError: for shapes that differ, a confidence outside [0, 1], or no bins.
    """
    values = as_float(confidence, "[B]")
    right = np.asarray(correct, dtype=np.float64)
    if right.shape != values.shape or values.min() < 0 or values.max() > 1 + 1e-9 or bins < 1:
        raise UsageError(
            f"confidence {list(values.shape)} from {values.min():.3g} to {values.max():.3g}, correct "
            f"{list(right.shape)}, {bins} bins: expected equal lengths, 0 to 1, and at least 1 bin"
        )
    if equal == "width":
        index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], values)
    else:
        _, group, size = np.unique(values, return_inverse=True, return_counts=True)
        # Edges at quantiles would let a large group swallow the one below it.
        middle = np.cumsum(size) - size / 2
        index = (middle * bins / len(values)).astype(np.intp)[group]
    count = np.bincount(index, minlength=bins)
    some = count > 0
    return Reliability(
        confidence=np.bincount(index, values, bins)[some] / count[some],
        accuracy=np.bincount(index, right, bins)[some] / count[some],
        count=count[some].astype(np.int64),
    )


def ece(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15, equal: Bins = "width") -> float:
    """Expected calibration error of the most probable class (see :func:`reliability`)."""
    values, truth = as_probabilities(probabilities, labels)
    confidence = np.minimum(values.max(axis=1), 1.0)
    return reliability(confidence, values.argmax(axis=1) == truth, bins=bins, equal=equal).ece
