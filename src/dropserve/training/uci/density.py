"""What a network that answers a mean and a variance says about a target, and how it is trained to.

A sample of the network, under masks t, gives a mean m_t and a variance v_t. The prediction is the mixture of
the normal densities N(m_t, a v_t + b): ``a`` and ``b`` are chosen on held-out rows, as the precision tau is
in Gal and Ghahramani 2016. With a = 0 the noise is the same everywhere and b is 1/tau.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dropserve.training.uci.splits import Float
from dropserve.uncertainty.mixtures import mixture_log_likelihood

_LEAST_VARIANCE = 1e-6  # of the standardised target
_BETA = 0.5
_FACTORS = (0.0, 0.25, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
_FLOORS = np.concatenate([[0.0], np.logspace(-4, 0.6, 24)])  # of the mean squared error


def variance(raw: Tensor) -> Tensor:
    """From the network's second output to a variance of the standardised target."""
    return functional.softplus(raw) + _LEAST_VARIANCE


def beta_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Loss [M, B] of outputs [M, B, 2], mean and raw variance.

    The negative log-likelihood, each row weighted by its variance to the power of 1/2, through which no
    gradient flows: without the weight, rows of small variance alone would shape the mean (Seitzer et al.,
    "On the pitfalls of heteroscedastic uncertainty estimation with probabilistic neural networks", ICLR
    2022).
    """
    mean, noise = output[..., 0], variance(output[..., 1])
    loss = ((target - mean).square() / noise + noise.log()) / 2
    return loss * noise.detach() ** _BETA


@dataclass(frozen=True)
class Samples:
    """What T samples say about B rows, in the unit of the target.

    Attributes:
        means: [T, B].
        variances: [T, B].
    """

    means: Float
    variances: Float

    @property
    def mean(self) -> Float:
        """The predictive mean [B]."""
        return self.means.mean(axis=0)

    def joined(self, *others: Samples) -> Samples:
        """These rows and then others'."""
        all_of_them = (self, *others)
        return Samples(
            np.concatenate([each.means for each in all_of_them], axis=1),
            np.concatenate([each.variances for each in all_of_them], axis=1),
        )


@dataclass(frozen=True)
class Noise:
    """How a sample's variance becomes the noise of the mixture.

    Attributes:
        factor: a, of the network's variance.
        floor: b, in the squared unit of the target.
    """

    factor: float
    floor: float

    def log_likelihood(self, samples: Samples, target: Float) -> Float:
        """Log density of each target [B], in nats: logsumexp over the samples."""
        return mixture_log_likelihood(samples.means, self.factor * samples.variances + self.floor, target)


def fit_noise(samples: Samples, target: Float) -> tuple[Noise, float]:
    """The noise with the greatest mean log-likelihood on held-out rows, and that.

    For each factor the best floor is climbed to from that of the factor before.
    """
    error = float(np.square(samples.mean - target).mean()) or float(np.finfo(np.float64).tiny)
    floors = [float(share) * error for share in _FLOORS]
    best, worth, at = Noise(0.0, error), -math.inf, len(floors) - 1
    for factor in _FACTORS:
        known: dict[int, float] = {}

        def value(index: int, factor: float = factor, known: dict[int, float] = known) -> float:
            if not 0 <= index < len(floors) or (factor == 0 and floors[index] == 0):
                return -math.inf
            if index not in known:
                noise = Noise(factor, floors[index])
                known[index] = float(noise.log_likelihood(samples, target).mean())
            return known[index]

        while (step := max((0, 1, -1), key=lambda step: value(at + step))) != 0:
            at += step
        if value(at) > worth:
            best, worth = Noise(factor, floors[at]), value(at)
    return best, worth


def finite(samples: Samples) -> bool:
    """Whether the network that gave them is one."""
    return bool(np.isfinite(samples.means).all() and np.isfinite(samples.variances).all())


def to_tensor(values: Float) -> Tensor:
    """As the networks take them."""
    return torch.from_numpy(values.astype(np.float32))
