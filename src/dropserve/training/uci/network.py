"""The one architecture that all tables get, its scaling, and samples from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dropserve.dropout.masks import common_block, keep_masks
from dropserve.training.stack import Rows, Stack
from dropserve.training.uci.density import Samples, to_tensor, variance
from dropserve.training.uci.splits import Float, Part

HIDDEN = (50, 50)
_CHUNK = 2**15  # rows of one pass


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
    rates = stack.rates[member]
    if not any(rates):
        samples = 1
    features, parameters = standard.features(part), stack.parameters[member : member + 1]
    masks = [
        _scales(site, units, p, samples, seed, rates)
        for site, (units, p) in enumerate(zip(_units(stack), rates, strict=True))
    ]
    at_once = max(1, _CHUNK // len(part))
    outputs: list[Tensor] = []
    for first in range(0, samples, at_once):
        some = [mask[first : first + at_once] for mask in masks]
        count = len(some[0])
        rows = features.repeat(count, 1)[None]
        laid_out = [mask.repeat_interleave(len(part), 0)[None] for mask in some]
        outputs.append(stack.net.forward(parameters, {}, rows, laid_out).view(count, len(part), 2))
    output = torch.cat(outputs)
    means = output[..., 0].double().numpy() * standard.target_scale + standard.target_mean
    return Samples(means, variance(output[..., 1]).double().numpy() * standard.target_scale**2)


def _units(stack: Stack) -> list[int]:
    return [shape[0] for shape in stack.net.site_shapes()]


def _scales(site: int, units: int, p: float, samples: int, seed: int, rates: Sequence[float]) -> Tensor:
    block = common_block(rates)
    keep = keep_masks(f"site {site}", units, p, samples, seed=seed, scheme="balanced", block=block)
    return torch.from_numpy(keep * np.float32(1 / (1 - p)))
