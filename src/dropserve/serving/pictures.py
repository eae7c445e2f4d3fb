"""Image files in requests: as the body, in base64 within JSON, or as BYTES tensors.

``{"b64": "..."}`` is TensorFlow Serving's form of binary values in JSON:
https://www.tensorflow.org/tfx/serving/api_rest#encoding_binary_values
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from dropserve.errors import RequestError
from dropserve.images import ImageError, PixelBudget, kind_of, read_image
from dropserve.manifest import ImageRecord, VersionManifest
from dropserve.serving.instances import describe, describe_request, quote, read_instances
from dropserve.serving.query import Array
from dropserve.serving.tables import table_reader
from dropserve.serving.tensors import split_bytes
from dropserve.signature import Signature, TensorSpec

ENCODED = "b64"
BYTES = "BYTES"
_ANY = "application/octet-stream"
_FORM = f'{{"{ENCODED}": a PNG or JPEG file in base64}}'


class Pictures:
    """Reads the rows of one request; whatever it reads counts against one bound of pixels.

    Args:
        records: for the name of an input, how an image becomes its row; empty for a model of numbers.
        most_pixels: that the images of the request may have in all, as sent or as resized.
    """

    def __init__(self, records: Mapping[str, ImageRecord], most_pixels: int) -> None:
        self._records = records
        self._budget = PixelBudget(most_pixels)

    def are_for(self, name: str) -> bool:
        """Whether this input takes images."""
        return name in self._records

    def read_instances(self, instances: Any, signature: Signature) -> dict[str, Array]:
        """As :func:`dropserve.serving.instances.read_instances`, with images among the instances.

        Raises:
            RequestError: naming the instance.
        """
        if not self._records or not isinstance(instances, list):
            return read_instances(instances, signature)
        lone = signature.inputs[0] if len(signature.inputs) == 1 else None
        specs = {spec.name: spec for spec in signature.inputs}
        rows = [self._read_instance(row, place, specs, lone) for place, row in enumerate(instances)]
        if lone is not None and rows and all(isinstance(row, np.ndarray) for row in rows):
            return {lone.name: np.stack(rows)}
        return read_instances([_plain(row) for row in rows], signature)

    def _read_instance(
        self, row: Any, place: int, specs: Mapping[str, TensorSpec], lone: TensorSpec | None
    ) -> Any:
        """An instance with each image in it decoded; all else as it was."""
        where = f"instance {place}"
        if lone is not None and self.are_for(lone.name):
            if isinstance(row, dict) and row.keys() == {lone.name}:
                row = row[lone.name]
            if isinstance(row, str):
                form = describe_request(Signature(inputs=(lone,), outputs=()))
                _refuse(
                    "type", f"{where} is {describe(row)}; expected {_FORM}, or {form.partition('each ')[2]}"
                )
            return self._decode(_from_base64(row[ENCODED], where), lone, where) if _is_encoded(row) else row
        if not isinstance(row, dict):
            return row
        return {
            name: self._decode(
                _from_base64(value[ENCODED], f"{where}, {name}"), specs[name], f"{where}, {name}"
            )
            if self.are_for(name) and _is_encoded(value)
            else value
            for name, value in row.items()
        }

    def read_body(self, body: bytes, manifest: VersionManifest) -> dict[str, Array]:
        """A body that is one image: [1, ...] for the model's input.

        Raises:
            RequestError: if it is none, or the model takes no image.
        """
        lone, *others = manifest.signature.inputs
        if others or not self.are_for(lone.name):
            form = f'{{"instances": {describe_body(manifest)}}}'
            raise RequestError(
                f"the body is a {kind_of(body)} image; {manifest.name} takes numbers. Expected JSON: {form}",
                status=415,
                reason="content_type",
            )
        if not body:
            _refuse("empty", "the body is empty; expected a PNG or JPEG image")
        return {lone.name: self._decode(body, lone, "the body")[None]}

    def read_tensor(self, entry: Mapping[str, Any], raw: bytes | None, spec: TensorSpec) -> Array:
        """A V2 tensor of datatype BYTES: files, or in JSON their base64.

        Args:
            entry: its JSON.
            raw: what came as a binary tensor; None if the data stand in the JSON.
            spec: the input.

        Raises:
            RequestError: if it is not of the form.
        """
        shape = entry.get("shape")
        rows = shape[0] if isinstance(shape, list) and shape else None
        if type(rows) is not int or rows < 1 or shape not in ([rows], [rows, 1]):
            came = shape if isinstance(shape, list) and len(str(shape)) < 100 else describe(shape)
            _refuse(
                "shape", f"input {spec.name}: shape of BYTES is {came}; expected [rows], at least one row"
            )
        files = _from_json(entry.get("data"), spec) if raw is None else split_bytes(raw, rows, spec.name)
        if len(files) != rows:
            came = f"more than {rows}" if len(files) > rows else len(files)
            _refuse("shape", f"input {spec.name}: {came} images; expected {rows}, as in shape")
        decoded = [
            self._decode(file, spec, f"input {spec.name}, row {place}") for place, file in enumerate(files)
        ]
        return np.stack(decoded)

    def _decode(self, content: bytes, spec: TensorSpec, where: str) -> Array:
        if kind_of(content) is None:
            begins = content[:4].hex(" ") or "nothing"
            _refuse("image", f"{where} is no PNG or JPEG image (it begins with {begins}); expected one")
        try:
            pixels = read_image(content, self._records[spec.name], budget=self._budget)
        except ImageError as error:
            _refuse(error.reason, f"{where} {error}")
        return pixels.astype(spec.numpy_dtype, copy=False).reshape(spec.sized())


def is_image(body: bytes, headers: Mapping[str, str], manifest: VersionManifest) -> bool:
    """Whether a body is one image, or is meant to be.

    Its first bytes decide, whatever the Content-Type says: they cannot begin JSON. Other bytes that come as
    ``image/...`` to a model of images are meant to be one, and so are those of no kind that are no object.

    Args:
        body: of the request.
        headers: with names in lower case.
        manifest: of the model.
    """
    if kind_of(body) is not None:
        return True
    if not manifest.images:
        return False
    kind = headers.get("content-type", "").lower()
    return kind.startswith("image/") or (kind.startswith(_ANY) and body.lstrip()[:1] not in {b"", b"{"})


def describe_body(manifest: VersionManifest) -> str:
    """What may stand in ``instances``, in words, for messages."""
    if (table := table_reader(manifest)) is not None:
        return f"a list of instances, each {table.form()}"
    form = describe_request(manifest.signature)
    return f"{form}, or {_FORM}" if manifest.images else form


def _is_encoded(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {ENCODED}


def _plain(row: Any) -> Any:
    if isinstance(row, dict):
        return {name: _plain(value) for name, value in row.items()}
    return row.tolist() if isinstance(row, np.ndarray) else row


def _from_base64(text: Any, where: str) -> bytes:
    if not isinstance(text, str):
        _refuse("type", f'{where}: "{ENCODED}" is {describe(text)}; expected a file in base64')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        _refuse("image", f'{where}: "{ENCODED}" is {quote(text)}, which is not base64: {error}')


def _from_json(data: Any, spec: TensorSpec) -> list[bytes]:
    if not isinstance(data, list):
        _refuse("type", f"input {spec.name}: data is {describe(data)}; expected a list of texts in base64")
    flat = [cell for row in data for cell in (row if isinstance(row, list) else [row])]
    return [_from_base64(text, f"input {spec.name}, row {place}") for place, text in enumerate(flat)]


def _refuse(reason: str, message: str) -> NoReturn:
    raise RequestError(message, reason=reason)
