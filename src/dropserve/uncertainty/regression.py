"""What Monte Carlo samples of a regressor predict: noise, its share of the spread, and intervals.

A *homoscedastic* model gives samples [T, B, D]; one precision tau for each target says how much noise there
is. A *heteroscedastic* head gives [..., 2]: mean and log variance, so that the noise follows the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.dropout.statistics import regression
from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Float, as_float
from dropserve.uncertainty.mixtures import mixture_log_likelihood, mixture_quantile
from dropserve.uncertainty.search import End, maximise


@dataclass(frozen=True)
class Precision:
    """The noise of one target.

    Attributes:
        tau: 1 / variance of the noise, in 1 / (unit of the target) squared.
        log_likelihood: mean over the rows it was chosen on, in nats.
        end: the end of the range that the search ran into; None inside. Only records of earlier versions
            have one.
    """

    tau: float
    log_likelihood: float
    end: End | None

    @property
    def variance(self) -> float:
        """Of the noise, in (unit of the target) squared."""
        return 1 / self.tau


def fit_precision(samples: ArrayLike, targets: ArrayLike, *, decades: float = 8) -> tuple[Precision, ...]:
    """Choose tau for each target, by the mixture log-likelihood of rows not trained on and one row more.

    The published grid of Gal's experiments ended below the best tau in every split of three data sets, so the
    range here is wide, centred at the precision of the residuals. Where the samples alone spread more than
    the residuals do, the likelihood rises to its end: a noise of nothing, under which a new row may be as
    unlikely as one likes. So one row is added whose squared residual is the mean of them all. That is the
    scaled inverse chi-squared prior of one degree of freedom (Gelman et al., "Bayesian Data Analysis",
    section 2.6), weak against thirty rows, and it has a top inside of the range.

    Args:
        samples: [T, B, D], in the unit of the target.
        targets: [B, D].
        decades: factors of ten searched on each side of 1 / (mean squared residual).

    Raises:
        UsageError: for shapes that do not fit.
    """
    values, truth = as_float(samples, "[T, B, D]"), as_float(targets, "[B, D]")
    if values.shape[1:] != truth.shape:
        raise UsageError(
            f"samples {list(values.shape)}, targets {list(truth.shape)}: expected [T, B, D], [B, D]"
        )
    found: list[Precision] = []
    for d in range(truth.shape[1]):
        own, y = values[:, :, d], truth[:, d]
        scale = max(float(np.square(own.mean(axis=0) - y).mean()), _resolution(y))
        best = maximise(
            lambda tau, own=own, y=y, scale=scale: (
                float(mixture_log_likelihood(own, 1 / tau, y).sum()) + (np.log(tau) - tau * scale) / 2
            ),
            10**-decades / scale,
            10**decades / scale,
        )
        likelihood = float(mixture_log_likelihood(own, 1 / best.at, y).mean())
        found.append(Precision(best.at, likelihood, best.end))
    return tuple(found)


def noise_of(precision: Sequence[Precision]) -> Float:
    """Variance of the noise of each target [D]."""
    return np.array([each.variance for each in precision])


def split_head(outputs: ArrayLike) -> tuple[Float, Float]:
    """Mean and variance of the noise from a heteroscedastic head.

    Kendall and Gal, "What uncertainties do we need?", NeurIPS 2017. Each sample's log variance is turned into
    a variance before anything is averaged: the mean of exp, never exp of the mean.

    Args:
        outputs: [..., 2]: mean, log variance, in the unit of the target and of its square.

    Returns:
        Means [...] and variances [...].

    Raises:
        UsageError: if the last axis is not 2.
    """
    values = np.asarray(outputs, np.float64)
    if values.ndim < 1 or values.shape[-1] != 2:
        raise UsageError(f"outputs {list(values.shape)}: expected [..., 2], mean and log variance")
    return values[..., 0], np.exp(values[..., 1])


@dataclass(frozen=True)
class Spread:
    """Where the uncertainty of B rows and D targets comes from, as standard deviations [B, D].

    Attributes:
        mean: predictive mean, in the unit of the target (as all the others).
        epistemic: spread of the samples: what more data would take away.
        aleatoric: noise: root of the mean variance over samples.
        total: root of the sum of their squares.
    """

    mean: Float
    epistemic: Float
    aleatoric: Float
    total: Float


def spread(samples: ArrayLike, variances: ArrayLike, *, scheme: str, block: int) -> Spread:
    """Split the predictive variance by the law of total variance.

    Args:
        samples: [T, B, D].
        variances: of the noise: [T, B, D] from a heteroscedastic head, or [D] or a number, 1 / tau.
        scheme: of the masks that made the samples: it decides how their spread is estimated.
        block: their block size.

    Raises:
        UsageError: for fewer than two samples, shapes that do not fit, or a negative variance.
    """
    found = regression(samples, scheme=scheme, block=block)
    noise = np.broadcast_to(np.asarray(variances, np.float64), np.shape(samples))
    if not (noise >= 0).all():
        raise UsageError(f"variances from {noise.min():.3g}: expected none below 0; pass variances, not logs")
    aleatoric = np.sqrt(noise.mean(axis=0))
    return Spread(found.mean, found.std, aleatoric, np.hypot(found.std, aleatoric))


def central_interval(samples: ArrayLike, variances: ArrayLike, level: float) -> tuple[Float, Float]:
    """The ends of the interval that leaves half of 1 - level of the mixture on each side.

    Args:
        samples: [T, B, D] or any [T, ...].
        variances: of the noise, above 0; what broadcasts to the samples.
        level: probability inside, above 0 and below 1.

    Returns:
        Lower and upper ends [B, D], in the unit of the target.

    Raises:
        UsageError: for a level or variance out of range.
    """
    if not 0 < level < 1:
        raise UsageError(f"an interval at level {level!r}: expected above 0 and below 1, such as 0.9")
    tail = (1 - level) / 2
    return mixture_quantile(samples, variances, tail), mixture_quantile(samples, variances, 1 - tail)


def _resolution(y: Float) -> float:
    """A squared scale below which residuals are rounding, so that a perfect fit still has a range."""
    size = float(np.abs(y).max())
    return max((2**-23 * size) ** 2, 2**-126)  # float32's
