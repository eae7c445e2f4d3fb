"""How well a score puts rows in order: selective prediction and detection. Equal scores are one group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Float, as_float


@dataclass(frozen=True)
class RiskCoverage:
    """What is left of the error when only the most confident rows are answered.

    Attributes:
        coverage: share of rows answered [B]: 1/B, 2/B, ..., 1.
        risk: mean loss of the rows answered [B].
    """

    coverage: Float
    risk: Float

    @property
    def aurc(self) -> float:
        """Area under the curve: the mean risk over coverages, smaller is better."""
        return float(self.risk.mean())

    def risk_at(self, coverage: float) -> float:
        """The risk when at least this share of the rows is answered."""
        return float(self.risk[min(np.searchsorted(self.coverage, coverage - 1e-12), len(self.risk) - 1)])


def risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> RiskCoverage:
    """The curve of selective prediction (Geifman and El-Yaniv, NeurIPS 2017; AURC: ICLR 2019).

    Args:
        confidence: of each row [B]; rows are answered from the highest down.
        loss: of each row [B]: 1 where a class is wrong, or a squared error.

    Returns:
        Rows of equal confidence are taken in random order, and the curve is its expectation, so the result
        does not depend on the order of the rows.

    Raises:
        UsageError: if the lengths differ.
    """
    certain, cost = as_float(confidence, "[B]"), as_float(np.asarray(loss, np.float64), "[B]")
    if certain.shape != cost.shape:
        raise UsageError(f"confidence {list(certain.shape)} and loss {list(cost.shape)}: expected one length")
    _, index, count = np.unique(-certain, return_inverse=True, return_counts=True)
    share = np.bincount(index, cost) / count  # each row of a group costs the group's mean
    answered = np.arange(1, len(cost) + 1)
    return RiskCoverage(answered / len(cost), np.cumsum(np.repeat(share, count)) / answered)


def aurc(confidence: ArrayLike, loss: ArrayLike) -> float:
    """Area under the risk-coverage curve (see :func:`risk_coverage`)."""
    return risk_coverage(confidence, loss).aurc


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Probability that a positive scores above a negative; a tie counts half (Mann and Whitney, 1947).

    Args:
        positive: scores of what should score high [P].
        negative: scores of what should score low [N].
    """
    high, low = as_float(positive, "[P]"), as_float(negative, "[N]")
    below = np.sort(low)
    wins = np.searchsorted(below, high, "left") + np.searchsorted(below, high, "right")
    return float(wins.sum() / (2 * len(high) * len(low)))


def fpr_at_tpr(positive: ArrayLike, negative: ArrayLike, *, tpr: float = 0.95) -> float:
    """Share of negatives that pass the threshold which at least ``tpr`` of the positives pass.

    In the literature on out-of-distribution detection the rows *in* distribution are the positives
    (Hendrycks and Gimpel, ICLR 2017); :func:`dropserve.uncertainty.ood.detection` follows it.

    Args:
        positive: scores of what should score high [P].
        negative: scores of what should score low [N].
        tpr: true positive rate, above 0 and at most 1.

    Raises:
        UsageError: for a rate outside that range.
    """
    if not 0 < tpr <= 1:
        raise UsageError(f"a true positive rate of {tpr!r}: expected above 0, at most 1")
    high, low = np.sort(as_float(positive, "[P]"))[::-1], as_float(negative, "[N]")
    needed = int(np.argmax(np.arange(1, len(high) + 1) / len(high) >= tpr))
    return float((low >= high[needed]).mean())
