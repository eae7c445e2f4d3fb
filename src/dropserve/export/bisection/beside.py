"""Two recordings of one computation, side by side: what eager does on the inputs that fail, and the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from dropserve.export.comparison import Array

from .explain import weights
from .finding import Finding
from .measure import Gap, error, gap

EXACT = 1e-6  # of a tensor's scale: the same kernels compute both


@dataclass(frozen=True)
class Value:
    """One tensor of a recording.

    Attributes:
        operator: such as ``aten::relu``.
        name: of the tensor.
        line: the line of code behind it, as recorded; empty if that is not known.
        where: module, file and line of the user's code.
        array: its content.
        settings: the constants that the operator takes.
        reads: names of the weights that it takes.
    """

    operator: str
    name: str
    line: str
    where: str
    array: Array
    settings: tuple[Any, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """The tensors of a computation in the order in which they are made, and its weights by name."""

    values: Sequence[Value]
    weights: Mapping[str, Array]


def first_difference(name: str, ours: Recording, theirs: Recording, other: str) -> Finding:
    """The first tensor that differs, and whether the operators before it do.

    Args:
        name: what the finding calls the graph.
        ours: what eager does.
        theirs: what the graph does.
        other: what the graph is called beside eager.
    """
    only: tuple[Sequence[Value], Sequence[Value]] | None = None
    for mine, its in _aligned(ours.values, theirs.values):
        pair = (mine[0], its[0]) if len(mine) == len(its) == 1 else None
        if pair is None or pair[0].operator != pair[1].operator:
            only = (mine, its)
        elif error(pair[0].array, pair[1].array) <= EXACT:
            only = None  # other operators, the same values
        elif only is not None:
            return _other_operators(name, pair, only, other)
        else:
            return _told(name, pair, pair[0].where, _cause(*pair, ours.weights, theirs.weights))
    if only is not None:
        return _other_operators(name, None, only, other)
    return Finding(name, note=f"every tensor of {other} is what eager has on these inputs")


def _aligned(ours: Sequence[Value], theirs: Sequence[Value]) -> list[tuple[Sequence[Value], Sequence[Value]]]:
    """Pairs of values that belong together, and between them what only one of the two has."""

    def with_line(value: Value) -> tuple[object, ...]:
        return value.operator, value.reads, value.line

    def without(value: Value) -> tuple[object, ...]:
        return value.operator, value.reads

    matchers = [
        SequenceMatcher(None, [key(v) for v in ours], [key(v) for v in theirs], autojunk=False)
        for key in (with_line, without)  # a file may have lost its lines
    ]
    best = max(matchers, key=lambda matcher: sum(block.size for block in matcher.get_matching_blocks()))
    found: list[tuple[Sequence[Value], Sequence[Value]]] = []
    for tag, i, end, j, until in best.get_opcodes():
        if tag == "equal":
            found += [([a], [b]) for a, b in zip(ours[i:end], theirs[j:until], strict=True)]
        else:
            found.append((ours[i:end], theirs[j:until]))
    return found


def _other_operators(
    name: str,
    pair: tuple[Value, Value] | None,
    only: tuple[Sequence[Value], Sequence[Value]],
    other: str,
) -> Finding:
    """Operators that only one of the two has, and behind them the first tensor that both have."""
    ours, theirs = only
    cause = f"eager runs {_listed(ours)} here, {other} {_listed(theirs)}"
    if len(ours) == len(theirs):
        pair = (ours[-1], theirs[-1])
    if pair is None:
        last = (theirs or ours)[-1]
        return Finding(name, last.name, last.operator, (ours or theirs)[0].where, Gap(float("inf")), cause)
    return _told(name, pair, (ours or theirs)[0].where, cause)


def _told(name: str, pair: tuple[Value, Value], where: str, cause: str) -> Finding:
    mine, its = pair
    return Finding(name, its.name, its.operator, where, gap(mine.array, its.array), cause)


def _cause(mine: Value, its: Value, right: Mapping[str, Array], got: Mapping[str, Array]) -> str:
    """What is different about an operator: its weights or its settings."""
    for key in mine.reads:
        if key in right and key in got and (text := weights(right[key], got[key])):
            return f"{key.removeprefix('model.')!r} {text}"
    if mine.settings != its.settings:
        return f"{mine.operator} is called with {_settled(its)} where eager has {_settled(mine)}"
    return ""


def _settled(value: Value) -> str:
    return f"({', '.join(map(str, value.settings))})"[:120]


def _listed(values: Sequence[Value]) -> str:
    listed = ", ".join(value.operator for value in values[:4]) + (", ..." if len(values) > 4 else "")
    return listed or "nothing"
