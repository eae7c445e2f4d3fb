"""Open Inference Protocol V2: JSON, or JSON followed by binary tensors.

Outputs by task. Classification: ``label`` (BYTES), ``probabilities``; Monte Carlo adds
``standard_deviation``, ``predictive_entropy``, ``expected_entropy``, ``mutual_information`` and
``variation_ratio``. Regression: ``value``, and ``standard_deviation`` over samples; with a heteroscedastic
head ``noise_standard_deviation`` too. Any other task: the model's own
outputs, and with Monte Carlo ``NAME.standard_deviation``. ``standard_error`` is there when there were
samples enough to tell, ``samples`` when there was a tolerance. A calibrated version adds
``calibrated_probabilities``, ``prediction_set`` (BOOL, by class), ``out_of_distribution`` and its score; or
``calibrated_standard_deviation``, ``epistemic``, ``aleatoric``, ``interval_low`` and ``interval_high``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.errors import RequestError
from dropserve.manifest import VersionManifest
from dropserve.serving.instances import describe, quote
from dropserve.serving.parameters import effective
from dropserve.serving.pictures import BYTES, Pictures
from dropserve.serving.query import Answer, Array
from dropserve.serving.table_tensors import check_names, read_columns
from dropserve.serving.tables import TableReader
from dropserve.serving.tensors import (
    DATATYPES,
    Gaps,
    Tensor,
    check_datatype,
    from_bytes,
    from_json,
    read_shape,
    to_bytes,
    to_json,
)
from dropserve.signature import TensorSpec
from dropserve.uncertainty.answers import CalibratedClasses, CalibratedValues

JSON_LENGTH = "Inference-Header-Content-Length"
_DOUBT = ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio")


@dataclass(frozen=True)
class Wanted:
    """What a request asks of its answer.

    Attributes:
        id: echoed; None if there was none.
        outputs: names asked for, with whether each shall be binary; empty means all.
        binary: whether outputs are binary unless they say otherwise.
    """

    id: str | None
    outputs: Mapping[str, bool]
    binary: bool


def decode(
    document: Mapping[str, Any],
    binary: bytes,
    manifest: VersionManifest,
    pictures: Pictures,
    table: TableReader | None,
) -> tuple[dict[str, Array], dict[str, Any], Wanted]:
    """Inputs, parameters and wishes of a request.

    Args:
        document: its JSON.
        binary: what followed the JSON.
        manifest: of the model.
        pictures: reads the images in it.
        table: reads its rows, if they are a table's.

    Raises:
        RequestError: if it is not of the form, or does not fit the model.
    """
    parameters = _object(document.get("parameters", {}), '"parameters"')
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        _refuse("form", f'"id" is {describe(identity)}; expected a string')
    wanted = _wanted(document, parameters, identity)
    given = _by_name(document.get("inputs"), "inputs")
    if table is not None and table.has_categories:
        return {table.spec.name: _columns(given, binary, table)}, parameters, wanted
    specs = {spec.name: spec for spec in manifest.signature.inputs}
    gaps = None if table is None else table.gaps
    if set(given) != set(specs):
        came = ", ".join(map(quote, given)) or "none"
        _refuse("input_name", f"inputs are {came}; expected {', '.join(specs)}")
    inputs: dict[str, Array] = {}
    lengths: dict[str, int] = {}
    position = 0
    for name, entry in given.items():  # binary tensors stand in the order of the request
        inputs[name], position = _input(entry, specs[name], lengths, binary, position, pictures, gaps)
    _require_all(binary, position)
    if len({len(array) for array in inputs.values()}) > 1:
        rows = ", ".join(f"{name}: {len(array)}" for name, array in inputs.items())
        _refuse("shape", f"rows of the inputs differ ({rows}); expected the same number for each")
    return inputs, parameters, wanted


def _input(
    entry: Mapping[str, Any],
    spec: TensorSpec,
    lengths: dict[str, int],
    binary: bytes,
    position: int,
    pictures: Pictures,
    gaps: Gaps,
) -> tuple[Array, int]:
    raw, position = _binary(entry, spec.name, binary, position)
    if entry.get("datatype") == BYTES and pictures.are_for(spec.name):
        return pictures.read_tensor(entry, raw, spec), position
    check_datatype(entry.get("datatype"), spec)
    shape = read_shape(entry.get("shape"), spec, lengths)
    if raw is None:
        return from_json(entry["data"], shape, spec, gaps), position
    return from_bytes(raw, shape, spec, gaps), position


def _columns(given: Mapping[str, Mapping[str, Any]], binary: bytes, table: TableReader) -> Array:
    check_names(given, table)
    raw: dict[str, bytes | None] = {}
    position = 0
    for name, entry in given.items():
        raw[name], position = _binary(entry, name, binary, position)
    _require_all(binary, position)
    return read_columns(given, raw, table)


def _require_all(binary: bytes, position: int) -> None:
    if position != len(binary):
        _refuse("form", f"{len(binary)} bytes follow the JSON; the inputs account for {position}")


def _binary(entry: Mapping[str, Any], name: str, binary: bytes, position: int) -> tuple[bytes | None, int]:
    """The bytes of an input and where they end; None if its data stand in the JSON."""
    size = _object(entry.get("parameters", {}), f"parameters of input {name}").get("binary_data_size")
    if size is None:
        if "data" not in entry:
            _refuse("form", f"input {name} has neither data nor binary_data_size")
        return None, position
    if "data" in entry:
        _refuse("form", f"input {name} has both data and binary_data_size; expected one of them")
    if type(size) is not int or not 0 <= size <= len(binary) - position:
        _refuse(
            "form",
            f"input {name}: binary_data_size is {describe(size)}; {len(binary) - position} bytes are "
            f"left after the JSON (the header {JSON_LENGTH} says where it ends)",
        )
    return binary[position : position + size], position + size


def _wanted(document: Mapping[str, Any], parameters: Mapping[str, Any], identity: str | None) -> Wanted:
    binary = _flag(parameters, "binary_data_output", default=False)
    outputs: dict[str, bool] = {}
    if document.get("outputs") is not None:
        for name, entry in _by_name(document["outputs"], "outputs").items():
            own = _object(entry.get("parameters", {}), f"parameters of output {name}")
            if "classification" in own:
                _refuse("form", f"output {name}: the classification extension is not offered; read label")
            outputs[name] = _flag(own, "binary_data", default=binary)
    return Wanted(identity, outputs, binary)


def _by_name(entries: Any, what: str) -> dict[str, Mapping[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        _refuse("form", f'"{what}" is {describe(entries)}; expected a list of objects, each with a name')
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str):
            _refuse("form", f'a name in "{what}" is {describe(name)}; expected a string')
        if name in found:
            _refuse("form", f'{quote(name)} stands twice in "{what}"')
        found[name] = entry
    return found


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse("parameters", f"{name} is {describe(value)}; expected true or false")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse("form", f"{what} is {describe(value)}; expected an object")
    return value


def encode(
    answer: Answer, wanted: Wanted, manifest: VersionManifest, labels: Sequence[str], endpoint: str
) -> tuple[dict[str, Any], bytes]:
    """The JSON of an answer, and the binary tensors that follow it.

    Raises:
        RequestError: if an output was asked for that there is not.
    """
    tensors = outputs(answer, manifest, labels)
    names = list(wanted.outputs) or list(tensors)
    entries: list[dict[str, Any]] = []
    binary = bytearray()
    for name in names:
        if name not in tensors:
            _refuse("output_name", f"there is no output {quote(name)}; expected {', '.join(tensors)}")
        values = tensors[name]
        if isinstance(values, list):
            entry: dict[str, Any] = {"name": name, "shape": [len(values)], "datatype": "BYTES"}
        else:
            entry = {"name": name, "shape": list(values.shape), "datatype": DATATYPES[values.dtype.name]}
        if wanted.outputs.get(name, wanted.binary):
            raw = to_bytes(values)
            entry["parameters"] = {"binary_data_size": len(raw)}
            binary += raw
        else:
            entry["data"] = to_json(values)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": endpoint, "model_version": str(manifest.version)}
    if wanted.id is not None:
        document["id"] = wanted.id
    if answer.settings is not None:
        document["parameters"] = effective(answer)
        if answer.uncalibrated is not None:
            document["parameters"]["uncalibrated"] = answer.uncalibrated
        if answer.calibrated is not None and (notes := answer.calibrated.notes(answer.coverage, labels)):
            document["parameters"]["calibration_notes"] = "; ".join(notes)
    return {**document, "outputs": entries}, bytes(binary)


def outputs(answer: Answer, manifest: VersionManifest, labels: Sequence[str]) -> dict[str, Tensor]:
    """All outputs of an answer by name."""
    found: dict[str, Tensor] = {}
    for name, values in answer.values.items():
        statistics = None if answer.statistics is None else answer.statistics[name]
        prefix = ""
        if manifest.task == "classification":
            found["label"] = [str(labels[i]) for i in values.argmax(axis=-1)]
            found["probabilities"] = values
        elif manifest.task == "regression":
            found["value"] = values
            if name in answer.noise:
                found["noise_standard_deviation"] = answer.noise[name]
        else:
            prefix = f"{name}."
            found[name] = values.astype(_dtype(manifest, name)) if statistics is None else values
        if statistics is None:
            continue
        found[f"{prefix}standard_deviation"] = statistics.std.reshape(values.shape)
        if statistics.standard_error is not None:
            found[f"{prefix}standard_error"] = statistics.standard_error.reshape(values.shape)
        if isinstance(statistics, ClassificationStatistics):
            found |= {key: getattr(statistics, key) for key in _DOUBT}
    if answer.samples is not None:
        found["samples"] = answer.samples
    return found | _calibrated(answer)


def _calibrated(answer: Answer) -> dict[str, Tensor]:
    """What calibration adds; sets and intervals are left out where its rows do not support the coverage."""
    found = answer.calibrated
    tensors: dict[str, Tensor] = {}
    if found is not None and found.detected is not None:
        tensors["out_of_distribution_score"] = found.detected.values
        if found.detected.ood.threshold is not None:
            tensors["out_of_distribution"] = found.detected.flags
    if isinstance(found, CalibratedClasses):
        tensors["calibrated_probabilities"] = found.probabilities
        if (sets := found.sets(answer.coverage)) is not None:
            tensors["prediction_set"] = sets
    if not isinstance(found, CalibratedValues):
        return tensors
    tensors["calibrated_standard_deviation"] = found.total
    tensors["epistemic"] = found.epistemic
    tensors["aleatoric"] = found.aleatoric
    if (ends := found.intervals(answer.coverage)) is not None:
        tensors["interval_low"], tensors["interval_high"] = ends
    return tensors


def _dtype(manifest: VersionManifest, name: str) -> np.dtype[np.generic]:
    return next(spec.numpy_dtype for spec in manifest.signature.outputs if spec.name == name)


def _refuse(reason: str, message: str) -> NoReturn:
    raise RequestError(message, reason=reason)
