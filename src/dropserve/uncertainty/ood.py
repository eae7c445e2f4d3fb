"""Does this row look like what the model was trained on? Scores that rise with strangeness, and a threshold.

The threshold is fixed on validation rows alone, at a stated rate of false alarms; no strange row is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Bool, Float, as_float
from dropserve.uncertainty.distances import Part, combined, far_outside, reason
from dropserve.uncertainty.quantiles import WHOLE, Quantiles, coverage_theory
from dropserve.uncertainty.ranking import auroc, fpr_at_tpr

ScoreName = Literal[
    "auto", "max_probability", "predictive_entropy", "mutual_information", "energy", "nearest"
]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
AUTO, NEAREST = "auto", "nearest"
"""These come from a graph of their own, not from samples. ``nearest``: how far the hidden layers' activations
are from those of the most similar training row (see ``export.nearest``). ``auto``: the largest of several
distances from training rows, each on the same scale (see ``uncertainty.distances``)."""
GRAPHS = frozenset({AUTO, NEAREST})
INDECISION = frozenset({"max_probability", "predictive_entropy", "mutual_information"})
"""Scores that measure indecision between classes. A model may be sure of a row that is like none it knows."""


def score(
    name: str,
    statistics: ClassificationStatistics,
    logits: ArrayLike | None = None,
    nearest: ArrayLike | None = None,
    parts: Sequence[Part] = (),
) -> Float:
    """One of the scores [B].

    Args:
        name: one of ``SCORES``.
        statistics: of the rows.
        logits: [T, B, C], for ``energy``.
        nearest: what the graph of ``nearest`` [B] or ``auto`` [B, columns] gave.
        parts: of ``auto``.

    Raises:
        UsageError: for a score that needs what was not given.
    """
    if name in GRAPHS:
        return graph_score(name, nearest, parts)
    return scores(statistics, logits if name == "energy" else None)[name]


def graph_score(name: str, nearest: ArrayLike | None, parts: Sequence[Part] = ()) -> Float:
    """A score that needs no samples [B]: ``auto`` or ``nearest``.

    Raises:
        UsageError: without what its graph gives.
    """
    if nearest is None:
        raise UsageError(f"the score {name!r} needs what its graph gives; export the model again")
    return combined(nearest, parts) if name == AUTO else as_float(nearest, "[B]")


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
        parts: of the score ``auto``.
    """

    score: str
    threshold: float | None
    false_alarms: int
    rows: int
    parts: tuple[Part, ...] = ()

    @classmethod
    def fit(
        cls, values: ArrayLike, *, score: str, false_alarms: int = 50, parts: Sequence[Part] = ()
    ) -> OodThreshold:
        """Fix the threshold.

        It is the order statistic of split conformal prediction, so that a new row in distribution is flagged
        with at most the stated probability (Bates et al., "Testing for outliers with conformal p-values",
        Annals of Statistics 2023), however few the rows.

        Args:
            values: scores of validation rows [B].
            score: its name.
            false_alarms: parts per thousand, 1 to 999.
            parts: of the score ``auto``.

        Raises:
            UsageError: for an unknown score or a rate out of range.
        """
        if score not in SCORES:
            raise UsageError(f"out-of-distribution score {score!r}: expected one of {', '.join(SCORES)}")
        quantiles = Quantiles.of(values)
        found = quantiles.at(WHOLE - false_alarms)
        return cls(score, None if np.isinf(found) else found, false_alarms, quantiles.count, tuple(parts))

    def flags(self, values: ArrayLike, nearest: ArrayLike | None = None) -> Bool:
        """Whether each row [B] looks out of distribution.

        Without a threshold ``auto`` still tells a value that lies farther outside the range of training than
        that range is wide; no rate of false alarms holds then.

        Args:
            values: scores [B].
            nearest: what the graph of ``auto`` gave [B, columns].
        """
        found = as_float(values, "[B]")
        if self.threshold is not None:
            return found > self.threshold
        if self.score == AUTO and nearest is not None:
            return far_outside(nearest)
        return np.zeros(len(found), np.bool_)

    def note(self) -> str | None:
        """Why no score is ever flagged; None if one may be."""
        if self.threshold is not None:
            return None
        note = (
            f"{self.rows} validation rows cannot fix a threshold at a false alarm rate of "
            f"{self.false_alarms / WHOLE:g}; it takes at least "
            f"{-(-(WHOLE - self.false_alarms) // self.false_alarms)}"
        )
        return f"{note}. Only values far outside the training range are flagged" if self.parts else note

    def alarms(self) -> str:
        """How many usual rows are flagged, in words."""
        coverage, deviation = coverage_theory(self.rows, WHOLE - self.false_alarms)
        low, high = (max(0.0, 1 - coverage + sign * 2 * deviation) for sign in (-1, 1))
        return (
            f"at most {self.false_alarms / WHOLE:.1%} of usual rows on average; {low:.1%} to {high:.1%} by "
            f"the luck of the {self.rows} calibration rows"
        )

    def meaning(self) -> str | None:
        """What the score measures, where that is not how unlike the training rows a row is."""
        if self.score not in INDECISION:
            return None
        return (
            f"{self.score} measures indecision between classes; a row unlike all training rows may pass it. "
            'uncertainty.ood_score = "auto" in the recipe compares rows with training rows'
        )


@dataclass(frozen=True)
class OutOfDistribution:
    """What was found about B rows.

    Attributes:
        ood: the threshold.
        values: scores [B].
        nearest: what the graph of ``auto`` gave [B, columns]; None for another score.
        columns: names of the values of a row, for reasons.
    """

    ood: OodThreshold
    values: Float
    nearest: Float | None = None
    columns: tuple[str, ...] = ()

    @property
    def flags(self) -> Bool:
        """Whether each row looks unlike the training rows [B]."""
        return self.ood.flags(self.values, self.nearest)

    def rows(self) -> list[dict[str, bool | float | str | None]]:
        """Flag, score and reason of each row; the flag is null where no threshold could judge it."""
        found: list[dict[str, bool | float | str | None]] = []
        for row, (value, flag) in enumerate(zip(self.values.tolist(), self.flags.tolist(), strict=True)):
            unknown = self.ood.threshold is None and not flag
            found.append(
                {
                    "out_of_distribution": None if unknown else flag,
                    "out_of_distribution_score": value,
                    "out_of_distribution_reason": self._reason(row) if flag else None,
                }
            )
        return found

    def _reason(self, row: int) -> str:
        if self.nearest is not None and self.ood.score == AUTO:
            return reason(self.nearest[row], self.ood.parts, self.ood.threshold, self.columns)
        return f"{self.ood.score} {self.values[row]:.4g}, threshold {self.ood.threshold:.4g}"

    def take(self, rows: slice) -> OutOfDistribution:
        """The same for some of the rows."""
        nearest = None if self.nearest is None else self.nearest[rows]
        return OutOfDistribution(self.ood, self.values[rows], nearest, self.columns)


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
