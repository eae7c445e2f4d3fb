"""Does an answer depend on the input alone: not on earlier calls or the clock."""

from __future__ import annotations

import copy

from . import locate
from .clock import clocks, shifted_clock
from .differ import compare
from .outcome import BATCH, Examination, Outcome, failed, passed, skipped
from .places import Place
from .probe import Probe

_AHEAD = (5 / 24, 11 / 24, 17 / 24, 1, 2, 3, 4, 5, 6, 100, 200, 300, 1000, 20_000)  # days
RANDOM = "not judged: forwards of the same rows differ (see repeated-forwards)"


def repeated_forwards(exam: Examination) -> Outcome:
    """The same batch gives the same bits at every call."""
    seen = exam.observation
    if not seen.random:
        return passed(f"{seen.forwards} forwards of {BATCH} rows bit-equal")
    return failed(
        f"forward {seen.differing} of the same {BATCH} rows: {seen.difference}",
        "let forward depend on its inputs and weights alone: no random numbers, no counters, no clock, "
        "nothing kept from one call to the next",
        _diverging(exam),
    )


def call_history(exam: Examination) -> Outcome:
    """A batch gets the same answer from a used model and from a fresh copy of it."""
    if exam.observation.random:
        return skipped(RANDOM)
    if exam.fresh is None:
        return skipped("not judged: the model cannot be copied")
    other = exam.subject.batch(BATCH, seed=2)
    used = exam.probe(other)
    fresh = Probe(exam.subject, copy.deepcopy(exam.fresh))
    difference = compare(fresh(other), used)
    if difference.identical:
        return passed(f"bit-equal from a fresh copy and after {exam.observation.forwards} other forwards")
    trace = locate.recorded(Probe(exam.subject, exam.fresh), other)
    return failed(
        f"after {exam.observation.forwards} forwards of other rows, compared with a fresh copy: {difference}",
        "keep nothing from one call for the next: what was computed from the first input is not right for "
        "the second",
        locate.first_divergence(exam.probe, locate.recorded(exam.probe, other), trace),
    )


def clock_independence(exam: Examination) -> Outcome:
    """A clock that shows another time changes nothing."""
    if exam.observation.random:
        return skipped(RANDOM)
    if not clocks(exam.probe.module):
        return passed("the model's files name no clock")
    expected = exam.probe(exam.inputs)
    for days in _AHEAD:
        with shifted_clock(exam.probe.module, days * 86_400):
            got = exam.probe(exam.inputs)
        difference = compare(expected, got)
        if not difference.identical:
            with shifted_clock(exam.probe.module, days * 86_400):
                later = locate.recorded(exam.probe, exam.inputs)
            return failed(
                f"with the clock {days:g} days ahead, {difference}",
                "pass the time in as an input if the answer must depend on it",
                locate.first_divergence(exam.probe, locate.recorded(exam.probe, exam.inputs), later),
            )
    return passed(f"bit-equal with the clock put ahead {len(_AHEAD)} times, by 5 hours up to 55 years")


def _diverging(exam: Examination) -> Place:
    """Record forwards of an unused model until one differs from the first."""
    probe = exam.unused()
    first = locate.recorded(probe, exam.inputs)
    second = first
    for _ in range(exam.observation.forwards + 1):
        second = locate.recorded(probe, exam.inputs)
        if not compare(first.outputs, second.outputs).identical:
            break
    return locate.first_divergence(exam.probe, first, second)
