"""Rows of a table with categories in V2: one input for each column, BYTES for categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dropserve.serving.instances import describe, quote
from dropserve.serving.query import Array
from dropserve.serving.tables import Cells, TableReader, listed, refuse
from dropserve.serving.tensors import DATATYPES, from_bytes, from_json, split_bytes
from dropserve.signature import TensorSpec

TEXTS = "BYTES"
_NUMBERS = {datatype: dtype for dtype, datatype in DATATYPES.items() if datatype != "BOOL"}


def describe_columns(table: TableReader) -> list[dict[str, Any]]:
    """The inputs as metadata has them: name, datatype and shape."""
    return [
        {"name": name, "datatype": TEXTS if cells.column.categories else "FP32", "shape": [-1]}
        for name, cells in table.cells.items()
    ]


def check_names(given: Mapping[str, Any], table: TableReader) -> None:
    """Refuse other inputs than the columns.

    Raises:
        RequestError: naming all that are missing and all that are not known.
    """
    wrong = {
        "missing": [name for name in table.cells if name not in given],
        "unknown": [name for name in given if name not in table.cells],
    }
    parts = [f"{what}: {listed(names)}" for what, names in wrong.items() if names]
    if parts:
        refuse(
            "input_name", f"inputs {'; '.join(parts)}. Expected one for each column: {listed(table.cells)}"
        )


def read_columns(
    given: Mapping[str, Mapping[str, Any]], raw: Mapping[str, bytes | None], table: TableReader
) -> Array:
    """The rows of the table, ``[B, columns]``.

    Args:
        given: the JSON of each column's input.
        raw: what came as a binary tensor; None where the data stand in the JSON.
        table: whose columns they are.

    Raises:
        RequestError: naming the column, and what is wrong with it.
    """
    columns = {
        name: (_codes if cells.column.categories else _numbers)(given[name], raw[name], cells)
        for name, cells in table.cells.items()
    }
    if len({len(column) for column in columns.values()}) > 1:
        rows = ", ".join(f"{name}: {len(column)}" for name, column in columns.items())
        refuse("shape", f"rows of the inputs differ ({rows}); expected the same number for each")
    return np.stack(list(columns.values()), axis=1)


def _numbers(entry: Mapping[str, Any], raw: bytes | None, cells: Cells) -> Array:
    name, datatype = cells.column.name, entry.get("datatype")
    dtype = _NUMBERS.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        refuse(
            "datatype",
            f"input {name}: datatype is {describe(datatype)}; expected FP32, or another of numbers",
        )
    spec = TensorSpec.model_validate({"name": name, "dtype": dtype})
    gaps = np.array([cells.column.fill is not None])
    rows = _count(entry, name)
    if raw is None:
        values = from_json(_flat(entry["data"]), (rows,), spec, gaps)
    else:
        values = from_bytes(raw, (rows,), spec, gaps)
    with np.errstate(over="ignore"):
        column = values.astype(np.float32)
    if np.isinf(column).any():
        row = int(np.argmax(np.isinf(column)))
        refuse("range", f"input {name}, row {row} is {values[row]}; expected a number within float32")
    return column


def _codes(entry: Mapping[str, Any], raw: bytes | None, cells: Cells) -> Array:
    name, datatype = cells.column.name, entry.get("datatype")
    if datatype != TEXTS:
        refuse("datatype", f"input {name}: datatype is {describe(datatype)}; expected {TEXTS}: categories")
    rows = _count(entry, name)
    values = _flat(entry["data"]) if raw is None else _texts(raw, rows, name)
    if not isinstance(values, list):
        refuse("type", f"input {name}: data is {describe(values)}; expected a list of texts")
    if len(values) != rows:
        came = f"more than {rows}" if len(values) > rows else len(values)
        refuse("shape", f"input {name}: {came} texts; expected {rows}, as in shape")
    codes: list[float] = []
    for row, value in enumerate(values):
        code = cells.read(value)
        if code is None:
            came = f"input {name}, row {row} is {describe(value)}"
            refuse("category", f"{came}; expected {cells.expected(value)}")
        codes.append(code)
    return np.array(codes, np.float32)


def _count(entry: Mapping[str, Any], name: str) -> int:
    """Rows of a column's input, ``[rows]`` or ``[rows, 1]``."""
    shape = entry.get("shape")
    rows = shape[0] if isinstance(shape, list) and shape else None
    if type(rows) is not int or not 1 <= rows < 2**31 or shape not in ([rows], [rows, 1]):
        came = shape if isinstance(shape, list) and len(str(shape)) < 100 else describe(shape)
        refuse("shape", f"input {name}: shape is {came}; expected [rows], at least one row")
    return rows


def _flat(data: Any) -> Any:
    """Data of ``[rows, 1]`` as that of ``[rows]``."""
    if not isinstance(data, list):
        return data
    return [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]


def _texts(raw: bytes, rows: int, name: str) -> list[str]:
    texts: list[str] = []
    for row, element in enumerate(split_bytes(raw, rows, name)):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError:
            shown = quote(element[:20].decode("utf-8", "replace"))
            refuse("type", f"input {name}, row {row} is {shown}, not UTF-8; expected a text")
    return texts
