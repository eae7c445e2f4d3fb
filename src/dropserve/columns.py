"""Columns of a table: what a request may send in each, and how a row of them becomes a row of numbers.

A request's row holds one value for each column. The served graph takes one number for each: the value
itself, the code of a category (its place in the vocabulary), or NaN for what is missing. Inside the graph
missing numbers are filled in, numbers are scaled, and each category becomes its own 0 or 1 (one-hot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

MISSING_CATEGORY = "missing"  # of missing values, where a recipe makes them a category of their own


class Column(BaseModel):
    """One column of a table, an element of a row.

    Attributes:
        name: unique in the table.
        categories: the vocabulary, in the order of the codes; empty for a column of numbers.
        other: whether a category that is not in the vocabulary is taken too, as none of the known ones; its
            code is the number of categories.
        fill: what the graph puts in the place of a missing value: a number in the column's own unit, or a
            code. None: a missing value is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    categories: tuple[str, ...] = ()
    other: bool = False
    fill: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _goes_together(self) -> Column:
        if len(set(self.categories)) < len(self.categories):
            raise ValueError("a category stands twice")
        if self.other and not self.categories:
            raise ValueError("other without categories: they are what it is other than")
        if self.categories and self.fill is not None and self.fill not in range(self.codes):
            raise ValueError(
                f"fill is {self.fill:g}; expected the place of a category, 0 to {self.codes - 1}"
            )
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it holds numbers alone, none of them missing."""
        return not self.categories and self.fill is None

    @property
    def codes(self) -> int:
        """How many codes there are; 0 for a column of numbers."""
        return len(self.categories) + self.other

    def value(self, number: float) -> str | float | None:
        """What a request sends for a number of the graph's input: None for NaN; codes turn into texts.

        The code of all others has no text: it becomes one that is in no vocabulary.
        """
        if np.isnan(number):
            return None
        if not self.categories:
            return number
        place = int(number)
        return self.categories[place] if place < len(self.categories) else unknown_text(self.categories)


def request_row(row: list[Any], columns: Sequence[Column]) -> Any:
    """A row of the graph's input as a request sends it: by name if it holds more than numbers.

    Args:
        row: numbers, as nested lists.
        columns: of the table; none for rows that are no table's.
    """
    if all(column.is_plain for column in columns):
        return row
    return {column.name: column.value(number) for column, number in zip(columns, row, strict=True)}


def unknown_text(categories: Sequence[str]) -> str:
    """A text that is not among the categories."""
    text = "other"
    while text in categories:
        text += "?"
    return text


@dataclass(frozen=True)
class Layout:
    """Where each number that the model takes comes from.

    Attributes:
        source: for each number, the column it comes from.
        code: for a category, its code; 0 elsewhere.
        is_category: whether it is 1 where the column holds that code, and 0 elsewhere.
    """

    source: NDArray[np.int64]
    code: NDArray[np.float32]
    is_category: NDArray[np.bool_]


def lay_out(columns: Sequence[Column]) -> Layout | None:
    """Numbers as they are, and in the place of each categorical column one number for each category.

    None if every column holds numbers: the row stays as it is. All others of a column are zeros throughout.
    """
    if not any(column.categories for column in columns):
        return None
    widths = [len(column.categories) or 1 for column in columns]
    codes = [np.arange(width) if column.categories else np.zeros(1)
             for column, width in zip(columns, widths, strict=True)]  # fmt: skip
    return Layout(
        np.repeat(np.arange(len(columns)), widths),
        np.concatenate(codes).astype(np.float32),
        np.repeat([bool(column.categories) for column in columns], widths),
    )


def filled(rows: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.float32]:
    """Rows with each column's fill in the place of NaN, as the graph has them."""
    fill = np.array([np.nan if column.fill is None else column.fill for column in columns], np.float32)
    return np.where(np.isnan(rows), fill, rows) if columns else rows


def encoded(rows: NDArray[np.float32], columns: Sequence[Column]) -> NDArray[np.float32]:
    """Rows with one-hot categories, as the graph has them."""
    layout = lay_out(columns)
    if layout is None:
        return rows
    spread = rows[:, layout.source]
    return np.where(layout.is_category, (spread == layout.code).astype(np.float32), spread)
