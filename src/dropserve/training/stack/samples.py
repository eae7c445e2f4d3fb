"""Monte Carlo dropout of a trained member: balanced masks shared by all rows, as served models draw them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dropserve.dropout.masks import common_block, keep_masks
from dropserve.training.stack.train import Stack

_NUMBERS = 2**23  # of the masks of a pass, laid out


def sample_outputs(
    stack: Stack, member: int, features: Tensor, *, samples: int, seed: int
) -> Iterator[Tensor]:
    """Outputs of some rows under masks, a few rows at a time: [T, n, ...] each, together all rows in order.

    Args:
        stack: of trained members.
        member: which of them.
        features: rows [N, ...] as the model takes them.
        samples: T; one is drawn where all rates are 0, as others would be the same.
        seed: of the masks, 0 or more.
    """
    rates, shapes = stack.rates[member], stack.net.site_shapes()
    count = samples if any(rates) else 1
    masks = [_mask(site, shape, count, seed, rates) for site, shape in enumerate(shapes)]
    parameters = stack.parameters[member : member + 1]
    rest = {name: value[member : member + 1] for name, value in stack.rest.items()}
    units = max(1, sum(math.prod(shape) for shape in shapes))
    for part in features.split(max(1, _NUMBERS // (units * count))):
        tiled = part.repeat(count, *(1 for _ in part.shape[1:]))[None]
        laid_out = [mask.repeat_interleave(len(part), 0)[None] for mask in masks]
        output = stack.net.forward(parameters, rest, tiled, laid_out)[0]
        yield output.view(count, len(part), *output.shape[1:])


def mask_block(rates: Sequence[float]) -> int:
    """The block size of such masks, which statistics of samples need."""
    return common_block(rates)


def _mask(site: int, shape: Sequence[int], samples: int, seed: int, rates: Sequence[float]) -> Tensor:
    p, block = rates[site], common_block(rates)
    keep = keep_masks(f"site {site}", math.prod(shape), p, samples, seed=seed, scheme="balanced", block=block)
    return torch.from_numpy(keep * np.float32(1 / (1 - p))).view(samples, *shape)
