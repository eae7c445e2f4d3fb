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
from dropserve.serving.v1_calibrated import calibration_of, rows_of

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
        for prediction, found in zip(document["predictions"], rows_of(answer, labels), strict=True):
            prediction["calibrated"] = found
        if answer.samples is not None:
            for prediction, count in zip(document["predictions"], answer.samples.tolist(), strict=True):
                prediction["uncertainty"]["samples"] = count
        document["calibration"] = calibration_of(answer, labels)
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
