"""Find the line that changes something: run a forward line by line and look after each.

What is watched is any function that returns a comparable value, such as the digest of a generator's
state, so nothing about *how* a line does it needs to be known. Slow, and therefore run only once a
cheap comparison before and after the forward has shown that something changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import nn

from .places import Place, Placer, is_user_file, stack
from .probe import ForwardError, Probe

_TRIES = 4  # a line that acts at some calls only is looked for this many times


def changing_places(
    probe: Probe, inputs: Mapping[str, torch.Tensor], watched: Callable[[], object], *, copy: bool = True
) -> list[Place]:
    """The lines after which ``watched()`` returned something new, first one first.

    Args:
        probe: the model.
        inputs: what it is called with.
        watched: cheap, without side effects.
        copy: call with copies of the inputs; False when the inputs themselves are watched.
    """
    for _ in range(_TRIES):
        tracer = _Tracer(probe.placer, watched)
        before = sys.gettrace()
        sys.settrace(tracer.call)
        try:
            probe.raw(inputs, copy=copy)
        except ForwardError:
            pass  # whatever changed until then still counts
        finally:
            sys.settrace(before)
        if tracer.places:
            return list(tracer.places.values())
    return []


class _Tracer:
    """Compares at every line of the user's and around every module's forward."""

    def __init__(self, placer: Placer, watched: Callable[[], object]) -> None:
        self._placer, self._watched = placer, watched
        self._last = watched()
        self._current = placer.root_place()
        self.places: dict[tuple[str, str, int], Place] = {}

    def call(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:  # noqa: ARG002
        """The tracer of new frames: follow the user's lines, and module calls from their edges."""
        if is_user_file(frame.f_code.co_filename):
            self._look()
            self._current = self._place(frame)
            return self._line
        if frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("self"), nn.Module):
            self._look()
            self._current = self._place(frame)
            frame.f_trace_lines = False
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:  # noqa: ARG002
        self._look()
        if event == "line":
            self._current = self._place(frame)
        elif event == "return":
            self._current = self._place(frame.f_back)
        return self._line

    def _place(self, frame: FrameType | None) -> Place:
        return self._placer.place(stack(frame))

    def _look(self) -> None:
        now = self._watched()
        if now != self._last:
            self._last = now
            self.places.setdefault(self._current.key, self._current)
