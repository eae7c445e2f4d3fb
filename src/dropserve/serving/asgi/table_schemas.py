"""JSON schemas of the rows of a table."""

from __future__ import annotations

from typing import Any

from dropserve.columns import Column, spellings
from dropserve.serving.asgi.numbers import floating
from dropserve.serving.table_tensors import describe_columns
from dropserve.serving.tables import TableReader

Schema = dict[str, Any]
_COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}


def instance(table: TableReader) -> Schema:
    """A row: a list in the order of the columns, or an object by their names."""
    cells = {name: _cell(each.column) for name, each in table.cells.items()}
    count = len(cells)
    row: Schema = {"type": "array", "prefixItems": list(cells.values()), "minItems": count, "maxItems": count}
    forms = [row, _closed(cells)]
    if table.spec.name not in cells:
        forms.append(_closed({table.spec.name: row}))
    return {"anyOf": forms}


def inputs(table: TableReader) -> list[Schema]:
    """V2's input for each column of a table with categories."""
    return [
        _tensor(table.cells[entry["name"]].column, entry["datatype"]) for entry in describe_columns(table)
    ]


def _tensor(column: Column, datatype: str) -> Schema:
    sizes = [_COUNT, {"const": 1}]
    return {
        "type": "object",
        "properties": {
            "name": {"const": column.name},
            "shape": {"type": "array", "prefixItems": sizes, "minItems": 1, "maxItems": 2},
            "datatype": {"const": datatype},
            "data": {"type": "array", "description": "one for each row"},
        },
        "required": ["name", "shape", "datatype", "data"],
    }


def _cell(column: Column) -> Schema:
    gaps: list[Schema] = [] if column.fill is None else [{"type": "null"}]
    if not column.categories:
        number = floating("float32")
        return {"anyOf": [number, *gaps]} if gaps else number
    if column.other:
        least = {} if gaps else {"minLength": 1}  # an empty text is a gap
        anything: list[Schema] = [{"type": "string", **least}, {"type": "number"}, {"type": "boolean"}]
        return {"anyOf": [*anything, *gaps]}
    written = [*column.categories, *(value for text in column.categories for value in _values(text))]
    return {"enum": [*written, *([None, ""] if gaps else [])]}


def _values(text: str) -> list[float | bool]:
    """The number or truth value that stands for a category, if any does."""
    found: list[float | bool] = [flag for flag in (True, False) if text in spellings(flag)]
    try:
        number = float(text)
    except ValueError:
        return found
    return [*found, number] if text in spellings(number) else found


def _closed(properties: dict[str, Schema]) -> Schema:
    required = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
