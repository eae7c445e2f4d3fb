"""Dropout masks for training, a function of (seed, site, step) and of nothing else.

So a member of a stack drops the same units whoever is trained beside it, and the same as when it is trained
alone. As in :mod:`dropserve.dropout.masks` the words come from Philox; the key holds the seed and the site,
the counter the step. Every row has a mask of its own and units are dropped independently: the textbook
dropout of training. Rates are rounded to multiples of 2**-16, and kept units are scaled by what was really
drawn, so that means stay exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STREAM = 2  # 0 and 1 are those of prediction
_LEVELS = 2**16
_DRAWS_A_COUNT = 16  # one value of Philox's counter gives four 64-bit words, each cut into four


def training_mask(seed: int, site: int, step: int, shape: Sequence[int], p: float) -> NDArray[np.float64]:
    """One mask, values 0 and 1/(1 - p).

    Args:
        seed: of the member.
        site: the place of the dropout among those that run, from 0.
        step: of the optimiser, from 0.
        shape: [rows of a full batch, *units].
        p: probability that a unit is dropped, below 1.
    """
    counts = _counts(shape)
    words = _stream(seed, site, step * counts).random_raw(4 * counts)
    keep = words.view(np.int16)[: math.prod(shape)] >= _threshold(p)
    return np.where(keep, _scale(p), 0.0).reshape(tuple(shape))


class MaskStream:
    """The masks of many members at one site, step after step.

    Args:
        seeds: of the M members.
        rates: p of each.
        site: the place of the dropout among those that run.
        shape: [rows of a full batch, *units].
        step: the first to come.
        dtype: of the masks.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        rates: Sequence[float],
        *,
        site: int,
        shape: Sequence[int],
        step: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        counts = _counts(shape)
        self._streams = [_stream(seed, site, step * counts) for seed in seeds]
        self._live = [p > 0 for p in rates]  # the others keep all units, whatever is drawn
        self._words = np.zeros((len(seeds), 4 * counts), np.uint64)
        draws = torch.from_numpy(self._words.view(np.int16))
        self._draws = draws[:, : math.prod(shape)].view(len(seeds), *shape)
        each = (len(seeds), *(1 for _ in shape))
        self._threshold = torch.tensor([_threshold(p) for p in rates], dtype=torch.int16).reshape(each)
        self._scale = torch.tensor([_scale(p) for p in rates], dtype=dtype).reshape(each)
        self._mask = torch.empty((len(seeds), *shape), dtype=dtype)

    def next(self) -> Tensor:
        """The masks [M, rows, *units] of the next step; the one after overwrites them."""
        count = self._words.shape[1]
        for words, stream, live in zip(self._words, self._streams, self._live, strict=True):
            if live:
                words[:] = stream.random_raw(count)
        torch.ge(self._draws, self._threshold, out=self._mask)
        return self._mask.mul_(self._scale)


def _counts(shape: Sequence[int]) -> int:
    return -(-math.prod(shape) // _DRAWS_A_COUNT)


def _threshold(p: float) -> int:
    """The least signed 16-bit draw that keeps a unit."""
    return round(p * _LEVELS) - _LEVELS // 2


def _scale(p: float) -> float:
    return _LEVELS / (_LEVELS - round(p * _LEVELS))


def _stream(seed: int, site: int, count: int) -> np.random.Philox:
    return np.random.Philox(
        key=np.array([seed, site], dtype=np.uint64),
        counter=np.array([count, 0, _STREAM, 0], dtype=np.uint64),
    )
