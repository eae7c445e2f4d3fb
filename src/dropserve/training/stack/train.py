"""Train members: divide them into groups that go in step, each on threads of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dropserve.errors import UsageError
from dropserve.training.seeding import seeded
from dropserve.training.stack.batches import batches_an_epoch
from dropserve.training.stack.chain import chain
from dropserve.training.stack.group import Group, Outcome, mask_rows
from dropserve.training.stack.member import Member, StackSettings
from dropserve.training.stack.mlp import StackedMLP
from dropserve.training.stack.module import StackedModule
from dropserve.training.stack.net import Loss, StackedNet

_WIDTH_NUMBERS = 2**21


@dataclass(frozen=True)
class Stack:
    """Trained members, in the order in which they were given.

    Attributes:
        net: runs them.
        parameters: of the best epoch if there were validation rows, else of the last one [M, P].
        rest: the rest of their state, [M, ...] by name.
        outcomes: how each training went.
        rates: dropout rates of each, one for each site.
        last: parameters and rest where training ended.
    """

    net: StackedNet
    parameters: Tensor
    rest: dict[str, Tensor]
    outcomes: tuple[Outcome, ...]
    rates: tuple[tuple[float, ...], ...] = field(repr=False)
    last: tuple[Tensor, dict[str, Tensor]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.outcomes)

    def state(self, member: int) -> dict[str, Tensor]:
        """The state of one member, for ``load_state_dict``."""
        return self.net.state(self.parameters, self.rest, member)

    @property
    def ended(self) -> Stack:
        """The same members with the weights of their last epoch."""
        return replace(self, parameters=self.last[0], rest=self.last[1])

    def predict(self, rows: Tensor) -> Tensor:
        """Outputs [M, B, ...], dropout off, of rows [B, ...] that all members see."""
        return self.net.forward(self.parameters, self.rest, rows.expand(len(self), *rows.shape), None)


def stacked_net(model: nn.Module, rows: Tensor) -> StackedNet:
    """The fastest net there is for modules of this kind, on rows such as these."""
    steps = chain(model) if rows.dim() == 2 else None
    return StackedModule(model, rows) if steps is None else StackedMLP(steps)


def train_stack(
    build: Callable[[], nn.Module],
    members: Sequence[Member],
    loss: Loss,
    settings: StackSettings,
    *,
    validation_loss: Loss | None = None,
    width: int | None = None,
    workers: int = 1,
    on_epoch: Callable[[int], None] | None = None,
) -> Stack:
    """Train all members.

    Args:
        build: makes a fresh module; called with each member's seed set, as ``fit`` does.
        members: what differs.
        loss: of each row.
        settings: what all share.
        validation_loss: of each validation row; ``loss`` by default.
        width: members trained at once; by default as many as the processor's cache holds.
        workers: threads, each with members of its own.
        on_epoch: called with the number of members that finished an epoch (from any thread).

    Raises:
        UsageError: for no members, or a setting out of range.
    """
    _check(members, settings)
    models = [_built(build, member.seed) for member in members]
    net = stacked_net(models[0], members[0].train.features)
    parameters, rest = net.gather(models, settings.dtype)
    rates = tuple(_rates(member, net) for member in members)
    outcomes: list[Outcome | None] = [None] * len(members)
    best, best_rest = parameters.clone(), {name: value.clone() for name, value in rest.items()}

    def run(places: list[int]) -> None:
        index = torch.tensor(places)
        group = Group(
            net.another(),
            [members[place] for place in places],
            [rates[place] for place in places],
            (loss, validation_loss or loss),
            settings,
            parameters[index],
            {name: value[index] for name, value in rest.items()},
        )
        ended = group.run(on_epoch or _ignore)
        for whole, whole_rest, (part, part_rest) in (
            (parameters, rest, ended.last),
            (best, best_rest, ended.best),
        ):
            whole[index] = part
            for name, value in part_rest.items():
                whole_rest[name][index] = value
        for place, outcome in zip(places, ended.outcomes, strict=True):
            outcomes[place] = outcome

    groups = list(_groups(members, settings, net, width or _width(net, parameters, settings), workers))
    with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, groups))
    done = tuple(each for each in outcomes if each is not None)
    return Stack(net, best, best_rest, done, rates, (parameters, rest))


def _ignore(_: int) -> None:
    """Nobody watches."""


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with seeded(seed):
        return build()


def _check(members: Sequence[Member], settings: StackSettings) -> None:
    if not members:
        raise UsageError("no members: there is nothing to train")
    if settings.batch_size < 2 or settings.epochs < 1 or settings.patience < 0:
        raise UsageError(
            f"batch_size {settings.batch_size}, epochs {settings.epochs}, patience {settings.patience}: "
            "expected at least 2, 1 and 0"
        )
    if len({member.validation is None for member in members}) > 1:
        raise UsageError("some members have validation rows and others have none: give all, or none")
    if settings.patience and members[0].validation is None:
        raise UsageError("patience needs validation rows to watch: give them, or set patience to 0")


def _rates(member: Member, net: StackedNet) -> tuple[float, ...]:
    sites = len(net.rates)
    given = net.rates if member.rate is None else member.rate
    rates = tuple(given) if isinstance(given, tuple) else (given,) * sites
    if len(rates) != sites or not all(0 <= p < 1 for p in rates):
        raise UsageError(
            f"dropout rates {rates}: expected {sites} numbers from 0 to below 1, one for each site that runs"
        )
    return rates


def _groups(
    members: Sequence[Member], settings: StackSettings, net: StackedNet, width: int, workers: int
) -> Generator[list[int]]:
    """Places of members that can go in step: as many batches an epoch."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, member in enumerate(members):
        batches = batches_an_epoch(member.train, settings.batch_size)
        # Where rows meet in BatchNorm, a row of weight 0 would still be seen.
        exact = len(member.train) if net.mixes_rows else 0
        widest = mask_rows(len(member.train), settings.batch_size)
        alike.setdefault((batches, exact, widest), []).append(place)
    for places in alike.values():
        parts = max(math.ceil(len(places) / width), min(workers, len(places)))
        share, more = divmod(len(places), parts)
        at = 0
        for part in range(parts):
            size = share + (part < more)
            yield places[at : at + size]
            at += size


def _width(net: StackedNet, parameters: Tensor, settings: StackSettings) -> int:
    """Members whose parameters, gradients and activations stay in the cache."""
    units = sum(math.prod(shape) for shape in net.site_shapes())
    return max(1, _WIDTH_NUMBERS // max(1, 4 * parameters.shape[1] + 4 * settings.batch_size * units))


@contextmanager
def _one_thread_each() -> Generator[None]:
    """Operations of this size lose more by being divided than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
