"""Does the model compute the same way for every input, as a trace of it will."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.errors import ExportError
from dropserve.export.subject import EDGE_KINDS
from dropserve.export.torchscript import trace

from . import locate
from .differ import Difference, compare
from .gradients import fused_attention
from .history import RANDOM
from .outcome import BATCH, Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError, Tensors, flatten

_SCALES = (1.0, 10.0, 1e-3, 1e4, 0.1, 1e-6, 100.0)
_SHIFTS = (0.0, 1.0, -1.0, 10.0, -10.0)
_ALWAYS = 30  # batches that are tried where Python reads a tensor's value
_SEARCH = 0.3  # seconds, for more of them
_ROUNDING = 10  # tolerances: a trace runs the same kernels, and what it has frozen differs by more


class _Flat(nn.Module):
    """The model with its outputs as a tuple, which is what can be traced."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(flatten(self.model(*inputs)).values())


def data_dependent_control_flow(exam: Examination) -> Outcome:
    """A trace made with one batch gives the eager model's answers on others of the same size."""
    if exam.observation.random:
        return skipped(RANDOM)
    flat = _Flat(exam.probe.module)
    flat.training = exam.probe.module.training  # of the wrapper alone: the model stays as it is
    try:
        with no_fused_attention():  # as the exported files are traced
            traced, fixed = trace(flat, list(exam.inputs.values()))
    except ExportError as error:
        return skipped(f"not judged: {error}")
    reads = [operation for operation in exam.trace.operations if operation.is_read]
    ids = any(not tensor.is_floating_point() for tensor in exam.inputs.values())  # all may be padding
    worst, tried = 0.0, 0
    start = time.perf_counter()
    for kind, batch in _batches(exam, many=bool(reads or fixed)):
        if tried >= _ALWAYS and time.perf_counter() - start > _SEARCH:
            break
        try:
            expected = exam.probe(batch)
        except (ForwardError, OutputError):  # a model may refuse numbers that are far from ordinary
            continue
        tried += 1
        difference = _replay(traced, batch, expected, finite=ids or kind in EDGE_KINDS)
        if not difference.within(_ROUNDING * exam.settings.tolerance):
            fused = fused_attention(exam, batch, expected)
            if fused is not None:
                return failed(
                    f"a trace gives another answer on {kind} input: {difference}; {fused[0]}", *fused[1:]
                )
            return failed(
                f"a trace made with other rows freezes a choice or a number: on {kind} input {difference}",
                "keep values in tensors: torch.where for a choice, tensor operations for a number; no if, "
                ".item(), float() or numpy on what depends on the input",
                locate.host_dependence(exam.probe, exam.inputs, batch),
            )
        worst = max(worst, difference.relative)
    note = f"; Python reads a tensor's value at {reads[0].place}, to no effect on these" if reads else ""
    return passed(f"a trace agrees with eager on {tried} other batches of {BATCH} within {worst:.2g}{note}")


def _batches(exam: Examination, *, many: bool) -> Iterator[tuple[str, Tensors]]:
    """Inputs on which a choice might fall another way; more of them where one is made at all."""
    subject = exam.subject
    for kind in subject.kinds:
        if kind not in EDGE_KINDS:
            yield kind, subject.batch(BATCH, seed=7, kind=kind)
    yield from subject.edge_batches(BATCH)
    if not many:
        return
    one = subject.batch(BATCH, seed=8)
    yield "equal rows of", {name: t[:1].expand_as(t).clone() for name, t in one.items()}
    for seed in range(9, 200):
        scale, shift = _SCALES[seed % len(_SCALES)], _SHIFTS[seed % len(_SHIFTS)]
        batch = subject.batch(BATCH, seed=seed, kind="random")
        yield (
            f"random x {scale:g} + {shift:g}",
            {name: t * scale + shift if t.is_floating_point() else t for name, t in batch.items()},
        )


def _replay(traced: Any, batch: Tensors, expected: Tensors, *, finite: bool) -> Difference:
    try:
        with torch.no_grad(), no_fused_attention():
            outputs = traced(*(tensor.clone() for tensor in batch.values()))
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        return Difference(shape=f"the trace raised {lines[-1] if lines else 'an error'}")
    return compare(expected, dict(zip(expected, outputs, strict=False)), finite=finite)
