"""What a recipe says about the columns of a table: which ones, and what becomes of odd values in them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Count = Annotated[int, Field(ge=1)]
IMPUTE_NUMBERS = ("error", "median", "mean")
IMPUTE_CATEGORIES = ("error", "most_frequent", "missing")


class ColumnTable(BaseModel):
    """``[data.columns.NAME]``: what differs for one column.

    Attributes:
        impute: as ``data.impute`` for numbers, as ``data.impute_categories`` for categories; a number or a
            category is what to fill in.
        unknown: as ``data.unknown``.
        rare: as ``data.rare``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    impute: float | str | None = Field(
        None, description="as data.impute or data.impute_categories; or the number or category to fill in"
    )
    unknown: Literal["error", "other"] | None = Field(None, description="as data.unknown")
    rare: Count | None = Field(None, description="as data.rare")

    @field_validator("impute", mode="before")
    @classmethod
    def _number_or_text(cls, value: object) -> object:
        if isinstance(value, str) or _is_number(value):
            return value
        raise ValueError(f"got {value!r}; allowed: {cls.model_fields['impute'].description}")


class ColumnKeys(BaseModel):
    """Keys of ``[data]`` for every file that is a table: columns with names, one of them the target.

    Attributes:
        target: name of the column to predict: classes (any text) or numbers.
        features: names of the columns to learn from, in the order in which requests will send them;
            by default every column but the target, in the order of the file.
        categorical: columns of numbers that are names; columns of text hold categories by themselves.
        impute: what stands in for a missing number; the statistics are those of the training rows.
        impute_categories: what stands in for a missing category; ``missing`` makes it one of its own.
        unknown: what a request gets for a category that no training row has: a refusal, or the answer for
            none of the known categories.
        rare: categories of fewer training rows than this are not known either; with ``unknown = "other"``.
        columns: what differs for single columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    target: str = Field(min_length=1, description="the name of the column to predict")
    features: list[str] | None = Field(
        None, min_length=1, description="a list of column names; leave it out to take every other column"
    )
    categorical: list[str] = Field(
        [], description="a list of columns whose numbers are names; texts are so by themselves"
    )
    impute: float | str = Field(
        "error", description='"error" (a missing number is refused), "median", "mean" or a number'
    )
    impute_categories: Literal["error", "most_frequent", "missing"] = Field(
        "error",
        description='"error" (a missing category is refused), "most_frequent" or "missing" (a category '
        "of its own)",
    )
    unknown: Literal["error", "other"] = Field(
        "error", description='"error" (an unknown category is refused) or "other" (none of the known ones)'
    )
    rare: Count = Field(
        1,
        description='a whole number; categories of fewer training rows count as unknown, if that is "other"',
    )
    columns: dict[str, ColumnTable] = Field(
        {}, description="tables [data.columns.NAME] with impute, unknown or rare for that column alone"
    )

    @field_validator("impute", mode="before")
    @classmethod
    def _known_statistic(cls, value: object) -> object:
        if _is_number(value) or value in IMPUTE_NUMBERS:
            return value
        raise ValueError(f"got {value!r}; allowed: {cls.model_fields['impute'].description}")

    def imputes(self, name: str, *, categories: bool) -> float | str:
        """What to fill in in a column; ``error`` for nothing."""
        own = self.columns[name].impute if name in self.columns else None
        return own if own is not None else self.impute_categories if categories else self.impute

    def unknown_of(self, name: str) -> tuple[bool, int]:
        """Whether a column takes unknown categories, and how many training rows make one known."""
        own = self.columns.get(name, ColumnTable())  # type: ignore[call-arg]  # all have defaults
        return (own.unknown or self.unknown) == "other", own.rare or self.rare


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
