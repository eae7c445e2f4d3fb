"""Held-out answers of a classifier or a regressor, with what calibration makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dropserve.dropout.masks import common_block, site_rates
from dropserve.dropout.statistics import classification, entropy, regression, softmax
from dropserve.errors import UsageError
from dropserve.uncertainty.calibration import VarianceScaling
from dropserve.uncertainty.checks import Bool, Float, Whole, as_float, as_labels, as_probabilities
from dropserve.uncertainty.folds import LEAST, folds
from dropserve.uncertainty.record import Calibration
from dropserve.uncertainty.regression import central_interval, noise_of, spread
from dropserve.uncertainty.scores import calibrated_by_others

from .evidence import Evidence, HeldOut


@dataclass(frozen=True)
class ClassAnswers:
    """A classifier's answers to B held-out rows.

    Attributes:
        labels: what is true [B].
        plain: probabilities of the deterministic answer [B, C].
        mean: uncalibrated Monte Carlo probabilities [B, C]; the plain ones without dropout sites.
        calibrated: those at a temperature chosen on other rows [B, C]; None if not calibrated.
        total: predictive entropy [B], in nats.
        epistemic: mutual information [B], in nats; None without dropout sites.
        samples: T; 0 without dropout sites.
    """

    labels: Whole
    plain: Float
    mean: Float
    calibrated: Float | None
    total: Float
    epistemic: Float | None
    samples: int

    @property
    def correct(self) -> Bool:
        """Whether the most probable class is right [B]."""
        return self.mean.argmax(axis=1) == self.labels

    @property
    def name(self) -> str:
        """Of the answers that are judged."""
        return f"Monte Carlo, {self.samples} samples" if self.samples else "plain"


@dataclass(frozen=True)
class ValueAnswers:
    """A regressor's answers to B held-out rows and D targets, in the unit of the target.

    Attributes:
        target: what is true [B, D].
        plain: the deterministic answer [B, D].
        mean: of the samples [B, D]; the plain one without dropout sites.
        epistemic: spread of the samples [B, D]; None without dropout sites.
        total: with the noise [B, D], uncalibrated; None if not calibrated.
        calibrated: times a factor chosen on other rows [B, D]; None likewise.
        samples: T; 0 without dropout sites.
        band: lower and upper ends [B, D] of the interval that ``cqr`` adjusts; None for other methods.
    """

    target: Float
    plain: Float
    mean: Float
    epistemic: Float | None
    total: Float | None
    calibrated: Float | None
    samples: int
    band: tuple[Float, Float] | None = None


def calibration_of(evidence: Evidence) -> Calibration | None:
    """The version's calibration."""
    content = evidence.manifest.calibration
    return None if content is None else Calibration.from_json(content)


def why_unjudged(evidence: Evidence) -> str:
    """Why answers to held-out rows cannot be judged; empty if they can."""
    if evidence.manifest.task == "raw":
        return (
            "The task of this model is raw: dropserve passes its outputs on and does not know what they "
            "mean, so "
            "it cannot say which are right."
        )
    if isinstance(evidence.held, str):
        return evidence.held
    if evidence.held.rows < LEAST:
        return f"The run holds {evidence.held.rows} held-out rows; figures from fewer than {LEAST} mislead."
    return ""


def class_answers(evidence: Evidence, held: HeldOut) -> ClassAnswers:
    """Judge a classifier.

    Raises:
        UsageError: if answers and targets do not fit, or are not finite.
    """
    plain = softmax(as_float(held.plain.reshape(held.rows, -1), "[B, C]"))
    labels = as_labels(held.target, *plain.shape)
    if held.samples is None:
        return ClassAnswers(labels, plain, plain, None, entropy(plain), None, 0)
    samples = as_float(held.samples.reshape(len(held.samples), held.rows, -1), "[T, B, C]")
    found = classification(softmax(samples), scheme=held.settings.scheme, block=_block(evidence, held))
    calibrated = None
    if evidence.manifest.calibration is not None:
        calibrated = calibrated_by_others(found.mean, labels, plain)
    as_probabilities(found.mean, labels)
    return ClassAnswers(
        labels,
        plain,
        found.mean,
        calibrated,
        found.predictive_entropy,
        found.mutual_information,
        len(samples),
    )


def value_answers(evidence: Evidence, held: HeldOut) -> ValueAnswers:
    """Judge a regressor.

    Raises:
        UsageError: if answers and targets do not fit, or are not finite.
    """
    plain = as_float(held.plain.reshape(held.rows, -1), "[B, D]")
    target = as_float(np.asarray(held.target, np.float64).reshape(held.rows, -1), "[B, D]")
    if plain.shape != target.shape:
        raise UsageError(f"answers {list(plain.shape)} and targets {list(target.shape)}: expected one shape")
    if held.samples is None:
        return ValueAnswers(target, plain, plain, None, None, None, 0)
    samples = as_float(held.samples.reshape(len(held.samples), held.rows, -1), "[T, B, D]")
    block, scheme = _block(evidence, held), held.settings.scheme
    calibration = calibration_of(evidence)
    if calibration is None or calibration.scaling is None:
        plainly = regression(samples, scheme=scheme, block=block)
        return ValueAnswers(target, plain, plainly.mean, plainly.std, None, None, len(samples))
    noise = noise_of(calibration.precision) if held.noise is None else held.noise
    found = spread(samples, noise, scheme=scheme, block=block)
    calibrated = np.empty_like(found.total)
    for others, judged in folds(held.rows):
        scaling = VarianceScaling.fit(found.mean[others], found.total[others], target[others])
        calibrated[judged] = scaling.std(found.total[judged])
    band = None if calibration.band is None else central_interval(samples, noise, calibration.band / 1000)
    return ValueAnswers(
        target, plain, found.mean, found.epistemic, found.total, calibrated, len(samples), band
    )


def _block(evidence: Evidence, held: HeldOut) -> int:
    return common_block(site_rates(evidence.manifest.sites, held.settings.rate))
