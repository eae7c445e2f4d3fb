"""Does a row's answer depend on that row alone: not on its batch-mates, nor on how many there are."""

from __future__ import annotations

import torch

from . import locate
from .differ import ROUNDING, Difference, compare, rows, widened
from .gradients import fused_attention
from .history import RANDOM
from .outcome import BATCH, Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError, Tensors

Picked = slice | torch.Tensor

_REMEDY = (
    "compute each row from that row alone: no statistic over axis 0 (BatchNorm in train mode or with "
    "track_running_stats=False, mean(0), softmax(dim=0), a norm or maximum over the whole tensor)"
)


def row_independence(exam: Examination) -> Outcome:
    """A row keeps its answer among other, larger and NaN batch-mates, and in another position."""
    if exam.observation.random:
        return skipped(RANDOM)
    inputs, first, worst = exam.inputs, slice(0, 1), 0.0
    tried: list[str] = []
    for name, mates in _mates(exam).items():
        try:
            difference = _apart(exam, (inputs, first), (mates, first))
        except (ForwardError, OutputError):  # a model may refuse numbers that are far from ordinary
            continue
        if not difference.within(exam.settings.tolerance):
            place = locate.mixing_rows(exam.probe, inputs, mates)
            return failed(f"row 0 with {name} batch-mates: {difference}", _REMEDY, place)
        worst = max(worst, difference.relative)
        tried.append(name)
    for kind, batch in exam.subject.edge_batches(BATCH):
        alone = {name: torch.cat([tensor[:1], exam.inputs[name][1:]]) for name, tensor in batch.items()}
        try:
            difference = _apart(exam, (batch, first), (alone, first), finite=True)
        except (ForwardError, OutputError, RuntimeError):  # cat: rows of another length than the greatest
            continue
        if not difference.within(exam.settings.tolerance):
            found = f"a row of the kind {kind!r} among its own kind and among ordinary rows: {difference}"
            fused = fused_attention(exam, batch, exam.probe(batch))
            if fused is not None:
                return failed(f"{found}; {fused[0]}", *fused[1:])
            return failed(
                found,
                f"{_REMEDY}; cut no batch to its longest row, or let no answer depend on the padding",
                locate.mixing_rows(exam.probe, batch, alone),
            )
        worst = max(worst, difference.relative)
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = {name: tensor[order] for name, tensor in inputs.items()}
    difference = _apart(exam, (inputs, order), (moved, slice(None)))
    if not difference.within(exam.settings.tolerance):
        return failed(
            f"the same {BATCH} rows in another order: {difference}",
            "let a row's answer not depend on its position in the batch",
            locate.moving_rows(exam.probe, inputs, order),
        )
    worst = max(worst, difference.relative)
    named = ", ".join(name for name in tried if "(" not in name)
    return passed(f"{named} batch-mates and another order change a row by at most {worst:.2g} of its scale")


def batch_sizes(exam: Examination) -> Outcome:
    """The forward runs at every batch size, and a row has the same answer at each."""
    if exam.observation.random:
        return skipped(RANDOM)
    sizes, worst = exam.settings.batch_sizes, 0.0
    whole = exam.subject.batch(max(sizes), seed=3)
    for size in sizes:
        part = _head(whole, size)
        try:
            difference = _apart(exam, (whole, slice(0, size)), (part, slice(None)))
        except ForwardError as error:
            return failed(
                f"a batch of {size} or of {max(sizes)} raised {error}; a batch of {BATCH} did not",
                "take sizes from the input (x.shape[0], or -1 in view and reshape) and write none down",
                error.place,
            )
        if not difference.within(exam.settings.tolerance):
            medium = _head(whole, max(2, max(sizes) // 2))
            return failed(
                f"{size} rows alone and the same among {max(sizes)}: {difference}",
                "let nothing depend on the number of rows; give squeeze() the axis that it removes: an axis "
                "of length 1 may be the batch",
                locate.by_batch_size(exam.probe, part, medium, whole),
            )
        worst = max(worst, difference.relative)
    listed = ", ".join(map(str, sizes))
    return passed(f"rows agree at batch sizes {listed}: largest difference {worst:.2g} of the scale")


def _mates(exam: Examination) -> dict[str, Tensors]:
    """Batches with the row 0 of the usual one and other rows around it."""
    kinds = {
        "other": exam.subject.batch(BATCH, seed=5),
        "large": exam.subject.batch(BATCH, seed=6, kind="large"),
        "equal": {name: t[:1].expand_as(t).clone() for name, t in exam.inputs.items()},
    }
    if any(operation.is_read for operation in exam.trace.operations):
        # Python looks at values, perhaps of all rows at once: more mates, as a choice may fall either way.
        kinds |= {f"other ({seed})": exam.subject.batch(BATCH, seed=seed) for seed in range(30, 60)}
    else:  # a loop that runs until every row has converged would not end on NaN
        kinds["NaN"] = {
            name: torch.full_like(t, float("nan")) if t.is_floating_point() else t.flip(0)
            for name, t in exam.inputs.items()
        }
    for batch in kinds.values():
        for name, tensor in batch.items():
            tensor[0] = exam.inputs[name][0]
    return kinds


def _head(batch: Tensors, size: int) -> Tensors:
    return {name: tensor[:size] for name, tensor in batch.items()}


def _apart(
    exam: Examination, one: tuple[Tensors, Picked], two: tuple[Tensors, Picked], *, finite: bool = False
) -> Difference:
    """How far some rows of one batch's outputs are from some rows of another's.

    Kernels differ by batch size, and a badly conditioned model makes their rounding large. A difference
    that all but vanishes in float64 is rounding, and is reported at its size there.
    """
    difference = compare(rows(exam.probe(one[0]), one[1]), rows(exam.probe(two[0]), two[1]), finite=finite)
    if difference.within(exam.settings.tolerance) or difference.shape or exam.double is None:
        return difference
    try:
        exact = compare(
            rows(exam.double(widened(one[0])), one[1]),
            rows(exam.double(widened(two[0])), two[1]),
            finite=finite,
        )
    except (ForwardError, OutputError):
        return difference
    return exact if exact.relative < ROUNDING * difference.relative else difference
