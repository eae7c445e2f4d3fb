"""What is exported: the eager model, its inputs, and the rows on which it is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dropserve.columns import Column
from dropserve.errors import DataError
from dropserve.model import require_cpu
from dropserve.signature import Axis, TensorSpec

from .edge_rows import PATTERNS, edge_rows, padded_rows
from .integers import IntegerRange, integer_ranges

InputKind = Literal["rows", "random", "zeros", "large", "missing", "edge", "padded", "masked"]
EDGE_KINDS: tuple[InputKind, ...] = ("edge", "padded", "masked")
"""Kinds of rows at the edges of what people send, on which a model itself may have no finite answer."""
Array = NDArray[Any]

_LARGE = 100.0  # standard deviations from the mean: far outside the data, well inside float32


@dataclass(frozen=True)
class Subject:
    """A model under examination, in eval mode, float32, on the CPU.

    Attributes:
        name: what messages call it.
        module: the eager model; called with one tensor for each input, in order.
        inputs: names, dtypes and shapes per row.
        rows: real rows, ``[n, *shape]`` for each input; None when there are none.
        columns: for the name of an input whose rows are a table's, its columns: categories are drawn as
            codes, and NaN stands where a value may be missing.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    rows: Mapping[str, Array] | None = None
    columns: Mapping[str, Sequence[Column]] = field(default_factory=dict[str, Sequence[Column]])

    def __post_init__(self) -> None:
        require_cpu(self.module, "give it as model.cpu(); the files run on a GPU none the less")
        if self.rows is not None:
            _check_rows(self.name, self.inputs, self.rows)

    @property
    def kinds(self) -> tuple[InputKind, ...]:
        """The kinds of input that :meth:`batch` can make, real rows first."""
        drawn: tuple[InputKind, ...] = ("random", "zeros", "large")
        if any(column.fill is not None for columns in self.columns.values() for column in columns):
            drawn = (*drawn, "missing")
        drawn = (*drawn, "edge")
        if not all(spec.name in self.columns for spec in self.inputs):  # a table's rows are never padded
            drawn = (*drawn, "padded")
        if any(spec.dtype == "bool" for spec in self.inputs):
            drawn = (*drawn, "masked")
        return drawn if self.rows is None else ("rows", *drawn)

    @property
    def axes(self) -> dict[str, int]:
        """The variable axes and their greatest lengths."""
        return {
            axis.name: axis.maximum for spec in self.inputs for axis in spec.shape if isinstance(axis, Axis)
        }

    def batch(
        self,
        n: int,
        seed: int = 0,
        *,
        kind: InputKind | None = None,
        lengths: Mapping[str, int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Make ``n`` rows; the same arguments give the same rows, and no global generator moves.

        Args:
            n: rows.
            seed: which draw.
            kind: ``rows`` (real ones; the default where there are any), ``random`` (normal with the mean
                and deviation of the real rows, or standard normal), ``zeros``, ``large`` (random, a hundred
                deviations wide), ``missing`` (random, with NaN for half of what may be missing, and for all
                of it in the first row), ``edge`` (padding, constants, ties, the least and the greatest
                number: see :mod:`.edge_rows`; ``seed`` counts batches of them), ``padded`` (every row ends
                in padding; ``seed`` counts the values of :attr:`pads`), ``masked`` (the same with booleans
                that end in True). Integers stay within the range of the real rows, or of the table that
                their input reaches, or 0 and 1; categories are always codes.
            lengths: lengths of variable axes; the greatest by default.

        Returns:
            For each input, a tensor ``[n, *shape]``.
        """
        kind = kind or self.kinds[0]
        rng = np.random.default_rng([seed, n, get_args(InputKind).index(kind)])
        wanted = {**self.axes, **(lengths or {})}
        if kind == "rows":
            return self._real(n, rng, wanted)
        ordinary: InputKind = "random" if kind in EDGE_KINDS else kind
        drawn = {spec.name: self._draw(spec, (n, *spec.sized(wanted)), ordinary, rng) for spec in self.inputs}
        if kind in EDGE_KINDS:
            for index, spec in enumerate(self.inputs):
                drawn[spec.name] = self._at_the_edge(spec, index, drawn[spec.name], kind, seed)
        for name, columns in self.columns.items():
            _as_table(drawn[name], columns, kind, rng)
        return {name: torch.from_numpy(array) for name, array in drawn.items()}

    def edge_batches(self, n: int) -> Iterator[tuple[InputKind, dict[str, torch.Tensor]]]:
        """Batches of ``n`` rows that together hold every pattern of edge rows and every way of padding."""
        for kind in self.kinds:
            if kind in EDGE_KINDS:
                count = -(-len(PATTERNS) // n) if kind == "edge" else self.pads
                for seed in range(count):
                    yield kind, self.batch(n, seed, kind=kind)

    def _real(self, n: int, rng: np.random.Generator, lengths: dict[str, int]) -> dict[str, torch.Tensor]:
        rows = self.rows
        if rows is None:
            raise DataError(f"{self.name}: there are no real rows; ask for kind='random'")
        count = len(next(iter(rows.values())))
        picked = rng.choice(count, size=n, replace=n > count)
        for spec in self.inputs:  # rows may be shorter than the greatest length that the model allows
            for axis, size in zip(spec.shape, rows[spec.name].shape[1:], strict=True):
                if isinstance(axis, Axis):
                    lengths[axis.name] = min(lengths[axis.name], size)
        batch: dict[str, torch.Tensor] = {}
        for spec in self.inputs:
            window = tuple(slice(0, size) for size in spec.sized(lengths))
            values = rows[spec.name][(picked, *window)].astype(spec.numpy_dtype)
            batch[spec.name] = torch.from_numpy(np.ascontiguousarray(values))
        return batch

    @property
    def pads(self) -> int:
        """How many values are tried as padding: batches of the kind ``padded`` with other seeds differ."""
        return max((len(limits.pads) for limits in self._ranges.values()), default=1)

    def _at_the_edge(self, spec: TensorSpec, index: int, base: Array, kind: InputKind, seed: int) -> Array:
        limits = self._ranges.get(spec.name)
        pad: Any = kind == "masked" if spec.dtype == "bool" else 0
        if limits is not None:
            pad = limits.pads[seed % len(limits.pads)]
        if kind == "edge":
            return edge_rows(spec, base, seed * len(base), index, limits, pad)
        return padded_rows(base, limits, pad)

    @cached_property
    def _ranges(self) -> dict[str, IntegerRange]:
        return integer_ranges(self.module, self.inputs)

    def _draw(
        self, spec: TensorSpec, shape: tuple[int, ...], kind: InputKind, rng: np.random.Generator
    ) -> Array:
        dtype = spec.numpy_dtype
        if dtype.kind == "b":
            return np.zeros(shape, dtype) if kind == "zeros" else rng.random(shape) < 0.5
        if dtype.kind in "iu":
            low, high = self._integer_bounds(spec)
            if kind == "zeros":
                return np.full(shape, min(max(0, low), high), dtype)
            if kind == "large":
                return np.full(shape, high, dtype)
            return rng.integers(low, high, size=shape, endpoint=True).astype(dtype)
        if kind == "zeros":
            return np.zeros(shape, dtype)
        mean, deviation = self._moments(spec, shape)
        spread = deviation * (_LARGE if kind == "large" else 1.0)
        return (mean + spread * rng.standard_normal(shape)).astype(dtype)

    def _moments(self, spec: TensorSpec, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Mean and deviation of each element; of the whole input where lengths vary."""
        if self.rows is None:
            return np.zeros(()), np.ones(())
        rows = self.rows[spec.name].astype(np.float64)
        whole = np.asarray(np.nanstd(rows) or 1.0)
        if rows.shape[1:] != shape[1:]:
            return np.asarray(np.nanmean(rows)), whole
        deviation = np.nanstd(rows, axis=0)
        return np.nanmean(rows, axis=0), np.where(deviation > 0, deviation, whole)

    def _integer_bounds(self, spec: TensorSpec) -> tuple[int, int]:
        if self.rows is not None and self.rows[spec.name].size:
            values = self.rows[spec.name]
            return int(values.min()), int(values.max())
        limits = self._ranges[spec.name]
        return limits.low, limits.high


def _as_table(rows: Array, columns: Sequence[Column], kind: InputKind, rng: np.random.Generator) -> None:
    """Put codes where categories are, and NaN where values are to be missing."""
    for place, column in enumerate(columns):
        if column.categories:
            rows[:, place] = 0 if kind == "zeros" else rng.integers(0, column.codes, len(rows))
        if kind == "missing" and column.fill is not None:
            lost = rng.random(len(rows)) < 0.5
            lost[0] = True
            rows[lost, place] = np.nan


def _check_rows(name: str, inputs: tuple[TensorSpec, ...], rows: Mapping[str, Array]) -> None:
    missing = [spec.name for spec in inputs if spec.name not in rows]
    if missing:
        raise DataError(f"{name}: no real rows for input {missing[0]!r}; there are rows for {sorted(rows)}")
    counts = {len(rows[spec.name]) for spec in inputs}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"{name}: every input needs the same number of real rows, at least 1; got {counts}")
    for spec in inputs:
        got = rows[spec.name].shape[1:]
        fits = len(got) == len(spec.shape) and all(
            size <= axis.maximum if isinstance(axis, Axis) else size == axis
            for axis, size in zip(spec.shape, got, strict=True)
        )
        if not fits:
            raise DataError(f"{name}: real rows of {spec} have shape {list(got)}")
