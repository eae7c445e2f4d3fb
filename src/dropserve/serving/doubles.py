"""Names that stand twice in an object of a request: JSON readers keep the last and say nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

_TOP = ("instances", "parameters", "inputs", "outputs")  # names that stand at the top


class _Object(dict[str, Any]):
    """A JSON object that knows which of its names stood twice."""

    twice: tuple[str, ...]


def doubled_names(text: bytes, document: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """For the number of an instance, the names that stand in it more than once.

    Every pair of an object has a colon, so as many colons as pairs that were kept means that none was lost.
    Only otherwise (a text may hold a colon too) is the request read again, more slowly.

    Args:
        text: the JSON.
        document: what it was read as.
    """
    instances = document.get("instances")
    if not isinstance(instances, list) or not any(isinstance(instance, dict) for instance in instances):
        return {}
    try:
        if text.count(b":") == _pairs(document):
            return {}
        again = json.loads(text, object_pairs_hook=_object)["instances"]
    except RecursionError:  # so deep that no row is; it is refused for that
        return {}
    found = {row: instance.twice for row, instance in enumerate(again) if isinstance(instance, _Object)}
    return {row: names for row, names in found.items() if names}


def doubled_at_the_top(text: bytes, document: Mapping[str, Any]) -> str | None:
    """A name of the document itself that stands in it more than once.

    Args:
        text: the JSON.
        document: what it was read as.
    """
    # A name may be written with escapes, and stand in a value too: then the request is read again.
    if b"\\u" not in text and not any(
        text.count(b'"%b"' % name.encode()) > 1 for name in document if name in _TOP
    ):
        return None
    try:
        again = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        return None
    return next(iter(again.twice), None)


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    lost = len(found) < len(pairs)
    counts = Counter(name for name, _ in pairs) if lost else Counter[str]()
    found.twice = tuple(name for name, count in counts.items() if count > 1)
    return found


def _pairs(value: Any) -> int:
    """Pairs of all objects within a value; lists of plain values are passed over quickly."""
    if isinstance(value, dict):
        return len(value) + sum(_pairs(each) for each in value.values() if isinstance(each, dict | list))
    return sum(_pairs(each) for each in value if isinstance(each, dict | list))
