"""Tensors of the Open Inference Protocol: datatypes, JSON data nested or flat, and raw bytes.

https://github.com/kserve/open-inference-protocol and Triton's ``binary_tensor_data`` extension.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

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
Tensor = Array | list[str]  # texts are a list: BYTES


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


def from_json(data: Any, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """An input whose data stands in the JSON, nested or flat in row-major order.

    Raises:
        RequestError: if it does not fit shape or datatype.
    """
    if not isinstance(data, list):
        _refuse("type", f"input {spec.name}: data is {describe(data)}; expected a list")
    if spec.dtype == "float16":
        _refuse("datatype", f"input {spec.name}: FP16 cannot travel as JSON; send it as a binary tensor")
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


def from_bytes(raw: bytes, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """An input whose data came as little-endian bytes.

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
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        index = np.unravel_index(int(np.argmin(np.isfinite(array))), shape)
        place = ", ".join(map(str, index))
        _refuse("range", f"input {spec.name}, element [{place}] is {array[index]}; expected a finite number")
    return array


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
