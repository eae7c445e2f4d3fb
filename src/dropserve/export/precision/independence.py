"""Does a row's answer depend on that row alone, in graphs of a lower precision?

Scales that are taken from the batch fail here: large batch-mates change them. Everything else keeps its bits,
since the same row stands at the same place of a batch of the same size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dropserve.dropout.masks import draw
from dropserve.dropout.rows import ALONE, QUANTUM, measure_quantum
from dropserve.export.artefacts import HEAD, MODEL, TRUNK, Artefacts
from dropserve.export.cases import magnitude
from dropserve.export.comparison import Array
from dropserve.export.onnx import OnnxProgram

from .rows import Rows, cut, lengths_of, variants

_BATCH = 9
_PLACES = (0, 4, 8)  # first, middle, last: kernels treat the last rows of a batch apart
_SEED = 23


def rows_are_independent(made: Artefacts, rows: Rows) -> tuple[str, str]:
    """Whether a row keeps its bits among other, larger and NaN batch-mates, in each graph.

    Returns:
        What is wrong (empty if nothing is), and what was tried.
    """
    index = np.arange(_BATCH) % len(rows)
    inputs = {name: array[index] for name, array in rows.inputs.items()}
    tried = 0
    for part, fed in _feeds(made, inputs):
        program = OnnxProgram(made.paths[part])
        usual = program(fed)
        for place in _PLACES:
            for kind, mates in _mates(fed, place):
                try:
                    got = program(mates)
                except Exception:  # noqa: BLE001, S112  # a graph may refuse numbers that are far from ordinary
                    continue
                tried += 1
                for name, array in usual.items():
                    one, other = array[place], got[name][place]
                    if one.tobytes() != other.tobytes():
                        share = magnitude(one - other) / (magnitude(array) or 1.0)
                        return (
                            f"{part}: row {place} with {kind} batch-mates moves {name} by {share:.2g} of its "
                            "scale: a scale is taken from the batch"
                        ), ""
    return "", f"{tried} runs: other, large and NaN batch-mates do not change a bit of a row"


def row_quanta(reference: Artefacts, rows: Rows) -> dict[str, int]:
    """For each float32 graph, the least quantum of rows; a lower precision hides why it needs one.

    Where calls of any number of rows give the same bits that is 1. Anything else counts as the largest.

    Args:
        reference: the float32 graphs.
        rows: for shapes, at several lengths where those vary.
    """
    found: dict[str, int] = {}
    for lengths in variants(reference.signature, rows):
        few = cut(reference.signature, rows.take(np.arange(_BATCH) % len(rows)), lengths)
        for part, fed in _feeds(reference, dict(few.inputs)):
            quantum = measure_quantum(OnnxProgram(reference.paths[part]), fed)
            both = {quantum, found.get(part, 1)}
            found[part] = ALONE if ALONE in both else (1 if both == {1} else QUANTUM)
    return found


def _feeds(made: Artefacts, inputs: dict[str, Array]) -> Iterator[tuple[str, dict[str, Array]]]:
    yield MODEL, inputs
    if not made.sites:
        return
    fixed = dict(inputs)
    if TRUNK in made.paths:
        yield TRUNK, inputs
        fixed |= OnnxProgram(made.paths[TRUNK])(inputs)
    drawn = draw(made.sites, _BATCH, seed=_SEED)
    lengths = lengths_of(made.signature, inputs)
    masks = {
        spec.name: drawn[spec.name][:, *(slice(size) for size in spec.sized(lengths))] for spec in made.masks
    }
    head = OnnxProgram(made.paths[HEAD])
    yield HEAD, {name: array for name, array in {**fixed, **masks}.items() if name in head.inputs}


def _mates(fed: Mapping[str, Array], place: int) -> Iterator[tuple[str, dict[str, Array]]]:
    """Batches in which one row is as it was."""
    for kind, change in (("other", _turned), ("large", _enlarged), ("NaN", _nan)):
        batch = {name: np.ascontiguousarray(change(array)) for name, array in fed.items()}
        for name, array in batch.items():
            array[place] = fed[name][place]
        yield kind, batch


def _enlarged(array: Array) -> Array:
    return array * 100 if array.dtype.kind == "f" else np.flip(array, axis=0)


def _nan(array: Array) -> Array:
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array.copy()


def _turned(array: Array) -> Array:
    return np.flip(array, axis=0)
