"""Find every dropout site of a model by running it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # the base of all

from dropserve.dropout.axes import MORE_ROWS, ORDER, ROWS, Layout, Views, find_layout
from dropserve.dropout.examples import example_rows, shortened, variable_axes
from dropserve.dropout.outputs import flatten_outputs
from dropserve.dropout.record import Event, Recording, record
from dropserve.errors import UnmaskableError
from dropserve.model import ServedModel
from dropserve.signature import Axis, Site, TensorSpec

_INSTEAD = (
    "Monte Carlo covers dropout alone. Write it with nn.Dropout or F.dropout(x, p, training=self.training), "
    "take it out, or export without the Monte Carlo model."
)


@dataclass(frozen=True)
class Plan:
    """All that it takes to put masks in place of a model's dropout.

    Attributes:
        model: a copy of the user's module, in eval mode but for ``training``.
        training: names of the modules left in train mode, because their dropout runs in no other.
        sites: what the masks are.
        layouts: how the masks lie on the activations, for each site.
        order: for each dropout call of a run, in its order, the index of its site; None if it is never on.
    """

    model: nn.Module
    training: frozenset[str]
    sites: tuple[Site, ...]
    layouts: tuple[Layout, ...]
    order: tuple[int | None, ...]


def find_sites(
    module: nn.Module, inputs: Sequence[TensorSpec], examples: Mapping[str, Tensor] | None = None
) -> tuple[Site, ...]:
    """The dropout sites of a model, in the order in which they run.

    The model is run in eval and in train mode, BatchNorm held in eval, on a copy.

    Args:
        module: any module that takes the inputs, batch on axis 0.
        inputs: the inputs in the order of ``forward``.
        examples: real rows by input name, if drawn numbers would not do.

    Returns:
        The sites; empty if nothing is dropped (a rate of 0 drops nothing).

    Raises:
        UnmaskableError: if something random is no dropout, or cannot be replaced by a mask.
        BatchAxisError: if the axis of the rows cannot be told for a site.
    """
    return find_plan(module, inputs, examples).sites


def find_plan(
    module: nn.Module, inputs: Sequence[TensorSpec], examples: Mapping[str, Tensor] | None = None
) -> Plan:
    """The sites of a model, and how to mask them; see :func:`find_sites`."""
    pristine = copy.deepcopy(module).requires_grad_(requires_grad=False)
    rows = example_rows(inputs, ROWS, examples)
    live = _live_events(pristine, rows)
    training, events = _flags(pristine, rows, live)
    model = _configured(pristine, training)
    index = {event.name: i for i, event in enumerate(live)}
    order = tuple(index.get(event.name) for event in events)
    layouts = _layouts(model, inputs, examples, order)
    names = _input_names(live, inputs)
    sites = tuple(
        Site(
            name=event.name,
            kind=event.kind,
            p=event.p,
            shape=layout.shape,
            scale=name,
            shift=f"{name}_shift" if "alpha" in event.kind else None,
            where=event.where,
        )
        for event, layout, name in zip(live, layouts, names, strict=True)
    )
    return Plan(model, training, sites, layouts, order)


def _configured(pristine: nn.Module, training: Iterable[str]) -> nn.Module:
    model = copy.deepcopy(pristine).eval()
    for name in training:
        model.get_submodule(name).training = True
    return model


def _train_mode(pristine: nn.Module) -> nn.Module:
    """In train mode as its author defined it, but for normalisation: it is no part of Monte Carlo."""
    model = copy.deepcopy(pristine).train()
    for part in model.modules():
        if isinstance(part, _NormBase):
            part.eval()
    return model


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _live_events(pristine: nn.Module, rows: Sequence[Tensor]) -> list[Event]:
    """The dropouts that are on in train mode, if they are all that is random there."""
    model = _train_mode(pristine)
    before = {name: value.clone() for name, value in _tensors(model)}
    first = record(model, rows)
    for name, value in _tensors(model):  # buffers may move in train mode: that is no randomness
        value.copy_(before[name])
    second = record(model, rows)
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


def _flags(
    pristine: nn.Module, rows: Sequence[Tensor], live: Sequence[Event]
) -> tuple[frozenset[str], tuple[Event, ...]]:
    """The fewest modules in train mode with which all live dropouts run and nothing else changes.

    ``if self.training: x = F.dropout(x)`` needs its module in train mode; ``nn.Dropout`` needs nothing.
    """
    reference = record(_configured(pristine, ()), rows)
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
        found = record(_configured(pristine, training), rows)
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
    prefix = "model." if _is_wrapped(pristine) else ""
    names = {_full_name(prefix, event.owner) for event in missing}
    while True:
        yield frozenset(names)
        parents = {name.rpartition(".")[0] for name in names} | names
        if parents == names:
            break
        names = parents
    yield frozenset(name for name, part in pristine.named_modules() if not isinstance(part, _NormBase))


def _is_wrapped(module: nn.Module) -> bool:
    return isinstance(module, ServedModel)


def _full_name(prefix: str, owner: str) -> str:
    return (prefix + owner).rstrip(".")


def _same(first: Recording, second: Recording, *, exactly: bool = False) -> bool:
    a, b = flatten_outputs(first.output), flatten_outputs(second.output)
    return a.keys() == b.keys() and all(close(a[name], b[name], 0.0 if exactly else 1e-5) for name in a)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors have one shape and agree relative to their greatest value; NaN agrees with NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    scale = float(a.double().abs().nan_to_num(posinf=0.0).max()) if a.numel() else 0.0
    return torch.allclose(a.double(), b.double(), rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _layouts(
    model: nn.Module,
    inputs: Sequence[TensorSpec],
    examples: Mapping[str, Tensor] | None,
    order: Sequence[int | None],
) -> tuple[Layout, ...]:
    if not any(index is not None for index in order):
        return ()
    rows = example_rows(inputs, MORE_ROWS, examples)
    base_rows = [tensor[:ROWS] for tensor in rows]
    runs = [
        record(model, base_rows),
        record(model, [tensor[list(ORDER)] for tensor in base_rows]),
        record(model, rows),
    ]
    shorter: dict[Axis, tuple[int, Recording]] = {}
    for axis in variable_axes(inputs):
        if axis.maximum > 1:
            length = axis.maximum // 2
            shorter[axis] = length, record(model, shortened(inputs, base_rows, axis, length))
    for run in (*runs, *(run for _, run in shorter.values())):
        if len(run.events) != len(order):
            raise UnmaskableError(
                "the model calls another number of dropouts when the rows or their length change "
                f"({len(order)} and {len(run.events)}): a mask has no fixed place. Call each dropout once, "
                "on a tensor of all steps."
            )
    return tuple(
        find_layout(
            Views(
                *(run.events[call] for run in runs),
                shorter={axis: (length, run.events[call]) for axis, (length, run) in shorter.items()},
            )
        )
        for call, index in enumerate(order)
        if index is not None
    )


def _input_names(live: Sequence[Event], inputs: Sequence[TensorSpec]) -> list[str]:
    taken = {spec.name for spec in inputs}
    prefix = "mask"
    while any(name.startswith(prefix) for name in taken):
        prefix = f"{prefix}_"
    return [f"{prefix}_{index}" for index in range(len(live))]
