"""What the training rows say about the columns of a table: vocabularies, and what stands in for a gap."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dropserve.cell_parsing import spellings
from dropserve.columns import MISSING_CATEGORY, Column
from dropserve.errors import DataError
from dropserve.training.problems import did_you_mean, shown
from dropserve.training.recipe_columns import IMPUTE_CATEGORIES, IMPUTE_NUMBERS, ColumnKeys
from dropserve.training.table import FloatArray, Table

MOST_CATEGORIES = 1000  # each is a number in every row
_NEVER_TOO_MANY = 20


def fit_columns(
    table: Table, train: NDArray[np.int64], keys: ColumnKeys | None
) -> tuple[Table, tuple[Column, ...]]:
    """Fit every column on the training rows alone.

    Args:
        table: its codes are places in the vocabularies of all rows.
        train: row numbers.
        keys: what the recipe says about columns; None for sources that have no gaps and no categories.

    Returns:
        The table with codes of the fitted vocabularies, and its columns; none if they have no names.

    Raises:
        DataError: with every column that cannot be fitted, and why.
    """
    if keys is None:
        return table, tuple(Column(name=name) for name in table.columns)
    features, columns, problems = table.features.copy(), list[Column](), list[str]()
    vocabularies = table.categories or ((),) * len(table.columns)
    for place, (name, vocabulary) in enumerate(zip(table.columns, vocabularies, strict=True)):
        fitting = _Fitting(name, table.features[:, place], train, keys, problems)
        if vocabulary:
            column, features[:, place] = fitting.categories(vocabulary)
        else:
            column = fitting.numbers()
        columns.append(column)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{table.name}: {len(problems)} columns cannot be learned from\n{lines}")
    categories = tuple(column.categories for column in columns)
    return replace(table, features=features, categories=categories if any(categories) else ()), tuple(columns)


@dataclass(frozen=True)
class _Fitting:
    """One column: its name, all of its values, which of them are for training; finds are noted."""

    name: str
    values: FloatArray
    train: NDArray[np.int64]
    keys: ColumnKeys
    problems: list[str]

    def numbers(self) -> Column:
        """Its fill, if it is imputed."""
        how = self.keys.imputes(self.name, categories=False)
        if own := self._keys_of_categories():
            self._note(f"it holds numbers, and {own} is for categories; name it in data.categorical")
        if how == "error":
            return Column(name=self.name)
        if not isinstance(how, str):
            return Column(name=self.name, fill=float(np.float32(how)))
        if how not in IMPUTE_NUMBERS:
            allowed = ", ".join(IMPUTE_NUMBERS)
            self._note(f"it holds numbers; impute is {shown(how)}, expected one of {allowed}, or a number")
            return Column(name=self.name)
        present = self.values[self.train].astype(np.float64)
        present = present[~np.isnan(present)]
        if not len(present):
            self._note(f"no training row has a value, so there is no {how}; leave it out, or impute a number")
            return Column(name=self.name)
        return Column(name=self.name, fill=float(np.median(present) if how == "median" else present.mean()))

    def categories(self, found: tuple[str, ...]) -> tuple[Column, FloatArray]:
        """Its vocabulary and fill, and its values as codes of that vocabulary."""
        other, rare = self.keys.unknown_of(self.name)
        codes = self.values[self.train]
        missing = int(np.isnan(codes).sum())
        counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(found))
        known = tuple(
            text for text, count in zip(found, counts, strict=True) if count >= (rare if other else 1)
        )
        self._require_known(found, known, other=other)
        how = self.keys.imputes(self.name, categories=True)
        if how == MISSING_CATEGORY and MISSING_CATEGORY not in known and missing:
            known += (MISSING_CATEGORY,)
        fill = self._fill(how, known, dict(zip(found, counts.tolist(), strict=True)), missing)
        column = Column(name=self.name, categories=known, other=other and bool(known), fill=fill)
        new = np.array([known.index(text) if text in known else len(known) for text in found], np.float32)
        recoded = np.full_like(self.values, np.nan)
        there = ~np.isnan(self.values)
        recoded[there] = new[self.values[there].astype(np.int64)]
        return column, recoded

    def _require_known(self, found: tuple[str, ...], known: tuple[str, ...], *, other: bool) -> None:
        """Few enough categories, and a training row of each."""
        many = len(known) > max(_NEVER_TOO_MANY, len(self.values) // 2)
        if many or len(known) > MOST_CATEGORIES:
            why = "that looks like an identifier" if many else f"at most {MOST_CATEGORIES} are taken"
            self._note(
                f"it has {len(known)} categories in {len(self.values)} rows; {why}. Leave it out of "
                'data.features, or set unknown = "other" and rare = 10, say'
            )
        unseen = [text for text in found if text not in known]
        if unseen and not other:
            listed = ", ".join(map(repr, unseen[:10])) + (", ..." if len(unseen) > 10 else "")
            self._note(
                f'no training row has the category {listed}; add rows, remove those, or set unknown = "other"'
            )
        if not known:
            self._note("no category is in enough training rows to be known; leave it out, or lower rare")

    def _fill(
        self, how: float | str, known: tuple[str, ...], counts: dict[str, int], missing: int
    ) -> float | None:
        """The code that stands in for a missing category."""
        if how == "error" or not known:
            return None
        if how == "most_frequent":
            return float(max(range(len(known)), key=lambda place: counts.get(known[place], 0)))
        if how == MISSING_CATEGORY and MISSING_CATEGORY not in known:
            if np.isnan(self.values).any() and not missing:
                self._note(
                    "it is missing in held-out rows and in no training row, so nothing is known of "
                    f"{MISSING_CATEGORY!r} as a category; impute most_frequent, or one of its categories"
                )
            return None  # as it is nowhere missing, nothing is known of missing ones: they are refused
        for text in spellings(how):
            if text in known:
                return float(known.index(text))
        hint = did_you_mean(str(how), known)
        rules = ", ".join(IMPUTE_CATEGORIES)
        self._note(f"impute is {shown(how)}{hint}; expected one of {rules}, or one of its categories")
        return None

    def _keys_of_categories(self) -> str | None:
        own = self.keys.columns.get(self.name)
        return next((key for key in ("unknown", "rare") if own and getattr(own, key) is not None), None)

    def _note(self, problem: str) -> None:
        self.problems.append(f"column {self.name!r}: {problem}")
