"""What calibration adds to Monte Carlo answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Bool, Float
from dropserve.uncertainty.conformal import ConformalClassifier, class_scores, row_uniforms, with_label
from dropserve.uncertainty.intervals import ConformalRegressor
from dropserve.uncertainty.ood import AUTO, OodThreshold, OutOfDistribution, graph_score, score
from dropserve.uncertainty.record import Calibration
from dropserve.uncertainty.regression import central_interval, noise_of, spread


@dataclass(frozen=True)
class CalibratedClasses:
    """Calibrated answers to B rows.

    Attributes:
        probabilities: at the calibrated temperature [B, C].
        nonconformity: score of each class [B, C]; a set holds those up to a threshold.
        label: most probable class [B], before calibration; it is in every set.
        conformal: gives the threshold.
        detected: what is out of distribution.
        rests_on: what few calibration rows mean for the temperature, in words.
    """

    probabilities: Float
    nonconformity: Float
    label: NDArray[np.intp]
    conformal: ConformalClassifier
    detected: OutOfDistribution
    rests_on: tuple[str, ...] = ()

    def sets(self, coverage: int) -> Bool | None:
        """Which classes each row's set holds [B, C], at a coverage in parts per thousand.

        None where the calibration rows do not support it; :meth:`notes` say why.
        """
        if not self.conformal.supports(coverage):
            return None
        return with_label(self.nonconformity <= self.conformal.thresholds(coverage), self.label)

    def notes(self, coverage: int, labels: Sequence[str] = ()) -> list[str]:
        """What few calibration rows mean for the answers, in words."""
        of_sets = self.conformal.note(coverage, labels) or self.conformal.few(coverage)
        return _notes(*self.rests_on, of_sets, self.ood.note())

    @property
    def strangeness(self) -> Float:
        """Out-of-distribution score [B]."""
        return self.detected.values

    @property
    def ood(self) -> OodThreshold:
        """The threshold of ``strangeness``."""
        return self.detected.ood

    @property
    def out_of_distribution(self) -> Bool:
        """Whether each row looks out of distribution [B]."""
        return self.detected.flags

    def take(self, rows: slice) -> CalibratedClasses:
        """The answers to some of the rows."""
        return replace(
            self,
            probabilities=self.probabilities[rows],
            nonconformity=self.nonconformity[rows],
            label=self.label[rows],
            detected=self.detected.take(rows),
        )


@dataclass(frozen=True)
class CalibratedValues:
    """Calibrated answers to B rows and D targets, in the unit of the target.

    Attributes:
        epistemic: standard deviation [B, D]: what more data would take away.
        aleatoric: standard deviation of the noise [B, D].
        total: calibrated standard deviation [B, D]: both together, times the factor that made it honest.
        first: means, or lower ends of the band [B, D].
        second: deviations by which intervals are scaled, or upper ends of the band [B, D].
        conformal: makes intervals of these two.
        rests_on: what few calibration rows mean for the deviations, in words.
        detected: what is out of distribution; None where nothing compares rows with those of training.
    """

    epistemic: Float
    aleatoric: Float
    total: Float
    first: Float
    second: Float
    conformal: ConformalRegressor
    rests_on: tuple[str, ...] = ()
    detected: OutOfDistribution | None = None

    def intervals(self, coverage: int) -> tuple[Float, Float] | None:
        """Lower and upper ends [B, D] at a coverage in parts per thousand.

        None where the calibration rows do not support it; :meth:`notes` say why.
        """
        if not self.conformal.supports(coverage):
            return None
        return self.conformal.intervals(self.first, self.second, coverage)

    def notes(self, coverage: int, _labels: Sequence[str] = ()) -> list[str]:
        """What few calibration rows mean for the answers, in words."""
        of_intervals = self.conformal.note(coverage) or self.conformal.few(coverage)
        return _notes(*self.rests_on, of_intervals, self.detected and self.detected.ood.note())

    def take(self, rows: slice) -> CalibratedValues:
        """The answers to some of the rows."""
        return replace(
            self,
            epistemic=self.epistemic[rows],
            aleatoric=self.aleatoric[rows],
            total=self.total[rows],
            first=self.first[rows],
            second=self.second[rows],
            detected=None if self.detected is None else self.detected.take(rows),
        )


def calibrated_classes(
    calibration: Calibration,
    logits: ArrayLike,
    statistics: ClassificationStatistics,
    inputs: Mapping[str, NDArray[Any]],
    seed: int,
    nearest: ArrayLike | None = None,
    columns: tuple[str, ...] = (),
) -> CalibratedClasses:
    """Apply a classifier's calibration.

    Args:
        calibration: of the version.
        logits: [T, B, C], for the scores that need them.
        statistics: of the same samples, uncalibrated.
        inputs: for the name of each input [B, ...].
        seed: of the query.
        nearest: what the graph of the out-of-distribution score gave, where it has one.
        columns: names of the values of a row, for reasons.

    Raises:
        UsageError: if the calibration is of a regressor.
    """
    c = calibration
    if c.temperature is None or c.sets is None or c.ood is None:
        raise UsageError("this calibration is not a classifier's; export the model again")
    uniforms = None if c.sets.method == "lac" else row_uniforms(inputs, seed)
    return CalibratedClasses(
        probabilities=c.temperature.probabilities(statistics.mean),
        nonconformity=class_scores(
            statistics.mean, c.sets.method, uniforms, penalty=c.sets.penalty, free_ranks=c.sets.free_ranks
        ),
        label=statistics.mean.argmax(axis=1),
        conformal=c.sets,
        detected=OutOfDistribution(
            c.ood,
            score(c.ood.score, statistics, logits, nearest, c.ood.parts),
            _table(c.ood, nearest),
            columns,
        ),
        rests_on=c.notes(),
    )


def calibrated_values(
    calibration: Calibration,
    samples: ArrayLike,
    *,
    block: int,
    variances: ArrayLike | None = None,
    nearest: ArrayLike | None = None,
    columns: tuple[str, ...] = (),
) -> CalibratedValues:
    """Apply a regressor's calibration.

    Args:
        calibration: of the version.
        samples: [T, B, D].
        block: block size of their masks.
        variances: of the noise [T, B, D], from a heteroscedastic head.
        nearest: what the graph of the out-of-distribution score gave, where it has one.
        columns: names of the values of a row, for reasons.

    Raises:
        UsageError: if the calibration is of a classifier, or of another kind of noise.
    """
    c = calibration
    if c.scaling is None or c.intervals is None:
        raise UsageError("this calibration is not a regressor's; export the model again")
    if (variances is None) != bool(c.precision):
        kind = "one noise for all rows" if c.precision else "a noise for each row"
        raise UsageError(f"this calibration is of {kind}, the samples are not; export the model again")
    noise = noise_of(c.precision) if variances is None else np.asarray(variances, np.float64)
    found = spread(samples, noise, scheme=c.assumes.scheme, block=block)
    first, second = found.mean, found.total
    if c.band is not None:
        first, second = central_interval(samples, noise, c.band / 1000)
    detected = None
    if c.ood is not None:
        values = graph_score(c.ood.score, nearest, c.ood.parts)
        detected = OutOfDistribution(c.ood, values, _table(c.ood, nearest), columns)
    return CalibratedValues(
        found.epistemic,
        found.aleatoric,
        c.scaling.std(found.total),
        first,
        second,
        c.intervals,
        c.notes(),
        detected,
    )


def _notes(*found: str | None) -> list[str]:
    return [note for note in found if note is not None]


def _table(ood: OodThreshold, nearest: ArrayLike | None) -> Float | None:
    return np.asarray(nearest, np.float64) if nearest is not None and ood.score == AUTO else None
