"""What the Open Inference Protocol's metadata says of a server and of a model."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from dropserve.errors import ServerError
from dropserve.serving.loaded import Loaded
from dropserve.serving.table_tensors import describe_columns
from dropserve.serving.tables import table_reader
from dropserve.serving.tensors import DATATYPES
from dropserve.serving.v2 import outputs
from dropserve.signature import Axis, TensorSpec

EXTENSIONS = ("binary_tensor_data", "mc_dropout")


def describe_server() -> dict[str, Any]:
    """The answer to ``GET /v2``."""
    return {"name": "dropserve", "version": metadata.version("dropserve"), "extensions": list(EXTENSIONS)}


def describe_model(endpoint: str, loaded: Loaded) -> dict[str, Any]:
    """The answer to ``GET /v2/models/NAME``.

    Outputs are those of an answer at default settings: which there are depends on the calibration of the
    version, so the example row is asked.

    Raises:
        ServerError: if the model fails on its example row.
    """
    manifest = loaded.predictor.manifest
    call = loaded.codec.decode(loaded.predictor.example())
    (answer,) = loaded.predictor.answer([call.query])
    if isinstance(answer, Exception):
        raise ServerError(f"it fails on its own example row: {answer}") from answer
    found: list[dict[str, Any]] = []
    for name, values in outputs(answer, manifest, loaded.codec.labels).items():
        if isinstance(values, list):
            found.append({"name": name, "datatype": "BYTES", "shape": [-1]})
            continue
        # Those of a model with a task are vectors of its own making; others have the shapes of the graph's.
        own = next((s for s in manifest.signature.outputs if f"{name}.".startswith(f"{s.name}.")), None)
        shape = [-1, *values.shape[1:]] if own is None else _shape(own)
        found.append({"name": name, "datatype": DATATYPES[values.dtype.name], "shape": shape})
    table = table_reader(manifest)
    inputs = (
        describe_columns(table)
        if table is not None and table.has_categories
        else [
            {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": _shape(spec)}
            for spec in manifest.signature.inputs
        ]
    )
    return {
        "name": endpoint,
        "versions": [str(manifest.version)],
        "platform": loaded.platform,
        "inputs": inputs,
        "outputs": found,
    }


def _shape(spec: TensorSpec) -> list[int]:
    """-1 stands for what differs from request to request."""
    return [-1, *(-1 if isinstance(axis, Axis) else axis for axis in spec.shape)]
