"""Find the operation at which something goes wrong, by comparing recorded forwards.

A check decides by what comes out; these functions say where it began. They are heuristics about places
only: a verdict never rests on them. Each looks first at operations that the outputs rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import SequenceMatcher

import torch

from .differ import same
from .optrace import Operation, Trace, record
from .places import Place
from .probe import ForwardError, OutputError, Probe

Tensors = Mapping[str, torch.Tensor]

_LONG = 2000  # operations; matching takes the square of it


def first_nan(probe: Probe, inputs: Tensors) -> Place:
    """The operation that makes the first NaN out of numbers, or the module whose weights are NaN."""
    trace = recorded(probe, inputs)
    found = _first(trace, lambda index: any(_has_nan(t) for t in trace.operations[index].values))
    for name, module in probe.module.named_modules():
        if any(_has_nan(p) for p in module.parameters(recurse=False)):
            return (
                found.place if found and found.place.module is module else Place(name, type(module).__name__)
            )
    return found.place if found else probe.placer.root_place()


def first_unwritten(probe: Probe, inputs: Tensors) -> Place:
    """The allocation whose NaN first goes into an operation as a number; see ``memory``."""
    trace = recorded(probe, inputs)
    operations = trace.operations

    def spreads(index: int) -> bool:
        return not operations[index].is_allocation and any(_has_nan(t) for t in operations[index].values)

    found = _first(trace, spreads)
    if found is None:
        return probe.placer.root_place()
    sources = [operations[parent].place for parent in found.parents if operations[parent].is_allocation]
    return sources[0] if sources else found.place


def first_divergence(probe: Probe, one: Trace, two: Trace) -> Place:
    """The first operation whose result differs between two recorded forwards."""
    shared = one.shared(two)

    def differs(index: int) -> bool:
        if index >= shared:
            return True
        a, b = one.operations[index], two.operations[index]
        return not a.is_allocation and not _agree(a.values, b.values)

    found = _first(one, differs)
    if found is None and shared < len(two.operations):
        found = two.operations[shared]
    return found.place if found else probe.placer.root_place()


def first_new_value(probe: Probe, one: Trace, two: Trace) -> Place:
    """The first operation of ``two`` with a result that ``one`` has nowhere: their operators may differ."""
    known = [value for operation in one.operations for value in operation.values]

    def is_known(value: torch.Tensor) -> bool:
        same_shape = (other for other in known if other.shape == value.shape and other.dtype == value.dtype)
        return any(torch.allclose(value, other, rtol=1e-4, equal_nan=True) for other in same_shape)

    found = _first(two, lambda index: not all(map(is_known, two.operations[index].values)), fallback=False)
    return found.place if found else probe.placer.root_place()


def mixing_rows(probe: Probe, inputs: Tensors, others: Tensors) -> Place:
    """The first operation through which other rows reach row 0.

    Args:
        probe: the model.
        inputs: a batch.
        others: a batch of the same size with the same row 0 and different mates.
    """
    one, two = recorded(probe, inputs), recorded(probe, others)
    shared = one.shared(two)
    size = len(next(iter(inputs.values())))

    def mixes(index: int) -> bool:
        if index >= shared:
            return True
        a, b = one.operations[index], two.operations[index]
        if a.is_read or a.is_allocation or a.shapes != b.shapes:
            return a.shapes != b.shapes
        return any(_row_changed(x, y, size) for x, y in zip(a.values, b.values, strict=True) if x.numel())

    return _earlier_read(one, two, _first(one, mixes)) or probe.placer.root_place()


def moving_rows(probe: Probe, inputs: Tensors, order: torch.Tensor) -> Place:
    """The first operation whose rows do not follow when the rows of the input change places."""
    one = recorded(probe, inputs)
    two = recorded(probe, {name: tensor[order] for name, tensor in inputs.items()})
    shared, size = one.shared(two), len(order)

    def stays(index: int) -> bool:
        if index >= shared:
            return True
        for a, b in zip(one.operations[index].values, two.operations[index].values, strict=True):
            axes = [axis for axis, length in enumerate(a.shape) if length == size]
            if a.shape != b.shape or not a.is_floating_point() or len(axes) != 1:
                continue
            scale = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
            if not torch.allclose(
                a.index_select(axes[0], order), b, rtol=0, atol=1e-4 * scale, equal_nan=True
            ):
                return not one.operations[index].is_allocation
        return False

    found = _first(one, stays)
    return found.place if found else probe.placer.root_place()


def by_batch_size(probe: Probe, small: Tensors, medium: Tensors, large: Tensors) -> Place:
    """The first operation that does for the small batch something else than for the larger ones.

    Args:
        probe: the model.
        small: the first rows of the others.
        medium: the first rows of ``large``.
        large: a batch.
    """
    traces = [recorded(probe, batch) for batch in (small, medium, large)]
    sizes = [len(next(iter(batch.values()))) for batch in (small, medium, large)]
    into = [_alignment(traces[0], other) for other in traces[1:]]

    def departs(index: int) -> bool:
        places = [pairs.get(index) for pairs in into]
        if places[0] is None or places[1] is None:
            return False
        a, b, c = (t.operations[i] for t, i in zip(traces, (index, *places), strict=True) if i is not None)
        if a.is_allocation or a.is_read:
            return False
        shapes = zip(a.shapes, b.shapes, c.shapes, strict=True)
        if any(one != _extrapolate(two, three, sizes) for one, two, three in shapes):
            return True
        return any(not _same_rows(x, z, sizes) for x, z in zip(a.values, c.values, strict=True))

    found = _first(traces[0], departs)
    if found is None:  # the same operations throughout: the difference is one that is not there
        found = _first(traces[0], lambda index: index not in into[1])
        found = found or _first(traces[2], lambda index: index not in into[1].values())
    return _earlier_read(traces[0], traces[2], found) or probe.placer.root_place()


def _earlier_read(one: Trace, two: Trace, found: Operation | None) -> Place | None:
    """Where Python read another number before the two traces parted, else where they did."""
    for a, b in zip(one.operations, two.operations, strict=False):
        if a is found or b is found or a.name != b.name:
            break
        if a.is_read and a.read != b.read:
            return a.place
    return found.place if found else None


def _alignment(one: Trace, other: Trace) -> dict[int, int]:
    """Which operation of one trace is which of another: a batch of one row takes short cuts on its way."""
    names = [[operation.name for operation in trace.operations] for trace in (one, other)]
    if max(map(len, names)) > _LONG:
        return {index: index for index in range(one.shared(other))}
    blocks = SequenceMatcher(None, *names, autojunk=False).get_matching_blocks()
    return {block.a + step: block.b + step for block in blocks for step in range(block.size)}


def losing_the_batch(probe: Probe, inputs: Tensors, more: Tensors) -> Place:
    """The first operation whose output no longer grows with the batch though its input did."""
    one, two = recorded(probe, inputs), recorded(probe, more)
    shared = one.shared(two)

    def stops(index: int) -> bool:
        if index >= shared:
            return False
        a, b = one.operations[index], two.operations[index]
        return a.takes != b.takes and a.shapes == b.shapes

    found = _first(one, stops, fallback=False)
    return found.place if found else probe.placer.root_place()


def recorded(probe: Probe, inputs: Tensors, *, grad: bool = False, inference: bool = False) -> Trace:
    """A forward with the values of all operations; an empty trace if it does not run."""
    try:
        return record(probe, inputs, values=True, grad=grad, inference=inference)
    except (ForwardError, OutputError):
        return Trace()


def growing_twice(probe: Probe, inputs: Tensors, more: Tensors) -> Place:
    """The first operation of whose output more than one axis grows with the batch."""
    one, two = recorded(probe, inputs), recorded(probe, more)
    shared = one.shared(two)

    def grows(index: int) -> bool:
        if index >= shared:
            return False
        pairs = zip(one.operations[index].shapes, two.operations[index].shapes, strict=True)
        return any(sum(a != b for a, b in zip(x, y, strict=False)) > 1 for x, y in pairs)

    found = _first(one, grows)
    return found.place if found else probe.placer.root_place()


def host_dependence(probe: Probe, inputs: Tensors, others: Tensors) -> Place:
    """Where Python got to see the values of tensors, and went another way or put other numbers in."""
    one, two = recorded(probe, inputs), recorded(probe, others)
    shared = one.shared(two)
    reads: list[Operation] = []
    for index in range(shared):
        a, b = one.operations[index], two.operations[index]
        if a.is_read and a.read != b.read:
            reads.append(a)
        if not _agree(a.strangers, b.strangers):
            return a.place
    if reads:
        return reads[0].place
    later = (trace.operations[shared] for trace in (one, two) if shared < len(trace.operations))
    found = next(later, None)
    return found.place if found else probe.placer.root_place()


def _first(trace: Trace, shows: Callable[[int], bool], *, fallback: bool = True) -> Operation | None:
    """The first operation that the outputs rest on and that shows it; else the first of all."""
    wanted = [index for index in range(len(trace.operations)) if index in trace.feeding]
    everything = range(len(trace.operations)) if fallback else ()
    for index in [*wanted, *everything]:
        if shows(index):
            return trace.operations[index]
    return None


def _agree(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and bool(same(a, b).all()) for a, b in zip(one, other, strict=True)
    )


def _row_changed(one: torch.Tensor, other: torch.Tensor, size: int) -> bool:
    """Whether row 0 differs; where no axis is the batch for certain, whether too little is left for a row."""
    equal = same(one, other)
    axes = [axis for axis, length in enumerate(one.shape) if length == size]
    if len(axes) == 1:
        return not bool(equal.select(axes[0], 0).all())
    return float(equal.double().mean()) < 0.999 / size


def _has_nan(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.isnan().any())


def _extrapolate(medium: tuple[int, ...], large: tuple[int, ...], sizes: list[int]) -> tuple[int, ...] | None:
    """The shape that two larger batches let one expect of the smallest."""
    if len(medium) != len(large):
        return None
    small, middle, big = sizes
    return tuple(b + (c - b) * (small - middle) // (big - middle) for b, c in zip(medium, large, strict=True))


def _same_rows(small: torch.Tensor, large: torch.Tensor, sizes: list[int]) -> bool:
    """Whether the rows of the small batch have the values that they have in the large one."""
    if small.ndim != large.ndim or not small.is_floating_point():
        return True
    axes = [i for i, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
    if len(axes) != 1 or (small.shape[axes[0]], large.shape[axes[0]]) != (sizes[0], sizes[2]):
        return True  # no batch axis, or one that is folded into another: nothing can be said
    expected = large.narrow(axes[0], 0, sizes[0])
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    return torch.allclose(small, expected, rtol=0, atol=1e-4 * scale, equal_nan=True)
