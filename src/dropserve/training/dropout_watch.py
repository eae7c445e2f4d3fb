"""Run a model once and note which dropouts run, and what meets their result.

Reading the module tree would not do: functional dropout is not in it, and the order of definition is not
the order of calls.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from dropserve.dropout.calls import DropoutCall, parse_dropout
from dropserve.dropout.mode import DropoutMode, no_fused_attention
from dropserve.dropout.places import ModuleStack
from dropserve.model import set_mode
from dropserve.training.operations import (
    ACTIVATIONS,
    BATCH_NORMS,
    LINEAR,
    PASSING,
    RANDOM,
    operation,
    tensors_in,
)

_NOT_THE_USERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")


@dataclass(frozen=True)
class Place:
    """A dropout that ran: module path, line of the call (``net.py:31``) and rate."""

    path: str
    line: str
    p: float

    def __str__(self) -> str:
        name = self.path or "the model itself"
        return f"{name} ({self.line})" if self.line else name


@dataclass(frozen=True)
class Meeting:
    """The result of a dropout meets something.

    Attributes:
        place: the dropout.
        what: what it meets.
        operation: the function's name, empty for the output.
        shown: the same in the user's words: the module's class if there is one.
        at: the module's path, or the line of the call.
        through_weights: whether a linear layer or convolution stands between.
    """

    place: Place
    what: Literal["activation", "batch-norm", "output"]
    operation: str = ""
    shown: str = ""
    at: str = ""
    through_weights: bool = False


@dataclass(frozen=True)
class Watched:
    """What happened in one pass.

    Attributes:
        places: the dropouts, in the order of their calls.
        meetings: what their results met.
        attention: whether attention ran.
        random: whether another random function ran, such as a dropout written by hand.
    """

    places: tuple[Place, ...]
    meetings: tuple[Meeting, ...]
    attention: bool
    random: bool


def watch(model: nn.Module, inputs: Sequence[Tensor]) -> Watched:
    """Run a copy of a model in training mode with dropout taken out; nothing of the caller's changes.

    In training mode because some models call dropout only then.
    """
    watched = set_mode(copy.deepcopy(model), training=True)
    stack = ModuleStack(watched, lambda _: None, lambda _: None)
    run = _Run(stack)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), no_fused_attention(), stack.watching():
        with run:
            output = watched(*(rows.clone() for rows in inputs))
        run.finish(output)
    return Watched(tuple(run.places), tuple(run.meetings), run.attention, run.random)


@dataclass(frozen=True)
class _Mark:
    """On a tensor that comes from a dropout: straight (but for its shape), or through a linear layer."""

    place: Place
    through_weights: bool = False


class _Run(DropoutMode):
    def __init__(self, stack: ModuleStack) -> None:
        super().__init__()
        self.places: list[Place] = []
        self.meetings: list[Meeting] = []
        self.attention = False
        self.random = False
        self._stack = stack
        # The tensors are kept: an id is reused as soon as its tensor is gone.
        self._marks: dict[int, tuple[Tensor, frozenset[_Mark]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Note what the parent would not show: attention, and dropout with p = 0."""
        kwargs = kwargs or {}
        if func in {F.scaled_dot_product_attention, F.multi_head_attention_forward}:
            self.attention = True
        call = parse_dropout(func, args, kwargs)
        if call is not None and call.p == 0:
            return self.on_dropout(call)
        return super().__torch_function__(func, types, args, kwargs)

    def on_dropout(self, call: DropoutCall) -> Tensor:
        """Mark the result; nothing is dropped."""
        place = Place(self._stack.top[0], _user_line(), call.p)
        self.places.append(place)
        result = call.input if call.inplace else call.input.view_as(call.input)
        self._mark(result, frozenset({_Mark(place)} if call.p else ()))
        return result

    def on_other(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Look at what meets a marked tensor, and carry the mark on."""
        marks = frozenset[_Mark]().union(*(self._marks_of(tensor) for tensor in tensors_in([args, kwargs])))
        result = func(*args, **kwargs)
        name = operation(func)
        self.random = self.random or name in RANDOM
        carried = frozenset[_Mark]()
        if name in ACTIVATIONS:
            self._meet((mark for mark in marks if not mark.through_weights), "activation", name)
        elif name in BATCH_NORMS:
            self._meet(marks, "batch-norm", name)
        elif name in PASSING:
            carried = marks
        elif name in LINEAR:
            carried = frozenset(replace(mark, through_weights=True) for mark in marks)
        for tensor in tensors_in(result):
            self._mark(tensor, carried)
        return result

    def finish(self, output: object) -> None:
        """Look at what the model returns."""
        for tensor in tensors_in(output):
            straight = (mark for mark in self._marks_of(tensor) if not mark.through_weights)
            self.meetings += [Meeting(mark.place, "output") for mark in straight]

    def _meet(self, marks: Any, what: Literal["activation", "batch-norm"], name: str) -> None:
        path, module = self._stack.top
        in_torch = type(module).__module__.startswith("torch.nn.modules")
        shown = type(module).__name__ if in_torch else name
        at = path or _user_line()
        self.meetings += [Meeting(m.place, what, name, shown, at, m.through_weights) for m in marks]

    def _marks_of(self, tensor: Tensor) -> frozenset[_Mark]:
        return self._marks.get(id(tensor), (tensor, frozenset[_Mark]()))[1]

    def _mark(self, tensor: Tensor, marks: frozenset[_Mark]) -> None:
        self._marks[id(tensor)] = (tensor, marks)


def _user_line() -> str:
    """File and line of the model's own code that led here; empty in nn.Sequential and its like."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # inspect.stack reads every source file
    while frame is not None and frame.f_code is not watch.__code__:
        if not frame.f_code.co_filename.startswith(_NOT_THE_USERS):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
