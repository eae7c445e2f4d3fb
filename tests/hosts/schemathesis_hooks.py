"""Loaded by schemathesis: what it generates as valid must be what a schema can promise.

A number may be within the range of its dtype and still too large for the model to compute with (400, with
that reason); no schema can say where that begins. Nor can it say that a tensor holds as many numbers as its
shape says, or that no output is named twice.
"""

from __future__ import annotations

import math
from typing import Any

import schemathesis

_FAR = 1e30
_MOST = 3.4e38


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:
    """Leave out what only the model can refuse; what the schema forbids stays."""
    found = [abs(number) for number in numbers(body)]
    return not any(_FAR < number <= _MOST * 1.01 for number in found)


@schemathesis.hook
def map_body(_: Any, body: Any) -> Any:
    """Give tensors whose shape is one of theirs as many numbers as it says; what is wrong stays wrong."""
    if isinstance(body, dict) and isinstance(body.get("inputs"), list):
        for entry in body["inputs"]:
            if isinstance(entry, dict):
                mend(entry)
        outputs = body.get("outputs")
        if isinstance(outputs, list) and all(isinstance(entry, dict) for entry in outputs):
            body["outputs"] = list({str(entry.get("name")): entry for entry in outputs}.values())
    return body


def mend(entry: dict[str, Any]) -> None:
    shape, data = entry.get("shape"), entry.get("data")
    sized = isinstance(shape, list) and shape and all(type(size) is int and size > 0 for size in shape)
    if sized and isinstance(data, list) and all(type(n) in {int, float} and abs(n) < _FAR for n in data):
        shape[0] = shape[0] % 50 + 1
        entry["data"] = [i % 7 for i in range(math.prod(shape))] if math.prod(shape) < 1000 else []
