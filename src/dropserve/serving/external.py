"""Weights outside an ONNX file: which files it names, and whether they may be read.

onnxruntime opens whatever path stands in the file, so the paths are looked at before a session is made. A
serving host has no ``onnx`` package; what is needed of the format is read here from the protocol buffer
itself (https://protobuf.dev/programming-guides/encoding), tensors' own bytes being skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator
from pathlib import Path

from dropserve.errors import CorruptStoreError, ServerError

# For each message of onnx.proto, the fields that lead to a tensor: number and what stands there.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry of external_data
_DEEPEST = 64  # graphs within graphs


def external_files(path: Path) -> set[str]:
    """The locations of weights that an ONNX file names, as they stand in it.

    Raises:
        ServerError: if the file is no protocol buffer.
    """
    if not path.stat().st_size:
        raise ServerError(f"cannot load {path}: it is empty")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return set(_locations(memoryview(content), "model", 0))
    except (IndexError, ValueError) as error:
        raise ServerError(f"cannot load {path}: it is no ONNX file: {error}") from error


def require_safe(path: Path, listed: Collection[str]) -> None:
    """Refuse an ONNX file that would have other files read than those that were published with it.

    Args:
        path: the ONNX file.
        listed: names of files beside it that were verified: those of the manifest.

    Raises:
        CorruptStoreError: naming the location, and why it may not be read.
        ServerError: if the file is no ONNX file.
    """
    for location in sorted(external_files(path)):
        beside = path.parent / location
        if not location or location != Path(location).name or location in {".", ".."}:
            why = "it is no plain name of a file in the same folder"
        elif beside.is_symlink():
            why = "it is a symbolic link"
        elif location not in listed:
            why = "it does not stand in the manifest, so nobody has verified it"
        else:
            continue
        raise CorruptStoreError(
            f"{path} takes weights from {location!r}, and {why}. Nothing was loaded; export the model again."
        )


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    for number, value in _fields(message):
        inner = _FIELDS[kind].get(number)
        if inner is None or value is None:
            continue
        if inner != "entry":
            yield from _locations(value, inner, depth + 1)
            continue
        entry = {key: bytes(text).decode() for key, text in _fields(value) if text is not None}
        if entry.get(_KEY) == "location":
            yield entry.get(_VALUE, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """The fields of a message: number, and the bytes where there are any."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, at = _varint(message, at)
            yield number, None
        elif wire in {1, 5}:
            at += 8 if wire == 1 else 4
            yield number, None
        elif wire == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field is longer than what holds it")
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f"a field has the wire type {wire}")
    if at != len(message):
        raise ValueError("the last field is cut off")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number has more than 64 bits")
