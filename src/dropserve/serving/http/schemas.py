"""JSON schemas of what an endpoint takes and gives, from its manifest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dropserve.cell_parsing import MISSING_TEXTS, spellings
from dropserve.columns import Column
from dropserve.dropout.masks import SCHEMES, SEED_LIMIT
from dropserve.manifest import VersionManifest
from dropserve.serving.parameters import Limits
from dropserve.serving.pictures import ENCODED
from dropserve.serving.table_tensors import describe_columns
from dropserve.serving.tables import TableReader, table_reader
from dropserve.serving.tensors import DATATYPES
from dropserve.signature import Axis, TensorSpec

Schema = dict[str, Any]
NUMBER: Schema = {"type": "number"}
TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
_MISSING = "^\\s*(?:{})\\s*$".format(  # in either case, which a JSON schema has no flag for
    "|".join(
        "".join(f"[{c}{c.upper()}]" if c.isalpha() else f"\\{c}" for c in text)
        for text in sorted(MISSING_TEXTS)
    )
)


def closed(properties: dict[str, Schema], *, optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def settings(limits: Limits, *, monte_carlo: bool) -> dict[str, Schema]:
    """Monte Carlo settings by name; a deterministic endpoint has none."""
    if not monte_carlo:
        return {}
    return {
        "mc_samples": _whole(2, limits.max_mc_samples, "forward passes, each with its own masks"),
        "mc_seed": _whole(-1, SEED_LIMIT - 1, "which masks; -1 draws a seed, and the answer names it"),
        "mc_scheme": {"enum": list(SCHEMES), "description": "how masks are drawn"},
        "mc_coverage": _fraction(
            "how often sets and intervals hold the truth; rounded up to a thousandth", 101
        ),
        "mc_tolerance": _fraction("Monte Carlo error at which a row may stop", 2),
    }


def _whole(least: int, most: int, about: str) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, "description": about}


def _fraction(about: str, least: int) -> Schema:
    fraction = {"type": "number", "exclusiveMinimum": 0, "maximum": 0.999, "description": about}
    thousandths = {
        "type": "integer",
        "minimum": least,
        "maximum": 999,
        "description": f"{about}; in thousandths",
    }
    return {"anyOf": [fraction, thousandths]}


def request_v1(manifest: VersionManifest, limits: Limits, *, monte_carlo: bool) -> Schema:
    """``{"instances": [...]}``."""
    own = settings(limits, monte_carlo=monte_carlo)
    rows = {spec.name: _row(spec) for spec in manifest.signature.inputs}
    named = closed(rows)
    table = table_reader(manifest)
    for name in manifest.images:
        file = {**closed({ENCODED: TEXT}), "description": "a PNG or JPEG file in base64"}
        rows[name] = {"anyOf": [rows[name], file]}
        named = closed(rows)
    instance = named if len(rows) > 1 else {"anyOf": [*rows.values(), named]}
    if table is not None:
        instance = table_instance(table)
    return closed(
        {
            "instances": {"type": "array", "items": instance, "minItems": 1},
            "parameters": {"anyOf": [closed(own, optional=tuple(own)), {"type": "null"}]},
        },
        optional=("parameters",),
    )


def _row(spec: TensorSpec) -> Schema:
    schema = _element(spec)
    for axis in reversed(spec.shape):
        least, most = (1, axis.maximum) if isinstance(axis, Axis) else (axis, axis)
        schema = {"type": "array", "items": schema, "minItems": least, "maxItems": most}
    return schema


def _element(spec: TensorSpec) -> Schema:
    dtype = spec.numpy_dtype
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        return _floating(spec.dtype)
    bounds = np.iinfo(spec.dtype)
    return {"type": "integer", "minimum": int(bounds.min), "maximum": int(bounds.max)}


def request_v2(
    manifest: VersionManifest, limits: Limits, outputs: tuple[str, ...], *, monte_carlo: bool
) -> Schema:
    """The Open Inference Protocol's, with its data in the JSON.

    Args:
        manifest: of the version that is served.
        limits: what one request may ask for.
        outputs: names of the outputs that there may be; empty while nobody knows.
        monte_carlo: whether it is the endpoint NAME-mc.
    """
    inputs = [_tensor_in(spec) for spec in manifest.signature.inputs]
    if (table := table_reader(manifest)) is not None and table.has_categories:
        inputs = table_inputs(table)
    count = len(inputs)
    own = settings(limits, monte_carlo=monte_carlo)
    others = "|".join(name.removeprefix("mc_") for name in own)
    parameters = {
        "type": ["object", "null"],
        "properties": {"binary_data_output": {"type": "boolean"}, **own},
        "patternProperties": {f"^mc_(?!({others})$)" if own else "^mc_": False},
    }
    output = {
        "type": "object",
        "properties": {
            "name": {"enum": list(outputs)} if outputs else TEXT,
            "parameters": {
                "type": "object",
                "properties": {"binary_data": {"type": "boolean"}, "classification": False},
            },
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": parameters,
            "inputs": {
                "type": "array",
                "items": inputs[0] if count == 1 else {"anyOf": inputs},
                "minItems": count,
                "maxItems": count,
            },
            "outputs": {"type": ["array", "null"], "items": output},
            "instances": False,
        },
        "required": ["inputs"],
    }


def _tensor_in(spec: TensorSpec) -> Schema:
    sizes: list[Schema] = [{"type": "integer", "minimum": 1, "maximum": 2**31 - 1}]
    for axis in spec.shape:
        fixed = isinstance(axis, int)
        sizes.append({"const": axis} if fixed else {"type": "integer", "minimum": 1, "maximum": axis.maximum})
    count = len(sizes)
    least = math.prod(axis if isinstance(axis, int) else 1 for axis in spec.shape)
    flat = {"type": "array", "items": _element(spec), "minItems": least}
    nested = {"type": "array", "items": _row(spec), "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "name": {"const": spec.name},
            "shape": {"type": "array", "prefixItems": sizes, "minItems": count, "maxItems": count},
            "datatype": {"const": DATATYPES[spec.dtype]},
            "data": {
                "description": "row-major: flat, or nested as the shape says",
                "anyOf": [flat, nested] if spec.shape else [flat],
            },
        },
        "required": ["name", "shape", "datatype", "data"],
    }


def answer_v1(manifest: VersionManifest, labels: tuple[str, ...], *, monte_carlo: bool) -> Schema:
    """``{"predictions": [...]}``."""
    numbers: Schema = {"anyOf": [NUMBER, {"type": "array"}]}
    if manifest.task == "classification":
        probability = {"type": "number", "minimum": 0, "maximum": 1}
        row = {
            "label": {"enum": list(labels)},
            "probabilities": closed(dict.fromkeys(labels, probability)),
        }
    elif manifest.task == "regression":
        row = {"value": numbers}
    else:
        row = {"outputs": closed({spec.name: numbers for spec in manifest.signature.outputs})}
    whole: dict[str, Schema] = {}
    if monte_carlo:
        row |= {"uncertainty": {"type": "object"}, "calibrated": {"type": ["object", "null"]}}
        whole = {"calibration": {"type": "object"}, "parameters": {"type": "object"}}
    predictions = {"type": "array", "items": closed(row), "minItems": 1}
    return closed({"predictions": predictions, **whole})


def answer_v2(endpoint: str, version: int, *, monte_carlo: bool) -> Schema:
    """The Open Inference Protocol's."""
    output = closed(
        {
            "name": TEXT,
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"enum": ["BYTES", *DATATYPES.values()]},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
        optional=("data", "parameters"),
    )
    properties: dict[str, Schema] = {
        "model_name": {"const": endpoint},
        "model_version": {"const": str(version)},
        "id": TEXT,
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": output, "minItems": 1},
    }
    return closed(properties, optional=("id",) if monte_carlo else ("id", "parameters"))


def metadata() -> Schema:
    """A model as the Open Inference Protocol describes it."""
    tensor = closed(
        {"name": TEXT, "datatype": TEXT, "shape": {"type": "array", "items": {"type": "integer"}}}
    )
    tensors = {"type": "array", "items": tensor}
    return closed(
        {
            "name": TEXT,
            "versions": {"type": "array", "items": TEXT},
            "platform": TEXT,
            "inputs": tensors,
            "outputs": tensors,
        }
    )


def table_instance(table: TableReader) -> Schema:
    """A row: a list in the order of the columns, or an object by their names."""
    cells = {name: _cell(each.column) for name, each in table.cells.items()}
    count = len(cells)
    row: Schema = {"type": "array", "prefixItems": list(cells.values()), "minItems": count, "maxItems": count}
    forms = [row, closed(cells)]
    if table.spec.name not in cells:
        forms.append(closed({table.spec.name: row}))
    return {"anyOf": forms}


def table_inputs(table: TableReader) -> list[Schema]:
    """V2's input for each column of a table with categories."""
    return [
        _table_tensor(table.cells[entry["name"]].column, entry["datatype"])
        for entry in describe_columns(table)
    ]


def _table_tensor(column: Column, datatype: str) -> Schema:
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
        number = _floating("float32")
        return {"anyOf": [number, *gaps]} if gaps else number
    if column.other:
        least = {} if gaps else {"minLength": 1, "not": {"pattern": _MISSING}}  # those texts are gaps
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


def _floating(dtype: str) -> dict[str, Any]:
    """What a floating-point dtype can hold: what is rounded to infinity is refused.

    That begins half a step beyond the greatest number, not at it.
    """
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        most = float(limits.max) + 2.0 ** (int(limits.maxexp) - int(limits.nmant) - 2)
    if not np.isfinite(most):
        return {"type": "number"}  # of a double, JSON itself can say no more
    return {"type": "number", "exclusiveMinimum": -most, "exclusiveMaximum": most}
