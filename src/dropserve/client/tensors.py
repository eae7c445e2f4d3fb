"""Open Inference Protocol V2 with binary tensors: arrays there and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dropserve.errors import UsageError

JSON_LENGTH = "Inference-Header-Content-Length"
_DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_NUMPY = {datatype: name for name, datatype in _DATATYPES.items()}


@dataclass(frozen=True)
class Tensors:
    """What V2 answers.

    Attributes:
        outputs: by name; texts are an array of ``str`` objects.
        parameters: effective Monte Carlo settings; empty without Monte Carlo.
        model_name: the endpoint that answered.
        model_version: its version.
        id: of the request, echoed.
    """

    outputs: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, Any]
    model_name: str
    model_version: str
    id: str | None = None

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]


def pack(
    inputs: Mapping[str, ArrayLike],
    parameters: Mapping[str, Any],
    outputs: Sequence[str],
    identity: str | None,
) -> tuple[bytes, dict[str, str]]:
    """The body of a request, and the header that says where its JSON ends.

    Raises:
        UsageError: if an input is no array of numbers or texts.
    """
    entries: list[dict[str, Any]] = []
    binary = bytearray()
    for name, value in inputs.items():
        array = np.asarray(value)
        datatype = "BYTES" if _holds_texts(array) else _DATATYPES.get(array.dtype.name)
        if datatype is None or array.ndim == 0:
            raise UsageError(
                f"input {name!r} is {array.dtype} of shape {list(array.shape)}; expected numbers [rows, ...] "
                "or texts, None for a missing one"
            )
        if datatype == "BYTES":
            raw = b"".join(_led_by_length(text or "") for text in array.ravel().tolist())
        else:
            raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        size = {"binary_data_size": len(raw)}
        entries.append({"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": size})
        binary += raw
    document: dict[str, Any] = {"inputs": entries, "parameters": {**parameters, "binary_data_output": True}}
    if outputs:
        document["outputs"] = [{"name": name} for name in outputs]
    if identity is not None:
        document["id"] = identity
    text = json.dumps(document).encode()
    return text + bytes(binary), {JSON_LENGTH: str(len(text)), "content-type": "application/octet-stream"}


def _holds_texts(array: NDArray[Any]) -> bool:
    """Texts, or None for a missing one, and at least one text."""
    if array.dtype.kind == "U":
        return True
    kinds = set(map(type, array.ravel().tolist())) if array.dtype.kind == "O" else set[type]()
    return str in kinds and kinds <= {str, type(None)}


def _led_by_length(text: str) -> bytes:
    content = text.encode()
    return len(content).to_bytes(4, "little") + content


def unpack(response: httpx.Response) -> Tensors:
    """Read an answer.

    Raises:
        ValueError, KeyError, TypeError: if it is no V2 answer.
    """
    length = int(response.headers.get(JSON_LENGTH, len(response.content)))
    document = json.loads(response.content[:length])
    rest = response.content[length:]
    found: dict[str, NDArray[Any]] = {}
    for entry in document["outputs"]:
        shape = tuple(entry["shape"])
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            dtype = np.dtype(object if entry["datatype"] == "BYTES" else _NUMPY[entry["datatype"]])
            found[entry["name"]] = np.array(entry["data"], dtype).reshape(shape)
            continue
        raw, rest = rest[:size], rest[size:]
        if entry["datatype"] == "BYTES":
            found[entry["name"]] = np.array(_texts(raw), object).reshape(shape)
        else:
            dtype = np.dtype(_NUMPY[entry["datatype"]]).newbyteorder("<")
            found[entry["name"]] = np.frombuffer(raw, dtype).reshape(shape)
    parameters = document.get("parameters", {})
    return Tensors(found, parameters, document["model_name"], document["model_version"], document.get("id"))


def _texts(raw: bytes) -> list[str]:
    found: list[str] = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        found.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return found
