"""Does an output rest on memory that nothing was written to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

from . import locate
from .differ import compare
from .outcome import Examination, Outcome, failed, passed, skipped


def initialised_memory(exam: Examination) -> Outcome:
    """Uninitialised memory, filled with NaN, changes no output."""
    if not getattr(deterministic, "fill_uninitialized_memory", True):
        return skipped("torch.utils.deterministic.fill_uninitialized_memory is off")
    expected = exam.observation.outputs
    with _filled():
        got = exam.probe(exam.inputs)
        difference = compare(expected, got)
        poisoned = sum(map(_nans, got.values())) > sum(map(_nans, expected.values()))
        random = exam.observation.random
        if poisoned or not (random or difference.within(exam.settings.tolerance)):
            return failed(
                f"with uninitialised memory filled with NaN, {difference}",
                "use zeros or full in place of empty, new_empty and resize_, or write every element",
                locate.first_unwritten(exam.probe, exam.inputs),
            )
    if random:
        return passed("no NaN with uninitialised memory filled with NaN")
    return passed(f"with uninitialised memory filled with NaN: {difference.size}")


@contextmanager
def _filled() -> Generator[None]:
    """Let torch fill what it allocates: NaN, or the greatest integer."""
    mode = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def _nans(tensor: torch.Tensor) -> int:
    return int(tensor.isnan().sum())
