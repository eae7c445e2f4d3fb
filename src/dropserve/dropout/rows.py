"""Answers that have the same bits however many rows are computed together.

Runtimes choose their kernels by the number of rows, treat the last few numbers of a buffer apart, and sum
from wherever memory is aligned; each way rounds differently. Measured with onnxruntime 1.32 on one thread:
networks of Linear, Conv, LSTM and attention layers gave the same bits for any number of rows; a mean over
an axis differed for one row; Softplus, ELU and SELU differed where rows x width is no multiple of 4; a mean
over 49 numbers differed with the *position* of the row. On several threads Softplus, ELU, SELU, exp and log
differed wherever the work was cut, so a program that must be steady computes on one thread, and calls run
side by side instead.

Which of this a graph does on a host is measured, not assumed: the least quantum of rows is sought for which
it is steady, and where there is none rows are computed one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.cache import ByteCache
from dropserve.dropout.held import Array, Arrays, Held, Program

T = TypeVar("T")
R = TypeVar("R")

QUANTA = (1, 2, 4, 8)
QUANTUM = QUANTA[-1]
ALONE = 0  # no quantum is steady: one row at a time
_ROWS = 64
_TRIES = 12
_MANY = 512  # rows of the one large run
_LARGE = 2**20  # numbers that it may feed
_HELD_BYTES = 2**22  # of calls kept to be made again


class Steady:
    """Runs a program so that no row's answer depends on the rows beside it, to the last bit.

    Args:
        program: maps names to arrays whose axis 0 is the row, on one thread; each row is its own affair.
        workers: calls that run side by side.
        chunk_rows: most rows in one call.
        least: the least quantum, whatever is measured; see :func:`measure_quantum`.
    """

    def __init__(self, program: Program, *, workers: int = 1, chunk_rows: int = 1024, least: int = 1) -> None:
        self._program = program
        self._workers = workers
        self._chunk_rows = chunk_rows
        self._least = least
        self._quanta: dict[object, int] = {}
        self._held: ByteCache[Held] = ByteCache(_HELD_BYTES)
        self._last = 0  # rows of the last call

    def quantum(self, inputs: Arrays) -> int:
        """The measured quantum for inputs of such shapes; ``ALONE`` if there is none."""
        key = tuple((name, array.shape[1:], array.dtype.str) for name, array in sorted(inputs.items()))
        if key not in self._quanta:
            self._quanta[key] = measure_quantum(self._program, inputs, self._least)
        return self._quanta[key]

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Run on [N, ...] and give [N, ...], N at least 1."""
        rows = len(next(iter(inputs.values())))
        held = self._held.get(rows)
        if held is not None and (found := held(inputs)) is not None:
            return found
        quantum = self.quantum(inputs)
        step = 1 if quantum == ALONE else self._chunk_rows
        chunks = [
            {name: array[first : first + step] for name, array in inputs.items()}
            for first in range(0, rows, step)
        ]
        results = side_by_side(
            lambda chunk: run_padded(self._program, chunk, max(1, quantum)), chunks, self._workers
        )
        if len(results) > 1:
            return {name: np.concatenate([result[name] for result in results]) for name in results[0]}
        if rows == self._last:  # twice in a row: likely again
            fed = whole(inputs, max(1, quantum))
            held = Held(self._program, fed, self._program(fed), inputs, (rows,))
            self._held.put(rows, held, held.nbytes)
        self._last = rows
        return results[0]


def run_padded(program: Program, inputs: Arrays, quantum: int = QUANTUM) -> dict[str, Array]:
    """Run a program on rows filled up to a whole quantum, and give back the rows asked for.

    Args:
        program: maps names to arrays whose axis 0 is the row.
        inputs: arrays [N, ...], N at least 1.
        quantum: rows of a call are a multiple of it.

    Returns:
        For each output's name, [N, ...].
    """
    rows = len(next(iter(inputs.values())))
    return {name: array[:rows] for name, array in program(whole(inputs, quantum)).items()}


def whole(inputs: Arrays, quantum: int) -> dict[str, Array]:
    """The rows, and the last of them again up to a whole quantum: a row of zeros might divide by zero."""
    rows = len(next(iter(inputs.values())))
    missing = -rows % quantum
    if not missing:
        return dict(inputs)
    return {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in inputs.items()}


def measure_quantum(program: Program, inputs: Arrays, least: int = 1) -> int:
    """The least number of rows of which any multiple gives every row the same bits.

    Args:
        program: maps names to arrays whose axis 0 is the row.
        inputs: arrays [N, ...] of the shapes and dtypes that it shall run on. Floating-point numbers are
            drawn anew (a request of zeros would show nothing), others are taken as they are.
        least: smaller ones are not tried, and ``ALONE`` is what is given for ``ALONE``. Where a graph rounds
            to few bits on its way, a kernel that rounds float32 otherwise for some rows shows in one answer
            of many thousands, too rarely to be found here. It is found on the same graph in float32 then.

    Returns:
        One of ``QUANTA``, or ``ALONE``.
    """
    if least == ALONE:
        return ALONE
    rng = np.random.default_rng(0)
    rows = {name: _synthetic(array, rng) for name, array in inputs.items()}
    reference = {name: np.asarray(array) for name, array in program(rows).items()}

    def steady(index: NDArray[np.intp]) -> bool:
        found = program({name: array[index] for name, array in rows.items()})
        return all(_same_bits(found[name], array[index]) for name, array in reference.items())

    if not steady(rng.permutation(_ROWS)):
        return ALONE
    if sum(array[0].size for array in rows.values()) * _MANY <= _LARGE:
        many = np.tile(np.arange(_ROWS), _MANY // _ROWS)
        if not steady(rng.permutation(many)):
            return ALONE
    for quantum in (q for q in QUANTA if q >= least):
        counts = [quantum * n for n in (1, 2, 3, 5, 7) if quantum * n <= _ROWS]
        tries = _TRIES if quantum < QUANTUM else 2
        if all(steady(rng.permutation(_ROWS)[:count]) for count in counts for _ in range(tries)):
            return quantum
    return ALONE


def side_by_side(run: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Apply a function to each item, up to ``workers`` at a time, results in order."""
    items = list(items)
    if workers == 1 or len(items) == 1:
        return [run(item) for item in items]
    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        return list(pool.map(run, items))


def _synthetic(array: Array, rng: np.random.Generator) -> Array:
    shape = (_ROWS, *array.shape[1:])
    if not np.issubdtype(array.dtype, np.floating):
        return array[np.arange(_ROWS) % len(array)]
    values = rng.standard_normal(shape)
    values[::4] = np.abs(values[::4])  # some rows that a logarithm can take
    return values.astype(array.dtype)


def _same_bits(a: Array, b: Array) -> bool:
    a = np.asarray(a)
    return a.shape == b.shape and a.tobytes() == b.tobytes()
