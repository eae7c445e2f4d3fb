"""Calibrated fields of a V1 answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from dropserve.serving.query import Answer, Float
from dropserve.uncertainty.answers import CalibratedClasses, CalibratedValues


def calibration_of(answer: Answer) -> dict[str, Any]:
    """What holds for all rows of a Monte Carlo answer: ``reason`` why nothing is calibrated, or null.

    ``notes`` say where calibration had too few rows for what was asked; ``out_of_distribution`` names the
    score and its threshold.
    """
    found = answer.calibrated
    if found is None:
        return {"reason": answer.uncalibrated}
    document: dict[str, Any] = {"reason": None, "notes": []}
    notes = [found.conformal.note(answer.coverage)]
    if isinstance(found, CalibratedClasses):
        notes.append(found.ood.note())
        ood = found.ood
        document["out_of_distribution"] = {"score": ood.score, "threshold": ood.threshold}
    document["notes"] = [note for note in notes if note is not None]
    return document


def rows_of(answer: Answer, labels: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """``calibrated`` of each row, in order; null where it does not apply."""
    found = answer.calibrated
    if isinstance(found, CalibratedClasses):
        yield from _classes(found, answer.coverage, labels)
    elif isinstance(found, CalibratedValues):
        yield from _values(found, answer.coverage)
    else:
        yield from [None] * len(next(iter(answer.values.values())))


def _classes(found: CalibratedClasses, coverage: int, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The set holds labels, the most probable first; it is empty where no class fits the row."""
    members = found.sets(coverage)
    strange = found.out_of_distribution
    for row, probabilities in enumerate(found.probabilities.tolist()):
        inside = sorted(members[row].nonzero()[0].tolist(), key=lambda k, p=probabilities: -p[k])
        yield {
            "probabilities": dict(zip(labels, probabilities, strict=True)),
            "prediction_set": [labels[k] for k in inside],
            "out_of_distribution": None if found.ood.threshold is None else bool(strange[row]),
            "out_of_distribution_score": float(found.strangeness[row]),
        }


def _values(found: CalibratedValues, coverage: int) -> Iterator[dict[str, Any]]:
    """Standard deviations and the interval, in the unit of the target; an end that is infinite is null."""
    low, high = found.intervals(coverage)
    for row in range(len(low)):
        yield {
            "standard_deviation": _plain(found.total[row]),
            "epistemic": _plain(found.epistemic[row]),
            "aleatoric": _plain(found.aleatoric[row]),
            "interval": [_plain(low[row]), _plain(high[row])],
        }


def _plain(values: Float) -> Any:
    """A lone target is a number, several are a list."""
    numbers = [value if math.isfinite(value) else None for value in values.tolist()]
    return numbers[0] if len(numbers) == 1 else numbers
