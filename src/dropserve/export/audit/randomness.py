"""Does an eval-mode forward draw random numbers: from any generator, by any operator."""

from __future__ import annotations

from . import generators
from .explain import explain
from .observe import global_digests
from .optrace import Operation
from .outcome import Examination, Outcome, failed, passed
from .places import Place
from .watch import changing_places

_NAMES = {
    "torch": "torch's default generators (CPU, and CUDA or MPS where in use)",
    "numpy": "numpy's global generator",
    "python": "Python's random module",
}


def torch_random_state(exam: Examination) -> Outcome:
    """The state of torch's generators does not move."""
    return _global(exam, "torch")


def numpy_random_state(exam: Examination) -> Outcome:
    """The state of numpy's global generator does not move."""
    return _global(exam, "numpy")


def python_random_state(exam: Examination) -> Outcome:
    """The state of Python's ``random`` does not move."""
    return _global(exam, "python")


def private_random_state(exam: Examination) -> Outcome:
    """No generator object that the model holds moves."""
    names = set(generators.private_generators(exam.probe.module))
    moved = sorted(set(exam.observation.moved) - set(_NAMES))
    if not moved:
        if not names:
            return passed("the model holds no generator of its own")
        return passed(
            f"{len(names)} generators of the model's own did not move in {exam.observation.looked} forwards"
        )
    digest = generators.private_generators(exam.probe.module).get(moved[0])
    places = changing_places(exam.probe, exam.inputs, digest) if digest is not None else []
    return _random(exam, f"{', '.join(moved)} moved in {_share(exam, moved[0])}", places)


def random_operators(exam: Examination) -> Outcome:
    """No operator that torch tags as random runs with its flag on."""
    trace = exam.trace
    found = [operation for operation in trace.operations if operation.random]
    if not found:
        return passed(f"none among {len(trace.operations)} operators that ran")
    counts = ", ".join(sorted({f"{op.name} on {list(op.shapes[0])}" for op in found if op.shapes}))
    places = list({op.place.key: op.place for op in sorted(found, key=_preparation)}.values())
    return _random(exam, f"{len(found)} of {len(trace.operations)} operators are random: {counts}", places)


def _preparation(operation: Operation) -> bool:
    return any(name.endswith("__init__") for name in operation.place.through)


def _global(exam: Examination, which: str) -> Outcome:
    seen = exam.observation
    if which not in seen.moved:
        return passed(f"{_NAMES[which]}: state unchanged by {seen.looked} forwards")
    places = changing_places(exam.probe, exam.inputs, global_digests()[which])
    if which == "torch":
        places = _deepen(exam, places)
    return _random(exam, f"{_NAMES[which]}: state moved in {_share(exam, which)}", places)


def _deepen(exam: Examination, places: list[Place]) -> list[Place]:
    """The same lines, with torch's functions between line and operator, which explain better."""
    recorded = {
        (op.place.file, op.place.line): op.place for op in reversed(exam.trace.operations) if op.random
    }
    return [recorded.get((place.file, place.line), place) for place in places]


def _random(exam: Examination, evidence: str, places: list[Place]) -> Outcome:
    seen = exam.observation
    if seen.random:
        evidence += f"; two forwards of the same rows: {seen.difference}"
    if not places:
        return failed(
            f"{evidence}; no single line could be caught doing it",
            "draw no numbers in eval mode",
            exam.probe.placer.root_place(),
        )
    reason = explain(places[0], exam.probe.placer)
    others = list({place.key: place for place in places[1:] if place.key != places[0].key}.values())
    if others:
        evidence += f"; also at {', '.join(map(str, others[:3]))}"
    quoted = f" ({places[0].source})" if places[0].source else ""
    return failed(f"{evidence}; {reason.why}{quoted}", reason.remedy, places[0])


def _share(exam: Examination, name: str) -> str:
    return f"{exam.observation.moved[name]} of {exam.observation.looked} forwards"
