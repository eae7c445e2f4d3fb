"""How right the answers of a lower precision are, beside those of float32."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dropserve.export.comparison import Array
from dropserve.export.settings import Bounds
from dropserve.manifest import Task

_SURE = 0.05


@dataclass
class Accuracy:
    """What was found.

    Attributes:
        words: the figures, and their bound.
        problem: what is out of bounds; empty if nothing is.
        skipped: why nothing was judged; empty if something was.
        pairs: for each kind of answer, the figure in fp32 and the lower precision's.
    """

    words: str = ""
    problem: str = ""
    skipped: str = ""
    pairs: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    @property
    def figures(self) -> dict[str, float]:
        """For ``export.json``."""
        named = {kind: kind.lower().replace(" ", "_") for kind in self.pairs}
        return {
            f"{named[kind]}_{which}": value
            for kind, pair in self.pairs.items()
            for which, value in zip(("fp32", "lowered"), pair, strict=True)
        }


def judge_accuracy(
    task: Task, answers: Mapping[str, tuple[Array, Array]], target: Array | None, bounds: Bounds
) -> Accuracy:
    """Compare how often both are right, or by how much they are off.

    Without a target, classifiers are held to give the same class: float32 stands for the truth.

    Args:
        task: ``classification``, ``regression`` or ``raw``.
        answers: for each kind of answer, those of fp32 and those of the lower precision, [B, ...].
        target: what is true, [at least B] or [at least B, ...]; None if unknown.
        bounds: ``accuracy`` says how much may be lost. Of few rows, a loss is held against a classifier only
            if it is more than chance: an exact sign test of the rows that changed (McNemar 1947), at 5%.
    """
    if task == "raw":
        return Accuracy(skipped="not judged: what raw outputs mean is not known; their parity is bounded")
    found = Accuracy()
    judge_one = _classes if task == "classification" else _values
    parts = [judge_one(kind, *pair, target, bounds, found) for kind, pair in answers.items()]
    found.words = "; ".join(part for part in parts if part)
    if not found.words:
        found.skipped = "not judged: the held-out rows have no target"
    return found


def _classes(
    kind: str, full: Array, lowered: Array, target: Array | None, bounds: Bounds, found: Accuracy
) -> str:
    count = len(full)
    chosen = [array.reshape(count, -1).argmax(axis=-1) for array in (full, lowered)]
    truth = chosen[0] if target is None else target[:count].reshape(-1)
    right = [int((classes == truth).sum()) for classes in chosen]
    found.pairs[kind] = (right[0] / count, right[1] / count)
    what = "agreement with fp32" if target is None else f"accuracy {right[0] / count:.2%} in fp32"
    words = f"{kind}: {what}, {right[1] / count:.2%} now, on {count} rows (bound {bounds.accuracy:.2%} lost)"
    worse, better = (int(((a == truth) & (b != truth)).sum()) for a, b in (chosen, reversed(chosen)))
    lost = worse - better
    if lost > bounds.accuracy * count and _chance(worse, better) < _SURE and not found.problem:
        found.problem = f"{kind}: {lost} of {count} rows lost"
    return words


def _chance(worse: int, better: int) -> float:
    """How probable it is that so many of the changed rows are worse, if each were as likely to be better."""
    changed = worse + better
    return sum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2**changed


def _values(
    kind: str, full: Array, lowered: Array, target: Array | None, bounds: Bounds, found: Accuracy
) -> str:
    if target is None:
        return ""
    truth = target[: len(full)].reshape(len(full), -1).astype(np.float64)
    before, after = (
        float(np.sqrt(np.mean(np.square(array.reshape(truth.shape).astype(np.float64) - truth))))
        for array in (full, lowered)
    )
    found.pairs[kind] = (before, after)
    if after > before * (1 + bounds.accuracy) and not found.problem:
        found.problem = f"{kind}: the error grew by {after / (before or 1.0) - 1:.2%}"
    return (
        f"{kind}: root mean square error {before:.4g} in fp32, {after:.4g} now, on {len(full)} rows (bound "
        f"{bounds.accuracy:.2%} more)"
    )
