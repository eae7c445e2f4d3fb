"""Tensors of the Open Inference Protocol: datatypes, JSON data nested or flat, and raw bytes.

https://github.com/kserve/open-inference-protocol and Triton's ``binary_tensor_data`` extension.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import RequestError
from dropserve.serving.instances import describe, read_rows
from dropserve.serving.query import Array
from dropserve.signature import Axis, TensorSpec

DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_MOST_AXES = 32
_LENGTH = 4  # bytes before each element of a BYTES tensor
Tensor = Array | list[str]  # texts are a list: BYTES
Gaps = NDArray[np.bool_] | None


def read_shape(shape: Any, spec: TensorSpec, lengths: dict[str, int]) -> tuple[int, ...]:
    """The shape of an input, batch first; lengths of variable axes are noted.

    Raises:
        RequestError: if it is no shape, or not one of this input.
    """
    expected = f"[rows, {', '.join(map(str, spec.shape))}]" if spec.shape else "[rows]"
    sizes = shape if isinstance(shape, list) and len(shape) <= _MOST_AXES else []
    if not sizes or not all(type(size) is int for size in sizes):
        came = shape if isinstance(shape, list) and len(str(shape)) < 100 else describe(shape)
        _refuse("shape", f"input {spec.name}: shape is {came}; expected {expected}")
    fits = len(sizes) == len(spec.shape) + 1 and 1 <= sizes[0] < 2**31
    for size, axis in zip(sizes[1:], spec.shape, strict=False):
        if isinstance(axis, Axis):
            fits &= 1 <= size <= axis.maximum and lengths.setdefault(axis.name, size) == size
        else:
            fits &= size == axis
    if not fits:
        _refuse("shape", f"input {spec.name}: shape is {sizes}; expected {expected}, at least one row")
    return tuple(sizes)


def check_datatype(datatype: Any, spec: TensorSpec) -> None:
    """Refuse another datatype than the input's.

    Raises:
        RequestError: naming both.
    """
    expected = DATATYPES[spec.dtype]
    if datatype != expected:
        _refuse("datatype", f"input {spec.name}: datatype is {describe(datatype)}; expected {expected}")


def from_json(data: Any, shape: tuple[int, ...], spec: TensorSpec, gaps: Gaps = None) -> Array:
    """An input whose data stands in the JSON, nested or flat in row-major order.

    Args:
        data: what stood there.
        shape: batch first.
        spec: the input.
        gaps: for each number of a row, whether null may stand in its place; that becomes NaN.

    Raises:
        RequestError: if it does not fit shape or datatype.
    """
    if not isinstance(data, list):
        _refuse("type", f"input {spec.name}: data is {describe(data)}; expected a list")
    if spec.dtype == "float16":
        _refuse("datatype", f"input {spec.name}: FP16 cannot travel as JSON; send it as a binary tensor")
    if gaps is not None and gaps.any():
        lost: list[bool] = []
        array = from_json(_without_nulls(data, gaps, lost), shape, spec)
        return np.where(np.reshape(lost, shape), np.nan, array).astype(spec.numpy_dtype)
    if len(shape) == 1 or (data and isinstance(data[0], list)):
        if len(data) != shape[0]:
            _refuse(
                "shape", f"input {spec.name}: data has {len(data)} rows; expected {shape[0]}, as in shape"
            )
        lengths = {a.name: n for a, n in zip(spec.shape, shape[1:], strict=True) if isinstance(a, Axis)}
        return read_rows(data, spec, lengths, named=True)
    count = math.prod(shape)
    if len(data) != count:
        _refuse(
            "shape",
            f"input {spec.name}: data has {len(data)} numbers; expected {count} for the shape {list(shape)}",
        )
    flat = read_rows(data, TensorSpec(name=spec.name, dtype=spec.dtype), named=True)
    return flat.reshape(shape)


def _without_nulls(data: list[Any], gaps: NDArray[np.bool_], lost: list[bool]) -> list[Any]:
    """The data with 0 for each null that may be, and in ``lost`` for each number whether it was one."""
    if data and isinstance(data[0], list):
        return [_without_nulls(each, gaps, lost) if isinstance(each, list) else each for each in data]
    nulls = [each is None and bool(gaps[place % len(gaps)]) for place, each in enumerate(data)]
    lost += nulls
    return [0 if null else each for each, null in zip(data, nulls, strict=True)]


def from_bytes(raw: bytes, shape: tuple[int, ...], spec: TensorSpec, gaps: Gaps = None) -> Array:
    """An input whose data came as little-endian bytes.

    Args:
        raw: the bytes.
        shape: batch first.
        spec: the input.
        gaps: for each number of a row, whether it may be NaN.

    Raises:
        RequestError: if their number does not fit, or one of them is no finite number.
    """
    dtype = spec.numpy_dtype.newbyteorder("<")
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        _refuse(
            "shape",
            f"input {spec.name}: {len(raw)} bytes of data; expected {expected} for {DATATYPES[spec.dtype]} "
            f"and the shape {list(shape)}",
        )
    if spec.dtype == "bool":
        bits = np.frombuffer(raw, np.uint8)
        if bits.size and bits.max() > 1:
            _refuse("type", f"input {spec.name}: a BOOL byte is {bits.max()}; expected 0 or 1")
        return bits.astype(np.bool_).reshape(shape)
    array = np.frombuffer(raw, dtype).reshape(shape).astype(spec.numpy_dtype, copy=False)
    if array.dtype.kind != "f":
        return array
    sound = np.isfinite(array)
    if gaps is not None and gaps.any():
        lost = np.isnan(array) & gaps
        array, sound = np.where(lost, np.array(np.nan, array.dtype), array), sound | lost  # one NaN of many
    if not sound.all():
        index = np.unravel_index(int(np.argmin(sound)), shape)
        place = ", ".join(map(str, index))
        _refuse("range", f"input {spec.name}, element [{place}] is {array[index]}; expected a finite number")
    return array


def split_bytes(raw: bytes, most: int, name: str) -> list[bytes]:
    """The elements of a BYTES tensor, each led by its length in four bytes; one too many, if there are more.

    Args:
        raw: the bytes.
        most: elements that the shape announces.
        name: of the input, for messages.

    Raises:
        RequestError: if an element is cut off.
    """
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= most:
        size, left = int.from_bytes(raw[at : at + _LENGTH], "little"), len(raw) - at - _LENGTH
        if size > left:
            _refuse(
                "shape",
                f"input {name}, row {len(found)}: {size} bytes are announced, {max(0, left)} are left; "
                f"expected each element led by its length in {_LENGTH} bytes",
            )
        at += _LENGTH + size
        found.append(raw[at - size : at])
    return found


def to_json(values: Tensor) -> list[Any]:
    """Data of an output, flat in row-major order."""
    return values if isinstance(values, list) else values.ravel().tolist()


def to_bytes(values: Tensor) -> bytes:
    """Data of an output as little-endian bytes; a string is led by its length in four bytes."""
    if isinstance(values, list):
        texts = [text.encode() for text in values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _refuse(reason: str, message: str) -> NoReturn:
    raise RequestError(message, reason=reason)
