"""The inputs on which graphs are compared, with what the eager model answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from dropserve.dropout.masks import draw
from dropserve.dropout.outputs import flatten_outputs
from dropserve.dropout.program import MaskedProgram
from dropserve.errors import ExportError
from dropserve.signature import TensorSpec

from .comparison import Array
from .edge_rows import PATTERNS
from .onnx import numpy_arrays
from .settings import ExportSettings
from .subject import EDGE_KINDS, InputKind, Subject

SAMPLES = 4
SEED = 20_26
_FINITE: Mapping[InputKind, bool | None] = {
    **dict.fromkeys(get_args(InputKind)),
    "random": False,
    "rows": True,
    "missing": True,
}


@dataclass(frozen=True)
class Case:
    """Inputs and the reference's answer.

    Attributes:
        where: kind, batch size and lengths, for messages.
        finite: whether the reference itself must be finite (real rows, and those with gaps); None to compare
            only where it is (rows that are far from ordinary).
        slack: for each output, an error that is allowed beyond the tolerance; see :func:`_rounding`.
    """

    where: Mapping[str, Any]
    lengths: Mapping[str, int]
    inputs: dict[str, Array]
    expected: dict[str, Array]
    finite: bool | None
    slack: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def rows(self) -> int:
        """Rows of the inputs."""
        return len(next(iter(self.inputs.values())))


def plain_cases(subject: Subject, settings: ExportSettings) -> list[Case]:
    """Every kind of input at every batch size, edge rows at one; every length with the first kind.

    Raises:
        ExportError: if the model refuses even its own rows.
    """
    cases: list[Case] = []
    exact: nn.Module | None = None
    ids = any(not spec.dtype.startswith("float") for spec in subject.inputs)  # a drawn row may be all padding
    for kind, batch, lengths in _batches(subject, settings):
        count = len(next(iter(batch.values())))
        try:
            with torch.no_grad():
                outputs = flatten_outputs(subject.module(*(rows.clone() for rows in batch.values())))
        except Exception as error:
            if kind == subject.kinds[0] and not lengths:
                raise ExportError(f"{subject.name}: the model fails on {count} rows: {error}") from error
            continue  # what the model itself refuses, no graph has to answer
        where = {"inputs": kind, "batch": count, **lengths}
        arrays = {name: array.copy() for name, array in numpy_arrays(outputs).items()}
        slack = dict[str, float]()
        if kind == "large" or kind in EDGE_KINDS:
            exact = exact or copy.deepcopy(subject.module).double()
            rounding = _rounding(exact, batch, arrays)
            if rounding is None and kind == "large":
                continue
            slack = rounding or {}
        finite = None if ids and kind == "random" else _FINITE[kind]
        cases.append(Case(where, lengths, numpy_arrays(batch), arrays, finite, slack))
    return cases


def _rounding(
    exact: nn.Module, batch: Mapping[str, torch.Tensor], expected: Mapping[str, Array]
) -> dict[str, float] | None:
    """How far float32 may stray on large values: ten times what the eager model itself strays from float64.

    A saturated softmax, say, turns the last bit of its input into many: no graph can be held to 1e-5 where
    float32 itself does not reach it. None if the model cannot run in float64.
    """
    doubled = [tensor.double() if tensor.is_floating_point() else tensor for tensor in batch.values()]
    try:
        with torch.no_grad():
            outputs = numpy_arrays(flatten_outputs(exact(*(rows.clone() for rows in doubled))))
    except Exception:  # noqa: BLE001  # such as a float32 constant in forward: then nothing is known
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        return {name: 10 * magnitude(outputs[name] - array) for name, array in expected.items()}


def _batches(
    subject: Subject, settings: ExportSettings
) -> Iterator[tuple[InputKind, dict[str, torch.Tensor], dict[str, int]]]:
    """Kind, rows, and lengths where they are shorter than the greatest."""
    for kind in subject.kinds:
        if kind not in EDGE_KINDS:
            for count in settings.batch_sizes:
                yield kind, subject.batch(count, kind=kind), {}
    for kind, batch in subject.edge_batches(len(PATTERNS)):
        yield kind, batch, {}
    half = {axis: max(1, size // 2) for axis, size in subject.axes.items()}
    one = dict.fromkeys(subject.axes, 1)
    for lengths in (half, one):
        if lengths and lengths != subject.axes:
            kind = subject.kinds[0]
            for count in settings.batch_sizes:
                yield kind, subject.batch(count, kind=kind, lengths=lengths), lengths


def scales(cases: list[Case]) -> dict[str, float]:
    """For each output, its greatest magnitude on ordinary rows: the first kind of the cases."""
    ordinary = [case for case in cases if case.where["inputs"] == cases[0].where["inputs"]]
    return {name: max(magnitude(case.expected[name]) for case in ordinary) for name in cases[0].expected}


def magnitude(array: Array) -> float:
    """The greatest finite absolute value."""
    values = np.abs(array.astype(np.float64))
    return float(values.max(initial=0.0, where=np.isfinite(values)))


@dataclass(frozen=True)
class MaskedCase:
    """A case under drawn masks.

    Attributes:
        plain: the case whose inputs these are; its answer is that of the identity masks.
        masks: [T, *shape] for each mask, cut to the lengths.
        expected: [T, B, ...] for each output, from an eager loop over the samples.
    """

    plain: Case
    masks: dict[str, Array]
    expected: dict[str, Array]

    @property
    def flat(self) -> dict[str, Array]:
        """The expected answers as T x B rows."""
        return {name: array.reshape(-1, *array.shape[2:]) for name, array in self.expected.items()}

    def tiled(self) -> dict[str, Array]:
        """Inputs and masks for T x B rows, sample-major."""
        rows = self.plain.rows
        inputs = {name: np.concatenate([array] * SAMPLES) for name, array in self.plain.inputs.items()}
        return inputs | {name: np.repeat(mask, rows, axis=0) for name, mask in self.masks.items()}


def masked_cases(
    program: MaskedProgram, masks: tuple[TensorSpec, ...], cases: list[Case]
) -> list[MaskedCase]:
    """The same inputs under ``SAMPLES`` masks: every size for the first kind, one for the others."""
    drawn = draw(program.sites, SAMPLES, seed=SEED)
    first = cases[0].where["inputs"]
    sizes = sorted({case.rows for case in cases})
    middle = sizes[len(sizes) // 2]
    chosen = [case for case in cases if case.where["inputs"] in (first, *EDGE_KINDS) or case.rows == middle]
    return [_masked(program, masks, drawn, case) for case in chosen]


def _masked(
    program: MaskedProgram, masks: tuple[TensorSpec, ...], drawn: Mapping[str, Array], case: Case
) -> MaskedCase:
    cut: dict[str, Array] = {}
    for spec in masks:
        window = tuple(slice(size) for size in spec.sized(dict(case.lengths)))
        cut[spec.name] = drawn[spec.name][:, *window]
    inputs = [torch.from_numpy(case.inputs[name]) for name in program.input_names]
    samples: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for sample in range(SAMPLES):
            one = [
                np.repeat(cut[name][sample : sample + 1], case.rows, axis=0) for name in program.mask_names
            ]
            samples.append(program(*inputs, *map(torch.from_numpy, one)))
    stacked = (torch.stack(parts).numpy() for parts in zip(*samples, strict=True))
    return MaskedCase(case, cut, dict(zip(program.output_names, stacked, strict=True)))
