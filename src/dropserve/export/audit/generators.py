"""The state of every random generator a forward could draw from."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .places import is_user_file

Digest = Callable[[], bytes]
_DEPTH = 4  # containers within containers that are searched for private generators
_ITEMS = 1000  # items of one container that are looked at
_OBJECTS = 20_000  # objects that are looked at in all: a vocabulary is not walked for ever


def _sha(*parts: object) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return digest.digest()


def torch_state() -> bytes:
    """Digest of torch's default generators: CPU, and CUDA or MPS where a process uses them."""
    parts = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        parts += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        parts.append(torch.mps.get_rng_state().numpy().tobytes())
    return _sha(*parts)


def numpy_state() -> bytes:
    """Digest of numpy's global generator."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # the global one is what is asked
    return _sha(name, np.asarray(keys).tobytes(), rest)


def python_state() -> bytes:
    """Digest of the state of Python's ``random``."""
    return _sha(random.getstate())


@contextmanager
def restored() -> Generator[None]:
    """Leave the global generators of torch, numpy and Python as they were found."""
    with torch.random.fork_rng(devices=_cuda_devices()):
        kept = np.random.get_state(), random.getstate()  # noqa: NPY002  # see numpy_state
        try:
            yield
        finally:
            np.random.set_state(kept[0])  # noqa: NPY002
            random.setstate(kept[1])


def _cuda_devices() -> list[int]:
    ready = torch.cuda.is_available() and torch.cuda.is_initialized()
    return list(range(torch.cuda.device_count())) if ready else []


def stir(seed: int) -> None:
    """Put the global generators into a state that no seed sets, so that seeding again shows."""
    torch.manual_seed(seed)
    torch.rand(seed % 7 + 1)
    np.random.seed(seed)  # noqa: NPY002
    np.random.random(seed % 5 + 1)  # noqa: NPY002
    random.seed(seed)
    random.random()  # noqa: S311  # no secret


def private_generators(model: nn.Module) -> Mapping[str, Digest]:
    """Generator objects that the model holds, by where they are held.

    Searched: attributes of modules and of objects in them, containers, globals and closures of the
    functions in the user's files. What is out of reach still shows when two forwards differ.
    """
    search = _Search()
    for name, module in model.named_modules():
        label = f"model.{name}" if name else "model"
        for key, item in list(vars(module).items()):
            if key != "_modules":  # walked already
                search.visit(item, f"{label}.{key}", 1)
        search.visit(inspect.getattr_static(type(module), "forward", None), label, 1)
    return search.found


class _Search:
    def __init__(self) -> None:
        self.found: dict[str, Digest] = {}
        self._seen: set[int] = set()

    def visit(self, value: Any, name: str, depth: int) -> None:
        """Note a generator; look into anything else, once."""
        if id(value) in self._seen or depth > _DEPTH or len(self._seen) > _OBJECTS:
            return
        self._seen.add(id(value))
        digest = _digest(value)
        if digest is not None:
            self.found[name] = digest
            return
        for key, item in _parts(value, name):
            self.visit(item, key, depth + 1)


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with a name for messages."""
    if isinstance(value, FunctionType | MethodType):
        yield from _reachable(value)
    elif isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", item) for key, item in list(value.items())[:_ITEMS])
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"{name}[{index}]", item) for index, item in enumerate(list(value)[:_ITEMS]))
    elif not isinstance(value, type | ModuleType | torch.Tensor) and hasattr(value, "__dict__"):
        yield from ((f"{name}.{key}", item) for key, item in list(vars(value).items()))


def _reachable(function: FunctionType | MethodType) -> Iterator[tuple[str, Any]]:
    """Closure cells, and those globals of a user's function that it names."""
    plain = function.__func__ if isinstance(function, MethodType) else function
    if not isinstance(plain, FunctionType) or not is_user_file(plain.__code__.co_filename):
        return
    for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
    yield from (
        (name, plain.__globals__[name]) for name in plain.__code__.co_names if name in plain.__globals__
    )


def _digest(value: Any) -> Digest | None:
    """How to read the state of a generator object, or None for anything else."""
    if isinstance(value, torch.Generator):
        return lambda: _sha(value.get_state().numpy().tobytes())
    if isinstance(value, np.random.Generator):
        return lambda: _sha(value.bit_generator.state)
    if isinstance(value, np.random.BitGenerator):
        return lambda: _sha(value.state)
    if isinstance(value, np.random.RandomState):
        return lambda: _sha(value.get_state(legacy=False))
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return lambda: _sha(value.getstate())
    return None
