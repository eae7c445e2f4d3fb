"""Find every dropout site of a model by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dropserve.dropout.axes import MORE_ROWS, ORDER, ROWS, Layout, Views, find_layout
from dropserve.dropout.examples import example_rows, shortened, variable_axes
from dropserve.dropout.flags import configured, copied, flags, live_events, run
from dropserve.dropout.record import Event, Recording
from dropserve.errors import UnmaskableError
from dropserve.model import require_cpu
from dropserve.signature import Axis, Site, TensorSpec


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
        ModelSourceError: if the module is not on the CPU.
        UnmaskableError: if something random is no dropout, or cannot be replaced by a mask.
        BatchAxisError: if the axis of the rows cannot be told for a site.
    """
    return find_plan(module, inputs, examples).sites


def find_plan(
    module: nn.Module, inputs: Sequence[TensorSpec], examples: Mapping[str, Tensor] | None = None
) -> Plan:
    """The sites of a model, and how to mask them; see :func:`find_sites`."""
    require_cpu(module, "give it as model.cpu(); a masked program can be moved to a GPU")
    pristine = copied(module)
    rows = example_rows(inputs, ROWS, examples)
    live = live_events(pristine, rows)
    training, events = flags(pristine, rows, live)
    model = configured(pristine, training)
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
        run(model, base_rows),
        run(model, [tensor[list(ORDER)] for tensor in base_rows]),
        run(model, rows),
    ]
    shorter: dict[Axis, tuple[int, Recording]] = {}
    for axis in variable_axes(inputs):
        if axis.maximum > 1:
            length = axis.maximum // 2
            shorter[axis] = length, run(model, shortened(inputs, base_rows, axis, length))
    for each in (*runs, *(short for _, short in shorter.values())):
        if len(each.events) != len(order):
            raise UnmaskableError(
                "the model calls another number of dropouts when the rows or their length change "
                f"({len(order)} and {len(each.events)}): a mask has no fixed place. Call each dropout once, "
                "on a tensor of all steps."
            )
    return tuple(
        find_layout(
            Views(
                *(each.events[call] for each in runs),
                shorter={axis: (length, each.events[call]) for axis, (length, each) in shorter.items()},
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
