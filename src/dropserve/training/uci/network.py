"""The one architecture that all tables get, its scaling, and samples from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dropserve.training.stack import Rows, Stack, sample_outputs
from dropserve.training.uci.density import Samples, to_tensor, variance
from dropserve.training.uci.splits import Float, Part

HIDDEN = (50, 50)


def build(features: int) -> nn.Module:
    """A network of two hidden layers with dropout after each; a mean and a raw variance come out."""
    layers: list[nn.Module] = []
    width = features
    for units in HIDDEN:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(0.1)]  # each member has a rate of its own
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2))


@dataclass(frozen=True)
class Standard:
    """Means and deviations of training rows: what makes features and target standard.

    Attributes:
        mean: of each feature [d].
        scale: of each feature [d]; 1 where it is constant.
        target_mean: of the target.
        target_scale: of the target.
    """

    mean: Float
    scale: Float
    target_mean: float
    target_scale: float

    @classmethod
    def of(cls, part: Part) -> Standard:
        """From the rows that are trained on."""
        scale = part.features.std(axis=0)
        scale = np.where(scale > 1e-12 * np.abs(part.features).max(axis=0), scale, 1.0)
        return cls(
            part.features.mean(axis=0), scale, float(part.target.mean()), float(part.target.std()) or 1.0
        )

    def features(self, part: Part) -> Tensor:
        """Standard features [n, d]."""
        return to_tensor((part.features - self.mean) / self.scale)

    def rows(self, part: Part) -> Rows:
        """Standard features and target."""
        return Rows(self.features(part), to_tensor((part.target - self.target_mean) / self.target_scale))


def sample(stack: Stack, member: int, standard: Standard, part: Part, *, samples: int, seed: int) -> Samples:
    """Monte Carlo dropout of one trained network, balanced masks, shared by all rows.

    Args:
        stack: of trained networks.
        member: which of them.
        standard: the scaling that it was trained with.
        part: the rows; their target is not looked at.
        samples: T; one is enough at a dropout rate of 0.
        seed: of the masks.
    """
    features = standard.features(part)
    output = torch.cat(
        list(sample_outputs(stack, member, features, samples=samples, seed=seed)), dim=1
    ).double()
    means = output[..., 0].numpy() * standard.target_scale + standard.target_mean
    return Samples(means, variance(output[..., 1]).numpy() * standard.target_scale**2)
