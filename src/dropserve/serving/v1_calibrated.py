"""Calibrated fields of a V1 answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dropserve.serving.query import Answer, Float
from dropserve.uncertainty.answers import CalibratedClasses, CalibratedValues


def calibration_of(answer: Answer, labels: Sequence[str]) -> dict[str, Any]:
    """What holds for all rows of a Monte Carlo answer: ``reason`` why nothing is calibrated, or null.

    ``notes`` say what few calibration rows mean for the answer; ``out_of_distribution`` names the
    score and its threshold. A row that is flagged says why in ``out_of_distribution_reason``.
    """
    found = answer.calibrated
    if found is None:
        return {"reason": answer.uncalibrated}
    document: dict[str, Any] = {"reason": None, "notes": found.notes(answer.coverage, labels)}
    if found.detected is not None:
        ood = found.detected.ood
        if (meaning := ood.meaning()) is not None:
            document["notes"].append(meaning)
        document["out_of_distribution"] = {"score": ood.score, "threshold": ood.threshold}
    return document


def rows_of(answer: Answer, labels: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """``calibrated`` of each row, in order; null where it does not apply."""
    found = answer.calibrated
    if isinstance(found, CalibratedClasses):
        yield from _classes(found, answer, labels)
    elif isinstance(found, CalibratedValues):
        yield from _values(found, answer.coverage)
    else:
        yield from [None] * len(next(iter(answer.values.values())))


def _classes(found: CalibratedClasses, answer: Answer, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The set holds labels, the most probable first, and at least that one.

    The order is that of the uncalibrated probabilities, which the label is taken from: calibrated ones may
    be rounded to equals. Without the calibration rows for the coverage the set is null.
    """
    members = found.sets(answer.coverage)
    (mean,) = answer.values.values()
    order = (-mean).argsort(axis=1, kind="stable")
    detected = found.detected.rows()
    for row, probabilities in enumerate(found.probabilities.tolist()):
        yield {
            "probabilities": dict(zip(labels, probabilities, strict=True)),
            "prediction_set": None
            if members is None
            else [labels[k] for k in order[row].tolist() if members[row, k]],
            **detected[row],
        }


def _values(found: CalibratedValues, coverage: int) -> Iterator[dict[str, Any]]:
    """Standard deviations and the interval, in the unit of the target.

    Without the calibration rows for the coverage the interval is null.
    """
    ends = found.intervals(coverage)
    detected = None if found.detected is None else found.detected.rows()
    for row in range(len(found.total)):
        yield {
            "standard_deviation": _plain(found.total[row]),
            "epistemic": _plain(found.epistemic[row]),
            "aleatoric": _plain(found.aleatoric[row]),
            "interval": None if ends is None else [_plain(end[row]) for end in ends],
            **(detected[row] if detected else {}),
        }


def _plain(values: Float) -> Any:
    """A lone target is a number, several are a list."""
    numbers: list[float] = values.tolist()
    return numbers[0] if len(numbers) == 1 else numbers
