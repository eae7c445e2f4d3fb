"""What Monte Carlo samples say, in float64 and by formulas that do not cancel.

Under balanced masks the samples of a block repel each other. Two things follow. The spread is divided by
T, not T - 1 (what repulsion takes from the sum of squares is about what the correction would add). And the
standard error of a mean cannot be s/sqrt(T), which is several times too large: it is taken from the means
of whole blocks, which are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dropserve.dropout.masks import SCHEMES
from dropserve.dropout.student import t_quantile
from dropserve.errors import UsageError

Float = NDArray[np.float64]
MINIMUM_BLOCKS = 5  # fewer block means give an error estimate that is itself too uncertain to report


@dataclass(frozen=True)
class ClassificationStatistics:
    """Statistics of B rows and C classes; entropies in nats.

    Attributes:
        mean: predictive probabilities [B, C].
        std: spread of each class's probability over samples [B, C].
        predictive_entropy: entropy of the mean [B]: total uncertainty.
        expected_entropy: mean of the entropies [B]: the aleatoric part.
        mutual_information: their difference [B], never negative: the epistemic part.
        variation_ratio: share of the samples that do not vote for the most voted class [B].
        standard_error: Monte Carlo standard error of ``mean`` [B, C]; None if there are too few samples.
        predictive_entropy_error: that of ``predictive_entropy`` [B], to first order; None likewise.
        mutual_information_error: that of ``mutual_information`` [B], to first order; None likewise.
    """

    mean: Float
    std: Float
    predictive_entropy: Float
    expected_entropy: Float
    mutual_information: Float
    variation_ratio: Float
    standard_error: Float | None
    predictive_entropy_error: Float | None
    mutual_information_error: Float | None


@dataclass(frozen=True)
class RegressionStatistics:
    """Statistics of B rows and D targets, in the unit of the target.

    Attributes:
        mean: predictive mean [B, D].
        std: spread over samples [B, D]: the epistemic standard deviation.
        standard_error: Monte Carlo standard error of ``mean`` [B, D]; None if there are too few samples.
    """

    mean: Float
    std: Float
    standard_error: Float | None


def softmax(logits: ArrayLike) -> Float:
    """Probabilities over the last axis, in float64."""
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim > 2:  # the greatest of many short rows is found thrice as fast with the classes in front
        greatest = np.ascontiguousarray(np.moveaxis(values, -1, 0)).max(axis=0)[..., None]
    else:
        greatest = np.maximum.reduce(values, axis=-1, keepdims=True)
    found = values - greatest
    np.exp(found, out=found)
    found /= np.add.reduce(found, axis=-1, keepdims=True)
    return found


def entropy(probabilities: ArrayLike) -> Float:
    """Shannon entropy over the last axis, in nats; 0 log 0 is 0."""
    return _cross_entropy(np.asarray(probabilities, np.float64), np.asarray(probabilities, np.float64))


def classification(probabilities: ArrayLike, *, scheme: str, block: int) -> ClassificationStatistics:
    """Statistics of class probabilities [T, B, C].

    Args:
        probabilities: each [t, b] sums to 1.
        scheme: of the masks that made them.
        block: their block size.

    Raises:
        UsageError: for fewer than two samples, a wrong number of axes, or an unknown scheme.
    """
    values = _samples(probabilities, scheme, "[T, B, C]")
    mean = _mean(values)
    cross = _cross_entropy(values, mean)  # its mean over samples is the entropy of the mean
    own = entropy(values)
    divergence = cross - own  # of each sample from the mean; its mean is the mutual information
    _, rows, classes = values.shape
    ballots = values.argmax(axis=-1) + classes * np.arange(rows)
    votes = np.bincount(ballots.ravel(), minlength=rows * classes).reshape(rows, classes)
    averages = _mean(np.stack([own, divergence], axis=-1))
    # Columns do not mix, so those of all figures are gone through at once.
    columns = np.concatenate([values, cross[..., None], divergence[..., None]], axis=-1)
    errors = standard_error(columns, scheme=scheme, block=block)
    return ClassificationStatistics(
        mean=mean,
        std=_deviation(values, mean, len(values) - (scheme == "iid")),
        predictive_entropy=entropy(mean),
        expected_entropy=averages[..., 0],
        mutual_information=np.maximum(averages[..., 1], 0.0),
        variation_ratio=1.0 - votes.max(axis=-1) / len(values),
        standard_error=None if errors is None else errors[..., :classes],
        predictive_entropy_error=None if errors is None else errors[..., classes],
        mutual_information_error=None if errors is None else errors[..., classes + 1],
    )


def regression(samples: ArrayLike, *, scheme: str, block: int) -> RegressionStatistics:
    """Statistics of outputs [T, B, D] in the unit of the target.

    Raises:
        UsageError: for fewer than two samples, a wrong number of axes, or an unknown scheme.
    """
    values = _samples(samples, scheme, "[T, B, D]")
    mean = _mean(values)
    return RegressionStatistics(
        mean=mean,
        std=_deviation(values, mean, len(values) - (scheme == "iid")),
        standard_error=standard_error(values, scheme=scheme, block=block),
    )


def block_means(samples: ArrayLike, block: int) -> Float:
    """Means over each whole block of samples [T // block, ...]; a last partial block is left out."""
    values = np.asarray(samples, dtype=np.float64)
    whole = values.shape[0] // block
    blocks = values[: whole * block].reshape(whole, block, *values.shape[1:])
    return _mean(np.swapaxes(blocks, 0, 1))


def standard_error(samples: ArrayLike, *, scheme: str, block: int) -> Float | None:
    """Standard error of the mean over samples [T, ...].

    Returns:
        [...]: s/sqrt(T) for iid masks; for balanced masks s/sqrt(K) of the K block means, and None if
        there are fewer than ``MINIMUM_BLOCKS`` of them.
    """
    values = np.asarray(samples, dtype=np.float64)
    units = values if scheme == "iid" else block_means(values, block)
    if len(units) < (2 if scheme == "iid" else MINIMUM_BLOCKS):
        return None
    return _deviation(units, _mean(units), len(units) - 1) / np.sqrt(len(units))


def half_width(samples: ArrayLike, *, scheme: str, block: int, level: float = 0.95) -> Float | None:
    """Half the width of a confidence interval for the mean over samples [T, ...].

    iid masks: the textbook interval, Student's t on (T - 1) degrees of freedom. Balanced masks: Student's t
    on (blocks - 1), widened for skewness. Balancing takes away the symmetric part of the error and leaves
    the skewed one, so a plain t-interval covers a point or two less than under iid masks. The widened one
    reaches to the farther end of Hall's interval ("On the removal of skewness by transformation", J. R.
    Statist. Soc. B 54, 1992), and never less far than the plain one.

    Returns:
        [...], or None where :func:`standard_error` is None.
    """
    error = standard_error(samples, scheme=scheme, block=block)
    if error is None:
        return None
    if scheme == "iid":
        return t_quantile(level, np.shape(samples)[0] - 1) * error
    means = block_means(samples, block)
    return _reach(means, t_quantile(level, len(means) - 1)) * error


def _reach(values: Float, t: float) -> Float:
    """How many standard errors Hall's interval for the mean of values [K, ...] reaches, at least t."""
    root, centred = np.sqrt(len(values)), values - _mean(values)
    deviation = np.sqrt(_mean(np.square(centred)))
    skewness = _mean(centred**3) / np.where(deviation > 0, deviation, 1.0) ** 3
    skewness = np.where(np.abs(skewness) < 1e-6, 1e-6, skewness)  # the formula's limit at 0 is t itself
    shift = skewness / (6 * root)
    ends = [3 * root / skewness * (np.cbrt(1 + skewness * (x - shift) / root) - 1) for x in (-t, t)]
    return np.maximum(np.abs(ends).max(axis=0), t)


def _samples(values: ArrayLike, scheme: str, shape: str) -> Float:
    array = np.asarray(values, dtype=np.float64)
    if scheme not in SCHEMES:
        raise UsageError(f"mask scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if array.ndim != 3 or array.shape[0] < 2:
        raise UsageError(
            f"samples of shape {list(array.shape)}: expected {shape} with T of at least 2 "
            "(one sample has no spread)"
        )
    return array


def _deviation(values: Float, mean: Float, count: int) -> Float:
    return np.sqrt(_total(np.square(values - mean)) / count)


def _mean(values: Float) -> Float:
    return _total(values) / len(values)


def _total(values: Float) -> Float:
    """The sum over axis 0, one sample after the other.

    Left to itself numpy adds a lone column pairwise and several columns in order, so that a row would get
    other bits alone than among others.
    """
    columns = np.ascontiguousarray(values).reshape(len(values), -1)
    lone = columns.shape[1] == 1
    total = (np.repeat(columns, 2, axis=1) if lone else columns).sum(axis=0)
    return (total[:1] if lone else total).reshape(values.shape[1:])


def _cross_entropy(probabilities: Float, reference: Float) -> Float:
    # A probability of 0 in the mean is 0 in every sample, so the term is 0 there.
    logs = np.log(np.where(reference > 0, reference, 1.0))
    return 0.0 - (probabilities * logs).sum(axis=-1)  # a negated sum of zeros would be -0.0
