"""The same on other inputs than the usual batch: other values, numbers of rows and lengths."""

from __future__ import annotations

from collections.abc import Iterator

from dropserve.export.edge_rows import PATTERNS
from dropserve.export.subject import EDGE_KINDS

from .explain import explain
from .observe import global_digests
from .outcome import BATCH, Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError, Tensors
from .watch import changing_places


def random_state_elsewhere(exam: Examination) -> Outcome:
    """The generators of torch, numpy and Python stand still on every kind, size and length of input."""
    moved = set(exam.observation.moved) & set(global_digests())
    if moved:
        return skipped(f"{', '.join(sorted(moved))} moved on the usual batch already")
    tried = 0
    for name, batch in _variants(exam):
        digests = global_digests()
        before = {which: digest() for which, digest in digests.items()}
        try:
            exam.probe(batch)
        except (ForwardError, OutputError):  # other checks judge what must run
            continue
        tried += 1
        which = next((which for which, digest in digests.items() if digest() != before[which]), None)
        if which is None:
            continue
        places = changing_places(exam.probe, batch, digests[which]) or [exam.probe.placer.root_place()]
        reason = explain(places[0], exam.probe.placer)
        evidence = f"the state of {which}'s generator moves on {name}, though not on {BATCH} ordinary rows"
        return failed(f"{evidence}; {reason.why} ({places[0].source})", reason.remedy, places[0])
    return passed(f"unchanged by forwards of {tried} other kinds, sizes and lengths of input")


def variable_lengths(exam: Examination) -> Outcome:
    """A model that declares variable lengths runs at shorter ones."""
    if not exam.subject.axes:
        return skipped("no input has a variable length")
    tried: list[str] = []
    for lengths in _shorter(exam):
        label = ", ".join(f"{axis}={size}" for axis, size in lengths.items())
        try:
            exam.probe(exam.subject.batch(BATCH, seed=18, lengths=lengths))
        except ForwardError as error:
            return failed(
                f"at {label} the forward raised {error}",
                "take lengths from the input (x.shape[1]) and write none down, or declare a fixed length",
                error.place,
            )
        tried.append(label)
    return passed(f"runs at {'; '.join(tried)}")


def _variants(exam: Examination) -> Iterator[tuple[str, Tensors]]:
    subject = exam.subject
    for kind in subject.kinds:
        if kind not in EDGE_KINDS:
            yield f"{kind} input", subject.batch(BATCH, seed=19, kind=kind)
    for kind, batch in subject.edge_batches(len(PATTERNS)):
        yield f"{kind} input", batch
    for size in exam.settings.batch_sizes:
        yield f"a batch of {size}", subject.batch(size, seed=20)
    for lengths in _shorter(exam):
        label = ", ".join(f"{axis}={size}" for axis, size in lengths.items())
        yield f"input of {label}", subject.batch(BATCH, seed=21, lengths=lengths)


def _shorter(exam: Examination) -> list[dict[str, int]]:
    """Half of every greatest length, and 1."""
    axes = exam.subject.axes
    shorter = [{axis: max(1, size // 2) for axis, size in axes.items()}, dict.fromkeys(axes, 1)]
    return [lengths for index, lengths in enumerate(shorter) if lengths not in (axes, *shorter[:index])]
