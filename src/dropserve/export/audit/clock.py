"""Let the user's files, and nobody else, see a clock that shows another time."""

from __future__ import annotations

import datetime as dt
import inspect
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from .places import is_user_file

_SECONDS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


def user_namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of the user's files that the model's classes are written in."""
    spaces: dict[int, dict[str, Any]] = {}
    for module in model.modules():
        for cls in type(module).__mro__:
            for function in vars(cls).values():
                if inspect.isfunction(function) and is_user_file(function.__code__.co_filename):
                    spaces[id(function.__globals__)] = function.__globals__
    return list(spaces.values())


def clocks(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Names in the user's files that stand for a clock: the namespace, and the name in it."""
    return [
        (space, name)
        for space in user_namespaces(model)
        for name, value in list(space.items())
        if _shifted(value, 0.0) is not None
    ]


@contextmanager
def shifted_clock(model: nn.Module, seconds: float) -> Generator[None]:
    """Put every clock that the user's files name ahead for the time of the block."""
    kept = [(space, name, space[name]) for space, name in clocks(model)]
    for space, name, value in kept:
        space[name] = _shifted(value, seconds)
    try:
        yield
    finally:
        for space, name, value in kept:
            space[name] = value


def _shifted(value: object, seconds: float) -> object | None:
    """A stand-in for a clock, or None for anything else."""
    if value is time:
        functions = {name: _ahead(getattr(time, name), seconds) for name in _SECONDS}
        functions |= {f"{name}_ns": _ahead(getattr(time, f"{name}_ns"), seconds) for name in _SECONDS}
        return _proxy(time, functions)
    if value is dt:
        return _proxy(dt, {"datetime": _datetime(seconds), "date": _date(seconds)})
    if value is dt.datetime:
        return _datetime(seconds)
    if value is dt.date:
        return _date(seconds)
    if inspect.isbuiltin(value) and value.__name__.removesuffix("_ns") in _SECONDS and value.__self__ is time:
        return _ahead(value, seconds)
    return None


def _ahead(clock: Callable[[], Any], seconds: float) -> Callable[[], Any]:
    whole = clock.__name__.endswith("_ns")
    return lambda: clock() + (int(seconds * 1e9) if whole else seconds)


def _proxy(module: ModuleType, replaced: dict[str, Any]) -> ModuleType:
    proxy = ModuleType(module.__name__)
    vars(proxy).update({**vars(module), **replaced})
    return proxy


def _datetime(seconds: float) -> type:
    ahead = dt.timedelta(seconds=seconds)

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + ahead

        @classmethod
        def today(cls) -> Any:
            return dt.datetime.now() + ahead  # noqa: DTZ005  # as datetime.today is

        @classmethod
        def utcnow(cls) -> Any:
            return dt.datetime.now(dt.UTC).replace(tzinfo=None) + ahead

    return Shifted


def _date(seconds: float) -> type:
    ahead = dt.timedelta(seconds=seconds)

    class Shifted(dt.date):
        @classmethod
        def today(cls) -> Any:
            return dt.date.today() + ahead  # noqa: DTZ011  # as date.today is

    return Shifted
