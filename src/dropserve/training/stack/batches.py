"""The batches of many members at once, each in its own order over its own rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropserve.training.batches import batch_sizes


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as a model is trained on them. Members that share rows share the object: it is held once.

    Attributes:
        features: [N, ...].
        target: [N, ...].
    """

    features: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)


class Pool:
    """The rows of some members, one after the other; what several members share stands there once."""

    def __init__(self, rows: Sequence[Rows]) -> None:
        distinct = list({id(each): each for each in rows}.values())
        starts: dict[int, int] = {}
        at = 0
        for each in distinct:
            starts[id(each)] = at
            at += len(each)
        only = distinct[0]
        one = len(distinct) == 1
        self._features = only.features if one else torch.cat([each.features for each in distinct])
        self._target = only.target if one else torch.cat([each.target for each in distinct])
        self.starts = torch.tensor([starts[id(each)] for each in rows])[:, None]

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Features [M, B, ...] and targets [M, B, ...] at places [M, B]."""
        flat = places.reshape(-1)
        features, target = self._features.index_select(0, flat), self._target.index_select(0, flat)
        return features.view(*places.shape, *features.shape[1:]), target.view(
            *places.shape, *target.shape[1:]
        )


class StackedBatches:
    """Batches in a fresh order each epoch, the same as :class:`~dropserve.training.learner.Batches` gives.

    Members must have as many batches an epoch; where a last batch is shorter than another's it is filled up
    with rows of weight 0.

    Args:
        rows: of each member.
        seeds: of each member's order.
        size: rows a batch.
        dtype: of the weights.
    """

    def __init__(self, rows: Sequence[Rows], seeds: Sequence[int], size: int, dtype: torch.dtype) -> None:
        self._pool = Pool(rows)
        self._counts = [len(each) for each in rows]
        self._orders = [torch.Generator().manual_seed(seed) for seed in seeds]
        sizes = torch.tensor([batch_sizes(len(each), size) for each in rows])
        self._widest = sizes.max(dim=0).values
        self._weights = [
            (torch.arange(int(wide)) < own[:, None]).to(dtype) / own[:, None]
            for own, wide in zip(sizes.T, self._widest, strict=True)
        ]
        self.shares = sizes.to(dtype) / sizes.sum(dim=1, keepdim=True)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features [M, B, ...], targets [M, B, ...] and weights [M, B] that sum to 1 for each member."""
        orders = torch.zeros((len(self._counts), int(self._widest.sum())), dtype=torch.int64)
        for order, count, generator in zip(orders, self._counts, self._orders, strict=True):
            torch.randperm(count, generator=generator, out=order[:count])
        orders += self._pool.starts
        at = 0
        for wide, weights in zip(self._widest.tolist(), self._weights, strict=True):
            yield *self._pool.take(orders[:, at : at + wide]), weights
            at += wide

    def keep(
        self, members: Sequence[int], rows: Sequence[Rows], size: int, dtype: torch.dtype
    ) -> StackedBatches:
        """Go on with some of the members, where their orders stand."""
        kept = StackedBatches(rows, [0] * len(rows), size, dtype)
        kept._orders = [self._orders[member] for member in members]
        return kept


def batches_an_epoch(rows: Rows, size: int) -> int:
    """How many batches of ``size`` rows make; a lone last row joins its neighbours."""
    return len(batch_sizes(len(rows), size))
