"""Where in the user's code, and in which module, something happens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dropserve.model import ServedModel

_OWN = str(Path(__file__).parent / "_")[:-1]  # with the separator: torchvision is no part of torch
_TORCH = str(Path(torch.__file__).parent / "_")[:-1]
_SERVED = sys.modules[ServedModel.__module__].__file__ or ""


def code_place() -> str:
    """File and line of the user's call that led here, as ``net.py:31``; empty if there is none."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # inspect.stack reads every source file
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_OWN, _TORCH, "<")) and file != _SERVED:
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def module_path(name: str, root: nn.Module) -> str:
    """A module's name as its author knows it: without the wrapper that dropserve put around the model."""
    if isinstance(root, ServedModel):
        return "" if name == "model" else name.removeprefix("model.")
    return name


class ModuleStack:
    """Which module is running, while :meth:`watching`.

    Args:
        root: the model; it is given hooks, and loses them again.
        entered: called when a module begins, with its path.
        left: called when it ends, with its path.
    """

    def __init__(self, root: nn.Module, entered: Callable[[str], None], left: Callable[[str], None]) -> None:
        self._root = root
        self._entered = entered
        self._left = left
        self._running: list[tuple[str, nn.Module]] = []

    @property
    def top(self) -> tuple[str, nn.Module]:
        """Path and module of the innermost one that runs."""
        return self._running[-1] if self._running else ("", self._root)

    @contextmanager
    def watching(self) -> Generator[None]:
        """Keep track of the modules that run inside this context."""
        hooks: list[Any] = []
        for name, module in self._root.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            path = module_path(name, self._root)
            hooks.append(module.register_forward_pre_hook(self._enter(path)))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            self._running.clear()
            for hook in hooks:
                hook.remove()

    def _enter(self, path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _args: Any) -> None:
            self._running.append((path, module))
            self._entered(path)

        return hook

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._running:
            self._left(self._running[-1][0])
            self._running.pop()
