"""KServe V1 JSON: ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dropserve.dropout.statistics import ClassificationStatistics, RegressionStatistics
from dropserve.errors import RequestError
from dropserve.manifest import VersionManifest
from dropserve.serving.instances import describe, quote
from dropserve.serving.parameters import NAMES, effective
from dropserve.serving.query import Answer, Array, Float
from dropserve.uncertainty.answers import CalibratedClasses, CalibratedValues

_KEYS = ("instances", "parameters")


def decode(
    document: Mapping[str, Any], form: str, read: Callable[[Any], dict[str, Array]]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Inputs and parameters of a request.

    Args:
        document: its JSON.
        form: of ``instances``, in words.
        read: turns ``instances`` into the arrays of a batch.

    Raises:
        RequestError: if the document is not of the form.
    """
    if "instances" not in document:
        raise RequestError(f'"instances" is missing; expected {{"instances": {form}}}', reason="form")
    if unknown := [key for key in document if key not in _KEYS]:
        raise RequestError(f"unknown key {quote(unknown[0])}; expected {', '.join(_KEYS)}", reason="form")
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(
            f'"parameters" is {describe(parameters)}; expected an object such as {{"mc_samples": 50}}',
            reason="parameters",
        )
    if unknown := [name for name in parameters if name not in NAMES]:
        raise RequestError(
            f"unknown parameter {quote(unknown[0])}; expected {', '.join(NAMES)}", reason="parameters"
        )
    return read(document["instances"]), parameters


def encode(answer: Answer, manifest: VersionManifest, labels: Sequence[str]) -> dict[str, Any]:
    """The document that answers a request.

    Classification: ``label`` and ``probabilities`` by label. Regression: ``value``, a number or a list; with
    a heteroscedastic head ``standard_deviation`` of the noise too, and with Monte Carlo in ``uncertainty``
    ``aleatoric`` and ``total``.
    Any other task: ``outputs`` by name. Monte Carlo adds ``uncertainty`` and ``calibrated`` to each
    prediction, what that rests on as ``calibration``, and the effective settings as ``parameters``.
    """
    if manifest.task == "classification":
        predictions = _classes(answer, labels)
    elif manifest.task == "regression":
        predictions = _values(answer)
    else:
        predictions = _outputs(answer)
    document: dict[str, Any] = {"predictions": list(predictions)}
    if answer.settings is not None:
        for prediction, found in zip(document["predictions"], _calibrated_rows(answer, labels), strict=True):
            prediction["calibrated"] = found
        if answer.samples is not None:
            for prediction, count in zip(document["predictions"], answer.samples.tolist(), strict=True):
                prediction["uncertainty"]["samples"] = count
        document["calibration"] = _calibration(answer, labels)
        document["parameters"] = effective(answer)
    return document


def _classes(answer: Answer, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    ((name, values),) = answer.values.items()
    statistics = answer.statistics and answer.statistics[name]
    best = values.argmax(axis=-1).tolist()
    for row, probabilities in enumerate(values.tolist()):
        found: dict[str, Any] = {
            "label": labels[best[row]],
            "probabilities": dict(zip(labels, probabilities, strict=True)),
        }
        if isinstance(statistics, ClassificationStatistics):
            found["uncertainty"] = _doubt(statistics, row, labels)
        yield found


def _doubt(statistics: ClassificationStatistics, row: int, labels: Sequence[str]) -> dict[str, Any]:
    s = statistics
    error: dict[str, Any] | None = None
    if (
        s.standard_error is not None
        and s.predictive_entropy_error is not None
        and s.mutual_information_error is not None
    ):
        error = {
            "probabilities": _by_label(s.standard_error, row, labels),
            "predictive_entropy": float(s.predictive_entropy_error[row]),
            "mutual_information": float(s.mutual_information_error[row]),
        }
    return {
        "predictive_entropy": float(s.predictive_entropy[row]),
        "expected_entropy": float(s.expected_entropy[row]),
        "mutual_information": float(s.mutual_information[row]),
        "variation_ratio": float(s.variation_ratio[row]),
        "standard_deviation": _by_label(s.std, row, labels),
        "standard_error": error,
    }


def _by_label(values: Float, row: int, labels: Sequence[str]) -> dict[str, float]:
    return dict(zip(labels, values[row].tolist(), strict=True))


def _values(answer: Answer) -> Iterator[dict[str, Any]]:
    """Regression has one output; a lone target is a number, several are a list."""
    ((name, values),) = answer.values.items()
    statistics = answer.statistics and answer.statistics[name]
    lone = values[0].size == 1
    noise = answer.noise.get(name)
    for row in range(len(values)):
        found: dict[str, Any] = {"value": _plain(values[row], lone=lone)}
        if noise is not None and statistics is None:
            found["standard_deviation"] = _plain(noise[row], lone=lone)
        if isinstance(statistics, RegressionStatistics):
            error = statistics.standard_error
            found["uncertainty"] = {
                "standard_deviation": _plain(statistics.std[row].reshape(values[row].shape), lone=lone),
                "standard_error": error
                if error is None
                else _plain(error[row].reshape(values[row].shape), lone=lone),
            }
            if noise is not None:
                total = np.hypot(noise[row], statistics.std[row])
                found["uncertainty"] |= {
                    "aleatoric": _plain(noise[row], lone=lone),
                    "total": _plain(total, lone=lone),
                }
        yield found


def _plain(value: Float, *, lone: bool) -> Any:
    return float(value.reshape(())) if lone else value.tolist()


def _outputs(answer: Answer) -> Iterator[dict[str, Any]]:
    rows = len(next(iter(answer.values.values())))
    for row in range(rows):
        found: dict[str, Any] = {"outputs": {name: a[row].tolist() for name, a in answer.values.items()}}
        if answer.statistics is not None:
            spread: dict[str, Any] = {}
            error: dict[str, Any] = {}
            for name, statistics in answer.statistics.items():
                shape = answer.values[name].shape[1:]
                spread[name] = statistics.std[row].reshape(shape).tolist()
                errors = statistics.standard_error
                error[name] = None if errors is None else errors[row].reshape(shape).tolist()
            found["uncertainty"] = {"standard_deviation": spread, "standard_error": error}
        yield found


def _calibration(answer: Answer, labels: Sequence[str]) -> dict[str, Any]:
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


def _calibrated_rows(answer: Answer, labels: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """``calibrated`` of each row, in order; null where it does not apply."""
    found = answer.calibrated
    if isinstance(found, CalibratedClasses):
        yield from _calibrated_classes(found, answer, labels)
    elif isinstance(found, CalibratedValues):
        yield from _calibrated_values(found, answer.coverage)
    else:
        yield from [None] * len(next(iter(answer.values.values())))


def _calibrated_classes(
    found: CalibratedClasses, answer: Answer, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
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


def _calibrated_values(found: CalibratedValues, coverage: int) -> Iterator[dict[str, Any]]:
    """Standard deviations and the interval, in the unit of the target.

    Without the calibration rows for the coverage the interval is null.
    """
    ends = found.intervals(coverage)
    detected = None if found.detected is None else found.detected.rows()
    lone = found.total.shape[1] == 1
    for row in range(len(found.total)):
        yield {
            "standard_deviation": _plain(found.total[row], lone=lone),
            "epistemic": _plain(found.epistemic[row], lone=lone),
            "aleatoric": _plain(found.aleatoric[row], lone=lone),
            "interval": None if ends is None else [_plain(end[row], lone=lone) for end in ends],
            **(detected[row] if detected else {}),
        }
