"""Run a model and write down every dropout, and every random number that no dropout explains."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import DisableTorchFunction  # pyright: ignore[reportPrivateUsage]  # no public name
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]  # the base of all

from dropserve.dropout.calls import DropoutCall
from dropserve.dropout.mode import DropoutMode, no_fused_attention
from dropserve.dropout.places import ModuleStack, code_place
from dropserve.signature import SiteKind


@dataclass(frozen=True)
class Event:
    """One dropout call of one run.

    Attributes:
        name: unique within the run; the module's path, and for a functional dropout its kind.
        kind: which dropout.
        p: its rate.
        active: whether it was on.
        where: file and line of the call.
        owner: path of the module that called it.
        input: the activations it was given, a copy.
    """

    name: str
    kind: SiteKind
    p: float
    active: bool
    where: str
    owner: str
    input: Tensor

    @property
    def key(self) -> tuple[str, str, float]:
        """What makes it the same dropout in another run."""
        return self.name, self.kind, self.p


@dataclass(frozen=True)
class Stray:
    """Random numbers that were drawn by something else than a dropout."""

    what: str
    module: str
    where: str


@dataclass(frozen=True)
class Recording:
    """What one run showed; ``output`` is what the model returned, all dropouts passed through."""

    events: tuple[Event, ...]
    strays: tuple[Stray, ...]
    output: Any


def record(model: nn.Module, inputs: Sequence[Tensor]) -> Recording:
    """Run a model with every dropout passed through.

    The random state of torch, numpy and Python is as before afterwards, and so are the inputs: the model
    runs on a copy, as an operation in place may write into it.
    """
    recorder = _Recorder(model)
    inputs = [tensor.clone() for tensor in inputs]
    with random_state_kept(), torch.no_grad(), no_fused_attention(), recorder.stack.watching(), recorder:
        output = model(*inputs)
    return Recording(tuple(recorder.events), tuple(recorder.strays), output)


@contextmanager
def random_state_kept() -> Generator[None]:
    """Put back the random state of torch (CPU), numpy and Python at the end."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  # what models use
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002  # what models use
        random.setstate(python_state)


class _Recorder(DropoutMode):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.strays: list[Stray] = []
        self.stack = ModuleStack(root, self._module_entered, self._module_left)
        self._calls: Counter[str] = Counter()
        self._states: list[dict[str, bytes]] = []

    def on_dropout(self, call: DropoutCall) -> Tensor:
        path, module = self.stack.top
        if isinstance(module, _DropoutNd):
            base = path or call.kind
        else:
            base = f"{path}.{call.kind}" if path else call.kind
        self._calls[base] += 1
        name = base if self._calls[base] == 1 else f"{base}#{self._calls[base]}"
        copy = call.input.detach().clone()
        self.events.append(Event(name, call.kind, call.p, call.active, code_place(), path, copy))
        # A new tensor where torch would give one, so that in-place work on the result is as harmless.
        return call.input if call.inplace or not call.active else call.input.clone()

    def on_other(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        generator = kwargs.get("generator") or torch.default_generator
        before = generator.get_state()
        result = func(*args, **kwargs)
        if not torch.equal(before, generator.get_state()):
            name = getattr(func, "__name__", str(func))
            self.strays.append(Stray(f"{name}()", self.stack.top[0], code_place()))
        return result

    def _module_entered(self, _path: str) -> None:
        self._states.append(_states())

    def _module_left(self, path: str) -> None:
        before, after = self._states.pop(), _states()
        moved = [name for name in before if before[name] != after[name]]
        if moved and not self.strays:  # the innermost module that saw it is left first
            self.strays.append(Stray(f"the generator of {moved[0]}", path, ""))


def _states() -> dict[str, bytes]:
    with DisableTorchFunction():
        return {
            "torch": torch.default_generator.get_state().numpy().tobytes(),
            "numpy": np.random.get_state()[1].tobytes()  # type: ignore[index, union-attr]  # noqa: NPY002  # what models use
            + repr(np.random.get_state()[2:]).encode(),  # type: ignore[index]  # noqa: NPY002  # what models use
            "Python": repr(hash(random.getstate())).encode(),
        }
