"""Where in the user's code something happens: module path, file and line.

The innermost frame that is neither torch's, numpy's, the standard library's nor ours is "the user's
call"; the modules being called are read off the frames of ``nn.Module.__call__`` around it.
"""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
import torch
from torch import nn

from dropserve.dropout.places import module_path

_PACKAGE = Path(__file__).parents[2]
_STANDARD = sysconfig.get_paths()["stdlib"]
_NOT_USERS = tuple(f"{Path(str(package.__file__)).parent}{os.sep}" for package in (torch, np))
_CALLERS = frozenset({"_call_impl", "_wrapped_call_impl"})
_TORCH_MODULE = str(Path(inspect.getfile(nn.Module)))


@lru_cache(maxsize=4096)
def is_user_file(file: str) -> bool:
    """Whether a frame of this file counts as the user's code (installed model libraries do)."""
    if file.startswith(("<", *_NOT_USERS)):
        return file.startswith(("<stdin", "<ipython"))
    if file.startswith(str(_PACKAGE)):
        return file.startswith(str(_PACKAGE / "stages"))
    return "site-packages" in file or not file.startswith(_STANDARD)


@dataclass(frozen=True)
class Place:
    """One line of a forward, and the module that was running.

    Attributes:
        path: qualified name of the innermost module, empty for the model itself.
        kind: class of that module.
        file: absolute path of the user's file; empty when no line of the user's is on the stack.
        line: line number in it.
        through: torch's own functions between that line and the operation, outermost first.
        module: that module, if one was running.
    """

    path: str
    kind: str
    file: str = ""
    line: int = 0
    through: tuple[str, ...] = ()
    module: nn.Module | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two places the same."""
        return self.path, self.file, self.line

    @property
    def source(self) -> str:
        """The text of the line."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    def __str__(self) -> str:
        name = f"{self.path} ({self.kind})" if self.path else self.kind
        return f"{name} at {short(self.file)}:{self.line}" if self.file else name


def short(file: str) -> str:
    """A file's path from the working directory if it lies below it, else its name alone."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


Frames = list[tuple[FrameType, int]]  # innermost first, each with the line it stands on


def stack(frame: FrameType | None) -> Frames:
    """The frames from ``frame`` outwards."""
    frames: Frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return frames


def traceback_stack(trace: TracebackType | None) -> Frames:
    """The frames of a traceback, innermost first."""
    frames: Frames = []
    while trace is not None:
        frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return frames[::-1]


def _running(frames: Frames) -> Iterator[nn.Module]:
    """Modules whose call is on the stack, innermost first."""
    last: nn.Module | None = None
    for frame, _ in frames:
        code = frame.f_code
        if code.co_name in _CALLERS and code.co_filename == _TORCH_MODULE:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and module is not last:
                last = module
                yield module


def held_at(model: nn.Module, wanted: nn.Module) -> str:
    """Where a module is held out of reach of ``modules()``, such as ``body.drops[1]``; empty if not found."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in {"_modules", "_parameters", "_buffers"}:
                continue
            for index, item in _contents(value):
                if item is wanted:
                    return f"{name}.{key}{index}" if name else f"{key}{index}"
    return ""


def _contents(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from (("", item) for item in value)
    else:
        yield "", value
        for cell in getattr(value, "__closure__", None) or ():
            with suppress(ValueError):  # a cell that is still empty
                yield "", cell.cell_contents


class Placer:
    """Turns frames into places within one model.

    Args:
        root: the model; a stack is read only up to the call of it.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._names = {id(module): module_path(name, root) for name, module in root.named_modules()}

    def is_registered(self, module: nn.Module) -> bool:
        """Whether ``model.modules()`` reaches a module."""
        return id(module) in self._names

    def name(self, module: nn.Module, outer: nn.Module | None = None) -> str:
        """The qualified name of a module; one that is not registered is named by who calls it."""
        if self.is_registered(module):
            return self._names[id(module)]
        held = held_at(self.root, module)
        if held:
            return module_path(held, self.root)
        owner = self._names.get(id(outer), "") if outer is not None else ""
        return f"{owner}.<unregistered>" if owner else "<unregistered>"

    def place(self, frames: Frames) -> Place:
        """The place of the innermost line of the user's on the stack."""
        frames = self._within(frames)
        modules = list(_running(frames))
        module = modules[0] if modules else self.root
        outer = next((m for m in modules[1:] if self.is_registered(m)), None)
        path, kind = self.name(module, outer), type(module).__name__
        through: list[str] = []
        for frame, line in frames:
            if is_user_file(frame.f_code.co_filename):
                return Place(path, kind, frame.f_code.co_filename, line, tuple(reversed(through)), module)
            through.append(frame.f_code.co_qualname)
        file, line = self._definition(modules or [self.root])
        return Place(path, kind, file, line, tuple(reversed(through)), module)

    def here(self) -> Place:
        """The place of the caller."""
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # inspect.stack reads every source
        return self.place(stack(frame))

    def root_place(self) -> Place:
        """The forward of the model itself: the best place when nothing narrower is known."""
        file, line = self._definition([self.root], method="forward")
        return Place("", type(self.root).__name__, file, line, (), self.root)

    def attribute_name(self, path: str, attribute: str) -> str:
        """An attribute of a module, as its author knows it."""
        owner = module_path(path, self.root)
        return f"{owner}.{attribute}" if owner else attribute

    def attribute_place(self, path: str, attribute: str) -> Place:
        """The line of a class that assigns an attribute; the class itself if none can be found."""
        module = self.root.get_submodule(path) if path else self.root
        file, line = self._definition([module])
        if file and attribute:
            source = inspect.getsourcelines(type(module))[0]
            pattern = re.compile(rf"self\.{re.escape(attribute)}\b|[\"']{re.escape(attribute)}[\"']")
            line += next((index for index, text in enumerate(source) if pattern.search(text)), 0)
        return Place(module_path(path, self.root), type(module).__name__, file, line, (), module)

    def _within(self, frames: Frames) -> Frames:
        """Cut the stack at the call of the model: the audit's own callers are not the model's."""
        for index, (frame, _) in enumerate(frames):
            if frame.f_code.co_name == "_wrapped_call_impl" and frame.f_locals.get("self") is self.root:
                return frames[: index + 1]
        return frames

    @staticmethod
    def _definition(modules: list[nn.Module], method: str | None = None) -> tuple[str, int]:
        """Where the nearest class that the user wrote is defined."""
        for module in modules:
            target: type | Callable[..., object] = type(module)
            if method is not None:
                target = getattr(type(module), method, target)
            try:
                file = inspect.getfile(target)
                if is_user_file(file):
                    return file, inspect.getsourcelines(target)[1]
            except (TypeError, OSError):
                continue
        return "", 0
