"""Bisection of ONNX files: as they are written, and as onnxruntime has optimised them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from dropserve.export.comparison import Array
from dropserve.export.onnx import Level, OnnxProgram

from .capture import find_in_capture
from .eager import Step
from .explain import difference
from .finding import Finding
from .instrument import ancestors, producers, rerun, run, until
from .measure import error, gap
from .placer import Placer
from .reference import Reference, greatest_error
from .search import FLOOR, Search, Suspect, Verdict, first_failing

Arrays = Mapping[str, Array]


def find_in_file(name: str, path: Path, right: Reference, feeds: Arrays | None = None) -> Finding:
    """Bisect a file as it is written.

    Args:
        name: what the finding calls it.
        path: the file.
        right: how its tensors should be.
        feeds: its inputs, if they are others than the reference's.
    """
    model = onnx.load(path)
    given = right.feeds if feeds is None else feeds
    node, message = first_failing(model, given)
    if node is not None:
        return _refused(name, model, right, given, node, message)
    if message:
        return Finding(name, note=f"it does not take these inputs: {message}")
    return _found(name, model, right, given, model)


def _refused(
    name: str, model: ModelProto, right: Reference, feeds: Arrays, node: NodeProto, message: str
) -> Finding:
    """A node that does not run: it is to blame only if all before it is as it should be."""
    before = until(model, node)
    if before.graph.node:
        finding = _found(name, before, right, feeds, before)
        if finding.tensor:
            return replace(finding, note=f"it stops at {_shown(node)}: {message}")
    where = Placer(model, right).where(node.output[0])
    cause = difference(model, right.eager.fresh, node.output[0]) if right.trusted else None
    return Finding(
        name, node.output[0], _shown(node), where, cause="" if cause is None else cause.text, note=message
    )


def find_in_session(name: str, path: Path, level: Level, right: Reference) -> Finding:
    """Bisect what onnxruntime makes of a file at a level of optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        session = OnnxProgram(path, level, optimised=written)
        optimised = onnx.load(written)
    name = f"{name} as onnxruntime optimises it at level {level!r}"
    theirs = session(right.feeds)
    if greatest_error(theirs, run(optimised, right.feeds)) > right.tolerance:
        note = "the graph that onnxruntime saves at this level does not compute what its session computes"
        return Finding(name, note=note)
    finding = _found(name, optimised, right, right.feeds, onnx.load(path))
    if finding.tensor:
        return replace(finding, note="as written, without optimisation, the graph agrees with eager")
    return finding


def _found(name: str, model: ModelProto, right: Reference, feeds: Arrays, original: ModelProto) -> Finding:
    outputs = {k: v for k, v in right.outputs.items() if k in {value.name for value in model.graph.output}}
    search = Search(model, feeds, right.known, outputs, right.noise)
    verdict = search.verdict(right.tolerance, partial(_effect, right))
    if verdict.culprit is None and right.captured > right.tolerance:
        return find_in_capture(name, right.eager, right.feeds)
    if verdict.culprit is None:
        return Finding(name, note=_nothing(search, right))
    return _told(name, model, right, verdict, search, original)


def _effect(right: Reference, suspect: Suspect) -> float:
    """The error of the outputs of a sound graph in which this one tensor is as the suspect makes it."""
    fresh = right.eager.fresh
    try:
        if not right.trusted:
            got = right.eager.values(right.feeds, {suspect.tensor: suspect.got})
        elif suspect.tensor in producers(fresh):
            got = rerun(fresh, right.feeds, {suspect.tensor: suspect.got})
        else:
            return float("inf")  # weights that a node makes: no graph of ours has such a node
    except Exception:  # noqa: BLE001  # what a sound graph cannot even take is as wrong as can be
        return float("inf")
    return greatest_error(right.outputs, got)


def _told(
    name: str, model: ModelProto, right: Reference, verdict: Verdict, search: Search, original: ModelProto
) -> Finding:
    suspect = verdict.culprit
    assert suspect is not None  # noqa: S101  # the caller has looked
    placer = Placer(original, right)
    where, cause = placer.where(suspect.tensor, search), ""
    if model is original:
        where, cause = _explained(model, right, suspect, placer, search)
    elif stands := _stands_for(suspect, original):
        cause = stands
    return Finding(
        graph=name,
        tensor=suspect.tensor,
        node=_shown(suspect.node),
        where=where,
        gap=gap(suspect.expected, suspect.got),
        cause=cause,
        mended=verdict.mended,
        others=tuple(other.tensor for other in verdict.others),
    )


def _explained(
    model: ModelProto, right: Reference, suspect: Suspect, placer: Placer, search: Search
) -> tuple[str, str]:
    """Where a node of a file comes from, and what is wrong with it."""
    tensor = suspect.tensor
    where = placer.where(tensor, search)
    if (step := _skipped(right, suspect, search)) is not None:
        return step.where, f"the graph computes this without {step.operator}"
    if not right.trusted and error(right.fresh[tensor], suspect.got) <= FLOOR:
        return where, "a fresh export does the same: the exporter's own translation is at fault"
    cause = difference(model, right.eager.fresh, tensor)
    if cause is None:
        return where, ""
    return placer.of_cause(tensor, cause, search), cause.text


def _skipped(right: Reference, suspect: Suspect, search: Search) -> Step | None:
    """The operator without which eager would compute what the graph does."""
    eager = right.eager
    known = {name: a for name, a in {**search.feeds, **search.known}.items() if name in eager.nodes}
    for node in eager.region(suspect.tensor, known):
        tensors = [other for other in node.all_input_nodes if other.op in {"call_function", "placeholder"}]
        if not tensors:
            continue
        try:
            without = eager.run_from(suspect.tensor, known, right.feeds, node)
        except Exception:  # noqa: BLE001, S112  # what does not even run without it is not without it
            continue
        if without is not None and error(without, suspect.got) < 4 * FLOOR:
            return eager.step_of(node)
    return None


def _stands_for(suspect: Suspect, original: ModelProto) -> str:
    """The nodes that an optimiser has made one of."""
    behind = ancestors(original, suspect.tensor, [*suspect.node.input])
    makers = producers(original)
    if len(behind) < 2 or suspect.tensor not in makers:
        return ""
    listed = ", ".join(_shown(node) for node in behind[:6]) + (", ..." if len(behind) > 6 else "")
    return f"{suspect.node.op_type} stands for {listed}"


def _nothing(search: Search, right: Reference) -> str:
    """What there is to say when each node by itself does what it should."""
    if not all(np.isfinite(array).all() for array in right.outputs.values()):
        return _first_nan(right)
    worst, growth = "", 1.0
    readers = {name: node for node in search.model.graph.node for name in node.output}
    actual = {name: error(value, search.actual[name]) for name, value in search.known.items()}
    for name, value in actual.items():
        before = max((actual.get(given, 0.0) for given in readers[name].input), default=0.0)
        if value > FLOOR and value > growth * max(before, 1e-7):
            worst, growth = name, value / max(before, 1e-7)
    text = "every node computes what eager computes from the same tensors"
    if not worst:
        return f"{text}, and so does the whole"
    where = Placer(search.model, right).where(worst)
    return f"{text}; rounding grows, most at {worst!r} ({growth:.0f} times), {where}"


def _first_nan(right: Reference) -> str:
    values = right.eager.values(right.feeds)
    first = next((name for name, array in values.items() if not np.isfinite(array).all()), "")
    step = right.eager.step(first)
    where = f", first in {step.operator} of {step.where}" if step is not None else ""
    return f"eager itself gives NaN or infinity on these inputs{where}; the graph does the same"


def _shown(node: NodeProto) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type
