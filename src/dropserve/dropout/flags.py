"""Which dropouts are on in train mode, and which modules must be in it for them to run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # the base of all

from dropserve.dropout.outputs import close, flatten_outputs
from dropserve.dropout.record import Event, Recording, record
from dropserve.errors import DropoutError, DropserveError, UnmaskableError
from dropserve.model import ServedModel, set_mode

_INSTEAD = (
    "Monte Carlo covers dropout alone. Write it with nn.Dropout or F.dropout(x, p, training=self.training), "
    "take it out, or export without the Monte Carlo model."
)


def copied(module: nn.Module) -> nn.Module:
    """A copy to work on, without gradients.

    Raises:
        UnmaskableError: if the module cannot be copied.
    """
    try:
        with torch.no_grad():
            return copy.deepcopy(module).requires_grad_(requires_grad=False)
    except Exception as error:
        raise UnmaskableError(
            f"the model cannot be copied ({type(error).__name__}: {error}), and what is not a copy is not "
            "touched. Keep tensors that are computed out of its attributes, and do not script parts of it."
        ) from error


def run(model: nn.Module, rows: Sequence[Tensor]) -> Recording:
    """Record a run.

    Raises:
        DropoutError: if the model fails on these rows.
    """
    try:
        return record(model, rows)
    except DropserveError:
        raise
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in rows)
        raise DropoutError(
            f"the model fails on inputs of shape {shapes}: {type(error).__name__}: {error}. It must take any "
            "number of rows on axis 0, in train mode too."
        ) from error


def configured(pristine: nn.Module, training: Iterable[str]) -> nn.Module:
    """A copy in eval mode, but for the modules named."""
    model = set_mode(copy.deepcopy(pristine))
    for name in training:
        model.get_submodule(name).training = True
    return model


def _train_mode(pristine: nn.Module) -> nn.Module:
    """In train mode as its author defined it, but for normalisation: it is no part of Monte Carlo."""
    model = set_mode(copy.deepcopy(pristine), training=True)
    for part in model.modules():
        if isinstance(part, _NormBase):
            part.eval()
    return model


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def live_events(pristine: nn.Module, rows: Sequence[Tensor]) -> list[Event]:
    """The dropouts that are on in train mode, if they are all that is random there.

    Raises:
        UnmaskableError: if something else is random, or a rate is not below 1.
    """
    model = _train_mode(pristine)
    before = {name: value.clone() for name, value in _tensors(model)}
    first = run(model, rows)
    for name, value in _tensors(model):  # buffers may move in train mode: that is no randomness
        value.copy_(before[name])
    second = run(model, rows)
    for stray in first.strays:
        module = f"module {stray.module!r}" if stray.module else "the model"
        raise UnmaskableError(
            f"{stray.what} {f'at {stray.where} ' if stray.where else ''}in {module} draws random numbers in "
            f"train mode and is no dropout. {_INSTEAD}"
        )
    keys = [event.key for event in first.events]
    if keys != [event.key for event in second.events] or not _same(first, second, exactly=True):
        raise UnmaskableError(
            "two runs in train mode differ, with every dropout held and every common generator still: the "
            f"model draws from a generator of its own, or keeps count in an attribute. {_INSTEAD}"
        )
    live = [event for event in first.events if event.active and event.p > 0]
    for event in live:
        if not 0 < event.p < 1:
            raise UnmaskableError(
                f"dropout {event.name!r} ({event.where}) has p={event.p}; expected 0 <= p < 1. With p=1 "
                "nothing is left to scale."
            )
    return live


def flags(
    pristine: nn.Module, rows: Sequence[Tensor], live: Sequence[Event]
) -> tuple[frozenset[str], tuple[Event, ...]]:
    """The fewest modules in train mode with which all live dropouts run and nothing else changes.

    ``if self.training: x = F.dropout(x)`` needs its module in train mode; ``nn.Dropout`` needs nothing.

    Returns:
        The names of those modules, and every dropout call of a run with them so.

    Raises:
        UnmaskableError: if train mode changes something else too.
    """
    reference = run(configured(pristine, ()), rows)
    wanted = [event.key for event in live]
    seen = {event.key for event in reference.events}
    if unknown := [e for e in reference.events if e.active and e.p > 0 and e.key not in wanted]:
        raise UnmaskableError(
            f"dropout {unknown[0].name!r} ({unknown[0].where}) is on in eval mode and not in train mode. "
            "Give it training=self.training."
        )
    if [key for key in (e.key for e in reference.events) if key in wanted] == wanted:
        return frozenset(), reference.events
    missing = [event for event in live if event.key not in seen]
    for training in _candidates(pristine, missing):
        try:
            found = run(configured(pristine, training), rows)
        except DropserveError:
            continue
        keys = [event.key for event in found.events if event.key in wanted]
        if keys == wanted and not found.strays and _same(reference, found):
            return training, found.events
    first = missing[0] if missing else live[0]
    raise UnmaskableError(
        f"dropout {first.name!r} ({first.where}) runs in train mode only, and train mode changes more than "
        "the dropout there. Call it in both modes, F.dropout(x, p, training=self.training), and keep it out "
        "of `if self.training:` blocks that do other things."
    )


def _candidates(pristine: nn.Module, missing: Sequence[Event]) -> Iterable[frozenset[str]]:
    """Sets of modules to put in train mode: the callers of the missing dropouts, then their parents too."""
    prefix = "model." if isinstance(pristine, ServedModel) else ""
    names = {f"{prefix}{event.owner}".rstrip(".") for event in missing}
    while True:
        yield frozenset(names)
        parents = {name.rpartition(".")[0] for name in names} | names
        if parents == names:
            break
        names = parents
    yield frozenset(name for name, part in pristine.named_modules() if not isinstance(part, _NormBase))


def _same(first: Recording, second: Recording, *, exactly: bool = False) -> bool:
    a, b = flatten_outputs(first.output), flatten_outputs(second.output)
    return a.keys() == b.keys() and all(close(a[name], b[name], 0.0 if exactly else 1e-5) for name in a)
