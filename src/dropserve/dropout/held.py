"""Calls that are made again with other numbers at the same addresses.

A small request costs as much in handing arrays to a runtime as in computing. A program that can *hold* a call
binds its inputs and outputs once; after that, numbers are written into the inputs, the call is made, and the
outputs are read. Masks are written once. ``benchmarks/mc_speed.py`` measures what this brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
Program = Callable[[dict[str, Array]], Mapping[str, Array]]

ALIGNMENT = 64  # bytes: as runtimes align their own buffers, since some kernels round by alignment


class Call(Protocol):
    """A call at fixed addresses; one at a time."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Where to write, by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, Array]:
        """What the last call gave, by name."""
        ...

    def __call__(self) -> None:
        """Compute ``outputs`` from what stands in ``inputs``."""
        ...


@runtime_checkable
class Holder(Protocol):
    """A program that can hold a call."""

    def __call__(self, feeds: dict[str, Array], /) -> Mapping[str, Array]:
        """Run on arrays by name."""
        ...

    def hold(self, feeds: Arrays, outputs: Arrays) -> Call:
        """A call of such shapes.

        Args:
            feeds: what to put into its inputs.
            outputs: what the program gave for inputs of these shapes.
        """
        ...


class _PlainCall:
    """Any program's call: its inputs stay, and are fed again."""

    def __init__(self, program: Program, feeds: Arrays, outputs: Arrays) -> None:
        self.inputs = {name: aligned(array) for name, array in feeds.items()}
        self.outputs = {name: aligned(array) for name, array in outputs.items()}
        self._program = program

    def __call__(self) -> None:
        for name, array in self._program(dict(self.inputs)).items():
            self.outputs[name][...] = array


class Held:
    """A call of which some inputs are written anew each time, and the others stay.

    Safe to share between threads: where another is at it, there is no answer.

    Args:
        program: what to call.
        feeds: all that it takes, [N, ...], or more rows behind those N that nobody asks for.
        outputs: what it gives for them.
        written: names of those that are written anew.
        lead: the rows as B, or as T and B: N is their product. Written tensors are [B, ...], and outputs
            are given as [B, ...] or [T, B, ...].

    Attributes:
        nbytes: of memory that it keeps.
    """

    def __init__(
        self,
        program: Program,
        feeds: Arrays,
        outputs: Arrays,
        written: Mapping[str, Array],
        lead: tuple[int, ...],
    ) -> None:
        holder = program.hold if isinstance(program, Holder) else None
        self._call: Call = holder(feeds, outputs) if holder else _PlainCall(program, feeds, outputs)
        rows = prod(lead)
        self._targets = [
            (name, self._call.inputs[name][:rows].reshape(*lead, *array.shape[1:]), array.shape, array.dtype)
            for name, array in written.items()
            if name in self._call.inputs
        ]
        self._results = [
            (name, array[:rows].reshape(*lead, *array.shape[1:]))
            for name, array in self._call.outputs.items()
        ]
        self._lock = Lock()
        self.nbytes = sum(a.nbytes for part in (self._call.inputs, self._call.outputs) for a in part.values())

    def __call__(self, rows: Arrays) -> dict[str, Array] | None:
        """Compute with these rows.

        Args:
            rows: for each name that is written anew, [B, ...].

        Returns:
            By the name of each output; None if shapes or dtypes differ, or another thread is at it.
        """
        for name, _, shape, dtype in self._targets:
            array = rows[name]
            if array.shape != shape or array.dtype != dtype:
                return None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for name, target, _, _ in self._targets:
                target[...] = rows[name]
            self._call()
            return {name: array.copy() for name, array in self._results}
        finally:
            self._lock.release()


def aligned(array: Array) -> Array:
    """A copy that begins at a multiple of ``ALIGNMENT``."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
