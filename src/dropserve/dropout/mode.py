"""Stand between a model and torch's dropout."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dropserve.dropout.calls import DropoutCall, parse_dropout
from dropserve.dropout.rewrite import explicit_form


class DropoutMode(TorchFunctionMode):
    """Hands each dropout that a model calls to :meth:`on_dropout`, whatever module or function it is in.

    ``nn.Dropout`` ends in ``F.dropout``, functional dropout is invisible to ``model.modules()``, and
    attention and recurrent layers hide theirs in fused functions: those are put into an explicit form first.
    """

    @abstractmethod
    def on_dropout(self, call: DropoutCall) -> Tensor:
        """The value that the dropout function shall return."""

    def on_other(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # whatever the function returns
        """Run any other function."""
        return func(*args, **kwargs)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = parse_dropout(func, args, kwargs)
        if call is not None:
            return call.input if call.p == 0 else self.on_dropout(call)
        form = explicit_form(func, args, kwargs)
        if form is None:
            return self.on_other(func, args, kwargs)
        with self:  # torch leaves a mode while it handles a function; the explicit form calls dropout
            return form(*args, **kwargs)


class _FusedAttention:
    """Counts who wants torch's fused kernels off: the switch is the process's, and threads may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def off(self) -> None:
        with self._lock:
            if self._users == 0:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(value=False)
            self._users += 1

    def back(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                torch.backends.mha.set_fastpath_enabled(value=self._before)


_fused_attention = _FusedAttention()


@contextmanager
def no_fused_attention() -> Generator[None]:
    """Keep transformer layers off the fused kernels, which skip dropout and pad by other rules."""
    _fused_attention.off()
    try:
        yield
    finally:
        _fused_attention.back()
