"""Does this row look like what the model was trained on? Scores that rise with strangeness, and a threshold.

The threshold is fixed on validation rows alone, at a stated rate of false alarms; no strange row is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Bool, Float, as_float
from dropserve.uncertainty.quantiles import WHOLE, Quantiles
from dropserve.uncertainty.ranking import auroc, fpr_at_tpr

ScoreName = Literal["max_probability", "predictive_entropy", "mutual_information", "energy", "nearest"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
NEAREST = "nearest"
"""Comes from a graph of its own, not from samples: how far the hidden layers' activations are from those of
the most similar training row (see ``export.nearest``)."""


def score(
    name: str,
    statistics: ClassificationStatistics,
    logits: ArrayLike | None = None,
    nearest: ArrayLike | None = None,
) -> Float:
    """One of the scores [B].

    Args:
        name: one of ``SCORES``.
        statistics: of the rows.
        logits: [T, B, C], for ``energy``.
        nearest: [B], what the graph of ``nearest`` gave.

    Raises:
        UsageError: for a score that needs what was not given.
    """
    if name == NEAREST:
        if nearest is None:
            raise UsageError("the score 'nearest' needs what its graph gives; export the model again")
        return as_float(nearest, "[B]")
    return scores(statistics, logits if name == "energy" else None)[name]


def scores(statistics: ClassificationStatistics, logits: ArrayLike | None = None) -> dict[str, Float]:
    """Scores of B rows; the larger, the stranger.

    Args:
        statistics: of the rows.
        logits: [T, B, C]; without them there is no energy.

    Returns:
        For each name, [B]:
        ``max_probability``: 1 - the largest mean probability (Hendrycks and Gimpel, ICLR 2017);
        ``predictive_entropy``: total uncertainty, in nats;
        ``mutual_information``: what the samples disagree about, in nats (Houlsby et al. 2011);
        ``energy``: minus logsumexp of the logits, mean over samples (Liu et al., NeurIPS 2020).
    """
    found = {
        "max_probability": 1 - statistics.mean.max(axis=1),
        "predictive_entropy": statistics.predictive_entropy,
        "mutual_information": statistics.mutual_information,
    }
    if logits is not None:
        values = as_float(logits, "[T, B, C]")
        top = values.max(axis=2)
        found["energy"] = -(top + np.log(np.exp(values - top[..., None]).sum(axis=2))).mean(axis=0)
    return found


@dataclass(frozen=True)
class OodThreshold:
    """Above which score a row is flagged.

    Attributes:
        score: which one.
        threshold: flagged above it; None never flags, as there were too few validation rows for the rate.
        false_alarms: parts per thousand of rows *in* distribution that may be flagged, on average.
        rows: validation rows that it was fixed on.
    """

    score: str
    threshold: float | None
    false_alarms: int
    rows: int

    @classmethod
    def fit(cls, values: ArrayLike, *, score: str, false_alarms: int = 50) -> OodThreshold:
        """Fix the threshold.

        It is the order statistic of split conformal prediction, so that a new row in distribution is flagged
        with at most the stated probability (Bates et al., "Testing for outliers with conformal p-values",
        Annals of Statistics 2023), however few the rows.

        Args:
            values: scores of validation rows [B].
            score: its name.
            false_alarms: parts per thousand, 1 to 999.

        Raises:
            UsageError: for an unknown score or a rate out of range.
        """
        if score not in SCORES:
            raise UsageError(f"out-of-distribution score {score!r}: expected one of {', '.join(SCORES)}")
        quantiles = Quantiles.of(values)
        found = quantiles.at(WHOLE - false_alarms)
        return cls(score, None if np.isinf(found) else found, false_alarms, quantiles.count)

    def flags(self, values: ArrayLike) -> Bool:
        """Whether each row [B] looks out of distribution."""
        limit = np.inf if self.threshold is None else self.threshold
        return as_float(values, "[B]") > limit

    def note(self) -> str | None:
        """Why nothing is ever flagged; None if something may be."""
        if self.threshold is not None:
            return None
        return (
            f"{self.rows} validation rows cannot fix a threshold at a false alarm rate of "
            f"{self.false_alarms / WHOLE:g}; it takes at least "
            f"{-(-(WHOLE - self.false_alarms) // self.false_alarms)}"
        )


@dataclass(frozen=True)
class Detection:
    """How well a score tells two sets of rows apart.

    Attributes:
        auroc: probability that a strange row scores above a usual one.
        fpr95: share of strange rows that pass the threshold which 95% of the usual ones pass.
    """

    auroc: float
    fpr95: float


def detection(usual: ArrayLike, strange: ArrayLike) -> Detection:
    """Measure scores of rows in [N] and out of [M] distribution."""
    inside, outside = as_float(usual, "[N]"), as_float(strange, "[M]")
    return Detection(auroc(outside, inside), fpr_at_tpr(-inside, -outside))
