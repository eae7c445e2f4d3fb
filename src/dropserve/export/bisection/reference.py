"""The tensors of a graph as they should be: torch's own, and between them those of a fresh export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dropserve.export.comparison import Array

from .eager import Eager
from .explain import constants
from .instrument import HERE, cut, run, watched
from .measure import error

Arrays = Mapping[str, Array]
_OTHER = 0.01  # of the scale: more than rounding by far


@dataclass(frozen=True)
class Reference:
    """Tensors as they should be.

    Attributes:
        eager: the program that says so.
        feeds: its inputs.
        known: tensors by the name that they have in the graph: torch's own values, and between them what a
            fresh export makes of torch's own, where that export is right.
        fresh: the same tensors as a fresh export makes them of those before.
        noise: how far a fresh export may be from torch at each.
        outputs: what the outputs should be.
        trusted: whether a fresh export gives the right outputs.
        tolerance: greatest error of the outputs that counts as none.
        captured: error of the outputs of the operators that the exporter has seen, run by torch.
    """

    eager: Eager
    feeds: Arrays
    known: Arrays
    fresh: Arrays
    noise: Mapping[str, float]
    outputs: Arrays
    trusted: bool
    tolerance: float
    captured: float


def reference(eager: Eager, feeds: Arrays, outputs: Arrays, tolerance: float) -> Reference:
    """Run the eager program and a fresh export of it."""
    values = eager.values(feeds)
    captured = greatest_error(outputs, values)
    fresh = eager.fresh
    actual = run(watched(fresh), feeds)
    shared = {name: values[name] for name in actual if name in values and _alike(values[name], actual[name])}
    trusted = greatest_error(outputs, actual) <= tolerance
    made = run(cut(fresh, shared), {**feeds, **shared})
    local = {name: made[name + HERE] for name in shared}
    if not trusted:
        return Reference(eager, feeds, shared, local, {}, outputs, trusted, tolerance, captured)
    noise = {name: 4 * error(value, local[name]) for name, value in shared.items()}
    # The same name for another tensor: where the outputs are right, so is what the export has.
    known = {name: value for name, value in shared.items() if noise[name] <= 4 * _OTHER}
    known |= constants(fresh) | {name: made[name] for name in actual if name not in shared}
    return Reference(eager, feeds, known, local, noise, outputs, trusted, tolerance, captured)


def greatest_error(expected: Arrays, got: Arrays) -> float:
    """The greatest error of some tensors; infinite if one is missing."""
    return max((error(v, got[k]) if k in got else float("inf") for k, v in expected.items()), default=0.0)


def _alike(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
