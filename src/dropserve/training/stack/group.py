"""Members that go in step: one batched gradient and one update for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dropserve.training.stack.batches import Pool, Rows, StackedBatches
from dropserve.training.stack.masks import MaskStream
from dropserve.training.stack.member import Member, StackSettings
from dropserve.training.stack.net import Loss, StackedNet
from dropserve.training.stack.optimiser import StackedOptimiser

_ROWS = 1024  # of a pass that evaluates


@dataclass
class Outcome:
    """How one training went.

    Attributes:
        train_loss: mean over each epoch's batches, dropout on.
        validation_loss: after each epoch, dropout off; empty without validation rows.
        row_losses: of each validation row at the best epoch; empty without one.
        best_epoch: from 1; the one whose weights were kept. 0 if no epoch had a finite loss.
        stopped_early: whether validation stopped improving before the last epoch.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    row_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False


State = tuple[Tensor, dict[str, Tensor]]
"""Parameters [M, P] and the rest of the state, [M, ...] by name."""


@dataclass(frozen=True)
class Ended:
    """A group that is trained.

    Attributes:
        best: the state that is kept: of the best epoch, or of the last one without validation rows.
        last: the state where each training ended.
        outcomes: how each went.
    """

    best: State
    last: State
    outcomes: list[Outcome]


class Group:
    """Trains its members together.

    Args:
        net: runs them; its work space is this group's alone.
        members: all with as many batches an epoch.
        rates: of each member, one for each site.
        losses: of each row, in training and in validation.
        settings: what all share.
        parameters: [M, P], changed.
        rest: the rest of the state, [M, ...] by name, changed.
    """

    def __init__(
        self,
        net: StackedNet,
        members: Sequence[Member],
        rates: Sequence[Sequence[float]],
        losses: tuple[Loss, Loss],
        settings: StackSettings,
        parameters: Tensor,
        rest: dict[str, Tensor],
    ) -> None:
        self._net, self._settings = net, settings
        self._loss, self._validation_loss = losses
        self._members, self._rates = list(members), list(rates)
        self._parameters, self._rest = parameters, rest
        self._alive = list(range(len(members)))
        self.outcomes = [Outcome() for _ in members]
        self._best, self._best_rest = _copy((parameters, rest))
        self._last, self._last_rest = _copy((parameters, rest))
        self._least = [math.inf] * len(members)
        self._optimiser = StackedOptimiser.fresh(
            settings.optimiser, [m.weight_decay for m in members], settings.momentum, parameters
        )
        self._batches = self._new_batches()
        self._masks = self._new_masks()

    def run(self, on_epoch: Callable[[int], None]) -> Ended:
        """Train to the end."""
        validates = self._members[0].validation is not None
        for epoch in range(self._settings.epochs):
            self._epoch(epoch)
            if validates:
                self._validate(epoch)
            on_epoch(len(self._alive))
            if not self._alive:
                break
        self._leave(list(range(len(self._alive))))
        last = self._last, self._last_rest
        if not validates:
            for outcome, row in zip(self.outcomes, self._last, strict=True):
                outcome.best_epoch = self._settings.epochs if bool(torch.isfinite(row).all()) else 0
            return Ended(last, last, self.outcomes)
        return Ended((self._best, self._best_rest), last, self.outcomes)

    def _leave(self, members: Sequence[int]) -> None:
        """Keep the state in which some of those alive end."""
        here, there = torch.tensor(members), torch.tensor([self._alive[at] for at in members])
        if members:
            self._last[there] = self._parameters[here]
            for name, value in self._rest.items():
                self._last_rest[name][there] = value[here]

    def _epoch(self, epoch: int) -> None:
        settings = self._settings
        decline = (
            (1 + math.cos(math.pi * epoch / settings.epochs)) / 2 if settings.schedule == "cosine" else 1.0
        )
        alive = [self._members[place] for place in self._alive]
        rate = torch.tensor([m.learning_rate * decline for m in alive], dtype=settings.dtype)[:, None]
        total = torch.zeros(len(alive), dtype=settings.dtype)
        for (rows, target, weights), share in zip(self._batches, self._batches.shares.T, strict=True):
            masks = [stream.next() for stream in self._masks]

            def mean(output: Tensor, target: Tensor = target, weights: Tensor = weights) -> Tensor:
                return (self._loss(output, target) * weights).sum(1)

            gradient, losses = self._net.gradient(self._parameters, self._rest, rows, masks, mean)
            self._optimiser.step(self._parameters, gradient, rate)
            total.addcmul_(losses, share)
        for place, value in zip(self._alive, total.tolist(), strict=True):
            self.outcomes[place].train_loss.append(value)

    def _validate(self, epoch: int) -> None:
        by_row = self._validation_losses()
        losses = [float(own.mean()) for own in by_row]
        better: list[int] = []
        for at, (place, loss) in enumerate(zip(self._alive, losses, strict=True)):
            outcome = self.outcomes[place]
            outcome.validation_loss.append(loss)
            if loss < self._least[place]:
                self._least[place], outcome.best_epoch = loss, epoch + 1
                outcome.row_losses = by_row[at].tolist()
                better.append(at)
        if better:
            here, there = torch.tensor(better), torch.tensor([self._alive[at] for at in better])
            self._best[there] = self._parameters[here]
            for name, value in self._rest.items():
                self._best_rest[name][there] = value[here]
        self._stop(epoch)

    def _validation_losses(self) -> list[Tensor]:
        """Of each member's rows, in float64."""
        rows = [self._validation_rows(self._members[place]) for place in self._alive]
        pool, counts = Pool(rows), torch.tensor([len(each) for each in rows])[:, None]
        parts: list[Tensor] = []
        longest = int(counts.max())
        for at in range(0, longest, _ROWS):
            places = torch.arange(at, min(at + _ROWS, longest))
            there = places < counts  # the rest are the first row again, and are cut off below
            features, target = pool.take(torch.where(there, places, 0) + pool.starts)
            output = self._net.forward(self._parameters, self._rest, features, None)
            parts.append(self._validation_loss(output, target).double())
        whole = torch.cat(parts, dim=1)
        return [own[:many] for own, many in zip(whole, counts[:, 0].tolist(), strict=True)]

    @staticmethod
    def _validation_rows(member: Member) -> Rows:
        if member.validation is None:
            raise AssertionError("checked before: all members have validation rows, or none")
        return member.validation

    def _stop(self, epoch: int) -> None:
        """Let go of members whose validation loss is no number, or has not improved for so many epochs."""
        patience, kept = self._settings.patience, list[int]()
        for at, place in enumerate(self._alive):
            outcome = self.outcomes[place]
            waited = epoch + 1 - outcome.best_epoch
            if math.isfinite(outcome.validation_loss[-1]) and not (patience and waited >= patience):
                kept.append(at)
            else:
                outcome.stopped_early = epoch + 1 < self._settings.epochs
        if len(kept) == len(self._alive):
            return
        self._leave([at for at in range(len(self._alive)) if at not in kept])
        index = torch.tensor(kept, dtype=torch.int64)
        self._alive = [self._alive[at] for at in kept]
        self._parameters = self._parameters[index]
        self._rest = {name: value[index] for name, value in self._rest.items()}
        self._optimiser = self._optimiser.keep(index)
        if kept:
            self._batches = self._new_batches(self._batches, kept)
            self._masks = self._new_masks()

    def _new_batches(self, before: StackedBatches | None = None, kept: Sequence[int] = ()) -> StackedBatches:
        alive = [self._members[place] for place in self._alive]
        size, dtype = self._settings.batch_size, self._settings.dtype
        rows = [member.train for member in alive]
        if before is not None:
            return before.keep(kept, rows, size, dtype)
        return StackedBatches(rows, [member.seed for member in alive], size, dtype)

    def _new_masks(self) -> list[MaskStream]:
        alive = [self._members[place] for place in self._alive]
        return [
            MaskStream(
                [member.seed for member in alive],
                [self._rates[place][site] for place in self._alive],
                site=site,
                shape=(mask_rows(len(alive[0].train), self._settings.batch_size), *shape),
                step=self._optimiser.steps,
                dtype=self._settings.dtype,
            )
            for site, shape in enumerate(self._net.site_shapes())
        ]


def _copy(state: State) -> State:
    return state[0].clone(), {name: value.clone() for name, value in state[1].items()}


def mask_rows(rows: int, size: int) -> int:
    """Rows of a mask: those of a full batch, and one more that may join it."""
    return min(rows, size + 1)
