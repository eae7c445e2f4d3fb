"""Cells of a table: what counts as missing, how classes are ordered, how bad ones are told."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dropserve.errors import DataError
from dropserve.training.table import FloatArray

_SHOWN = 10
MISSING_VALUE = "the value is missing; fill it in, or remove the row"
MISSING_CLASS = "the class is missing; fill it in, or remove the row"
MISSING_NUMBER = "the value is missing; fill it in, remove the row, or set data.impute"
MISSING_CATEGORY = "the category is missing; fill it in, remove the row, or set data.impute_categories"


def number(text: str) -> float | None:
    """A number as spreadsheets write it; not Python's ``1_000``."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def sorted_labels(texts: list[str]) -> tuple[str, ...]:
    """Classes in the order of their numbers if all are numbers, else of their texts."""
    found = sorted(set(texts))
    numbers = [number(text) for text in found]
    if all(each is not None and math.isfinite(each) for each in numbers):
        return tuple(text for _, text in sorted(zip(numbers, found, strict=True)))
    return tuple(found)


def coded(texts: list[str | None]) -> tuple[FloatArray, tuple[str, ...]]:
    """Categories as their places in the vocabulary, NaN for None, and the vocabulary."""
    vocabulary = sorted_labels([text for text in texts if text is not None])
    places = {text: float(place) for place, text in enumerate(vocabulary)}
    return np.array([np.nan if text is None else places[text] for text in texts], np.float32), vocabulary


class Problems:
    """Cells that cannot be used: the first few by place, the rest by number.

    Args:
        where: the file.
        place: what to call a row, given its number from 0: ``line 7``.
    """

    def __init__(self, where: object, place: Callable[[int], str]) -> None:
        self._where, self._place = where, place
        self._found: list[str] = []
        self._count = 0

    def add(self, row: int, column: str, what: str) -> None:
        """Note a cell."""
        self._count += 1
        if self._count <= _SHOWN:
            self._found.append(f"{self._place(row)}, column {column!r}: {what}")

    def raise_if_any(self) -> None:
        """Tell them all at once.

        Raises:
            DataError: if any was noted.
        """
        if not self._count:
            return
        more = [f"... and {self._count - _SHOWN} more"] if self._count > _SHOWN else []
        lines = "\n".join(f"  - {line}" for line in [*self._found, *more])
        raise DataError(f"{self._where}: {self._count} values cannot be learned from\n{lines}")
