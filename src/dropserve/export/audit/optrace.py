"""Record every operator that a forward runs, with the user's line that called it.

Works below Python: what nn modules, functionals, TorchScript graphs and fused kernels run is seen alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .operators import is_random
from .places import Place
from .probe import Probe, flatten

_READ = "aten::_local_scalar_dense"  # what .item(), bool() and int() of a tensor end in


@dataclass
class Operation:
    """One operator call.

    Attributes:
        name: such as ``aten.bernoulli_.float``.
        place: the user's line.
        random: whether it draws random numbers.
        takes: shapes of the tensors that it takes.
        shapes: shapes of its outputs.
        values: copies of its outputs (only if the trace keeps values).
        read: the number that Python got to see, for a read of a tensor's value.
        parents: operations whose outputs went into this one.
        strangers: copies of tensors that came from nowhere: not an input, a weight or an earlier output.
    """

    name: str
    place: Place
    random: bool
    takes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    values: tuple[torch.Tensor, ...] = ()
    read: object = None
    parents: frozenset[int] = frozenset()
    strangers: tuple[torch.Tensor, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether it hands the value of a tensor to Python."""
        return self.name.startswith("aten._local_scalar_dense")

    @property
    def is_allocation(self) -> bool:
        """Whether its output holds no values yet."""
        return "empty" in self.name


@dataclass
class Trace:
    """The operations of one forward, in order, and what came out."""

    operations: list[Operation] = field(default_factory=list[Operation])
    outputs: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    feeding: frozenset[int] = frozenset()

    def shared(self, other: Trace) -> int:
        """How many operations two traces have in common before the first that differs in name."""
        pairs = zip(self.operations, other.operations, strict=False)
        return next(
            (index for index, (a, b) in enumerate(pairs) if a.name != b.name),
            min(len(self.operations), len(other.operations)),
        )


class _Recorder(TorchDispatchMode):
    def __init__(self, probe: Probe, known: set[int], *, values: bool) -> None:
        super().__init__()
        self._placer, self._values = probe.placer, values
        self._known = known
        self._producer: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        strangers = [t for t in inputs if id(t) not in self._producer and id(t) not in self._known]
        parents = frozenset(self._producer[id(t)] for t in inputs if id(t) in self._producer)
        kept_strangers = _copies(strangers) if self._values else ()
        taken = tuple(map(_shape, inputs))
        result = func(*args, **kwargs)
        outputs = _tensors(result)
        index = len(self.operations)
        for tensor in outputs:
            self._producer[id(tensor)] = index
        for tensor in strangers:
            self._known.add(id(tensor))
        self._alive += [*outputs, *strangers]
        operation = Operation(
            name=str(func),
            place=self._placer.here(),
            random=is_random(func, args, kwargs),
            takes=taken,
            shapes=tuple(map(_shape, outputs)),
            values=_copies(outputs) if self._values else (),
            read=None if outputs else result,
            parents=parents,
            strangers=kept_strangers,
        )
        self.operations.append(operation)
        return result

    def ancestors(self, outputs: list[torch.Tensor]) -> frozenset[int]:
        """The operations that the outputs rest on."""
        todo = [self._producer[id(t)] for t in outputs if id(t) in self._producer]
        found: set[int] = set()
        while todo:
            index = todo.pop()
            if index not in found:
                found.add(index)
                todo += self.operations[index].parents
        return frozenset(found)


def record(
    probe: Probe,
    inputs: Mapping[str, torch.Tensor],
    *,
    values: bool = False,
    grad: bool = False,
    inference: bool = False,
) -> Trace:
    """Run the model once and record its operations.

    Args:
        probe: the model.
        inputs: a batch.
        values: keep copies of every operation's outputs; memory of all activations.
        grad: run with gradients on.
        inference: run under ``torch.inference_mode``.

    Raises:
        ForwardError: if the forward raises.
        OutputError: if it returns something else than tensors.
    """
    tensors = {name: value.clone() for name, value in inputs.items()}
    known = {id(t) for t in tensors.values()}
    known |= {id(t) for m in probe.module.modules() for t in [*m.parameters(False), *m.buffers(False)]}
    recorder = _Recorder(probe, known, values=values)
    with recorder:
        result = probe.raw(tensors, grad=grad, copy=False, inference=inference)
    feeding = recorder.ancestors(_tensors(result))
    return Trace(recorder.operations, flatten(result), feeding)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)


def _copies(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies of the values; a nested tensor, which has no shape, is left out."""
    return tuple(t.detach().clone() for t in tensors if not t.is_nested)
