"""What stands in ``manifest.json``: the whole description of a run or of a version.

To raise the format: add a model beside the old one, a reader for the old number to ``_READERS`` that turns
old into new, and a stored example to the tests. Old readers stay.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from dropserve.columns import Column
from dropserve.signature import Signature, Site

FORMAT = 2
Task = Literal["classification", "regression", "raw"]
Precision = Literal["fp32", "fp16", "int8"]


class FileRecord(BaseModel):
    """One file: SHA-256 in hexadecimal and size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class SourceRecord(BaseModel):
    """The code of the model.

    Attributes:
        spec: ``file.py:Class`` or ``module:Class``, a file's path made absolute.
        arguments: keyword arguments of the constructor.
        sha256: hash of the source file at training time.
        copy_file: the copy of that file, a name within the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    spec: str
    arguments: dict[str, JsonValue] = {}
    sha256: str
    copy_file: str


class Scaling(BaseModel):
    """An affine scaling inside the graph: ``(x - mean) / scale``, a number for each element of a row."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mean: tuple[float, ...]
    scale: tuple[float, ...]


class Preprocessing(BaseModel):
    """What the served graph does around the user's model.

    Attributes:
        columns: for the name of an input whose rows are those of a table, its columns: missing values are
            filled in first, and categories become one-hot last.
        inputs: for the name of an input, its scaling; categories have mean 0 and scale 1.
        target: regression: outputs are multiplied by its scale and its mean is added.
        heteroscedastic: regression: the model returns ``[N, 2]``, value and log variance of its noise; both
            are put in the target's unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    columns: dict[str, tuple[Column, ...]] = {}
    inputs: dict[str, Scaling] = {}
    target: Scaling | None = None
    heteroscedastic: bool = False


_Byte = Annotated[int, Field(ge=0, le=255)]


class ImageRecord(BaseModel):
    """How an image file becomes a row: turned, laid on a ground, grey or RGB, resized, 0 to 255.

    Attributes:
        height: in pixels.
        width: in pixels.
        colour: three channels or one.
        background: red, green and blue of the ground that transparent pixels show. None: of a model that
            was trained when transparency was ignored, so that it is ignored for it still.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    colour: Literal["rgb", "grey"]
    background: tuple[_Byte, _Byte, _Byte] | None = None


class CheckRecord(BaseModel):
    """The verdict of one export check."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    verdict: Literal["passed", "failed", "waived", "skipped"]
    evidence: str
    remedy: str = ""
    where: str = ""


class _Manifest(BaseModel):
    """What runs and versions share.

    Attributes:
        images: for the name of an input that was trained on images, how a file becomes its row.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[2] = FORMAT
    name: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    task: Task
    labels: tuple[str, ...] = ()
    signature: Signature
    source: SourceRecord
    preprocessing: Preprocessing = Preprocessing()
    images: dict[str, ImageRecord] = {}
    metrics: dict[str, float] = {}
    data: dict[str, JsonValue] = {}
    built_with: dict[str, str] = Field(default_factory=lambda: built_with())  # noqa: PLW0108  # defined below
    files: dict[str, FileRecord] = {}


class RunManifest(_Manifest):
    """What ``train`` and ``import`` publish: weights, and all that is needed to build the model again.

    Attributes:
        id: unique within the model, sorts by time.
        recipe: the resolved recipe; empty for an imported model.
        data: where the data came from, with the hash of the data and of the split.
    """

    kind: Literal["run"] = "run"
    id: str
    recipe: dict[str, JsonValue] = {}


class VersionManifest(_Manifest):
    """What ``export`` publishes: graphs that a server can load.

    Attributes:
        version: 1, 2, 3, ...
        run: the id of the run it was made from.
        sites: the dropout sites of the Monte Carlo graphs, in the order of their inputs.
        checks: the verdict of every export check, waivers included.
        calibration: what the calibrated answers rest on; null until calibrated.
        precision: of the ONNX graphs; inputs and outputs are float32 in each.
        row_quanta: in a lower precision: for each ONNX file, the rows of which a call must have a multiple
            for answers to be free of their batch-mates to the last bit, found on its float32 twin; 0 for one
            row at a time. See :func:`dropserve.dropout.rows.measure_quantum`.
    """

    kind: Literal["version"] = "version"
    version: int = Field(ge=1)
    run: str
    sites: tuple[Site, ...] = ()
    checks: tuple[CheckRecord, ...] = ()
    calibration: dict[str, JsonValue] | None = None
    precision: Precision = "fp32"
    row_quanta: dict[str, int] = {}


Manifest = RunManifest | VersionManifest


def built_with() -> dict[str, str]:
    """Versions of Python and of each installed package that shapes an artefact."""
    versions = {"python": platform.python_version()}
    packages = ("dropserve", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "lightning", "pillow")
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _read_format_1(content: dict[str, Any]) -> Manifest:
    """Before columns: tables held numbers alone, and their names stood beside the data's hash."""
    manifest = _read_format_2({**content, "format": 2})
    names, inputs = manifest.data.get("columns"), manifest.signature.inputs
    if not isinstance(names, list) or len(inputs) != 1 or inputs[0].shape != (len(names),):
        return manifest
    columns = {inputs[0].name: tuple(Column(name=str(name)) for name in names)}
    preprocessing = manifest.preprocessing.model_copy(update={"columns": columns})
    return manifest.model_copy(update={"preprocessing": preprocessing})


def _read_format_2(content: dict[str, Any]) -> Manifest:
    model = RunManifest if content.get("kind") == "run" else VersionManifest
    return model.model_validate(content)


_READERS: dict[int, Callable[[dict[str, Any]], Manifest]] = {
    1: _read_format_1,
    2: _read_format_2,
}


def read_manifest(content: Any) -> Manifest:
    """Turn the JSON of any known format into today's manifest.

    Raises:
        ValueError: for an unknown format number or a content that does not fit its format.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a manifest is a JSON object; this one is a {type(content).__name__}")  # noqa: TRY004
    number = content.get("format")
    if type(number) is not int or number not in _READERS:
        raise ValueError(
            f"manifest format {number!r}; this dropserve ({metadata.version('dropserve')}) reads "
            f"{', '.join(map(str, _READERS))}. Upgrade dropserve, or export the model again."
        )
    return _READERS[number](content)
