"""Rows of a table in a request: lists in the order of the columns, or objects by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from dropserve.cell_parsing import is_missing, spellings
from dropserve.columns import Column
from dropserve.errors import RequestError
from dropserve.manifest import VersionManifest
from dropserve.serving.instances import describe, quote
from dropserve.serving.query import Array
from dropserve.signature import TensorSpec

_SHOWN = 30  # names or categories in one message
_FEW = 8  # names in the description of a request
_NUMBERS: frozenset[type] = frozenset({int, float})


class Cells:
    """Turns the values of one column into numbers for the graph.

    Args:
        column: the column.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self._codes = {text: float(code) for code, text in enumerate(column.categories)}

    def read(self, value: Any) -> float | None:
        """A number, a code, or NaN for what is missing; None if the value may not stand in the column."""
        if value is None:
            return None if self.column.fill is None else np.nan
        if not self._codes:
            return value if type(value) in _NUMBERS else None
        return self._code(value) if isinstance(value, str | bool | int | float) else None

    def _code(self, value: str | bool | float) -> float | None:
        for text in spellings(value):
            if text in self._codes:
                return self._codes[text]
        if is_missing(value):  # as in a file
            return self.read(None)
        return float(len(self._codes)) if self.column.other else None

    def expected(self, came: Any = None) -> str:
        """What may stand in the column, in words; of many categories, those nearest to what came first."""
        null = " or null" if self.column.fill is not None else ""
        if not self._codes:
            return f"a number{null}"
        if self.column.other:
            given = isinstance(came, str) and bool(came) and is_missing(came)
            return f"a category (a text){null}{', not a text that stands for a missing value' * given}"
        known = list(self._codes)
        if len(known) > _SHOWN and isinstance(came, str):
            near = difflib.get_close_matches(came[:100], known, n=5, cutoff=0.4)
            known = [*near, *(text for text in known if text not in near)]
        return f"one of {listed(known)}{null}"


class TableReader:
    """Reads the rows of an input whose columns have names.

    Args:
        spec: the input, ``[columns]`` a row.
        columns: of the table.

    Attributes:
        cells: for the name of each column, what reads its values, in order.
        has_categories: whether a column holds categories, so that V2 has an input for each column.
        gaps: for each column, whether a number may be missing.
    """

    def __init__(self, spec: TensorSpec, columns: Sequence[Column]) -> None:
        self.spec = spec
        self.cells = {column.name: Cells(column) for column in columns}
        self.has_categories = any(column.categories for column in columns)
        self.gaps = np.array([column.fill is not None for column in columns])
        self._plain = all(column.is_plain for column in columns)
        self._noun = "values" if self.has_categories else "numbers"
        self._as_tensor = set() if spec.name in self.cells else {spec.name}

    def form(self) -> str:
        """A row in words."""
        names = list(self.cells)
        more = f", ... {len(names) - _FEW} more" if len(names) > _FEW else ""
        return (
            f"a list of {len(names)} {self._noun} ({', '.join(names[:_FEW])}{more}) or an object with these "
            "names"
        )

    def read(self, instances: Any, doubled: Mapping[int, Sequence[str]] = MappingProxyType({})) -> Array:
        """Turn instances into the rows of the input.

        Args:
            instances: what stood in the JSON: a list of lists and objects.
            doubled: for the number of an instance, the names that stand in it twice.

        Returns:
            ``[B, columns]``; NaN where a value is missing.

        Raises:
            RequestError: for anything else; the message names instance and column.
        """
        form = f"a list of instances, each {self.form()}"
        if not isinstance(instances, list):
            refuse("type", f'"instances" is {describe(instances)}; expected {form}')
        if not instances:
            refuse("empty", f'"instances" is empty; expected {form}')
        flat: list[float] = []
        for row, instance in enumerate(instances):
            values = self._values(instance, row, doubled.get(row, ()))
            if self._plain and _NUMBERS.issuperset(map(type, values)):
                flat += values
                continue
            for place, (cells, value) in enumerate(zip(self.cells.values(), values, strict=True)):
                number = cells.read(value)
                if number is None:
                    reason = "category" if cells.column.categories else "type"
                    came = f"{_at(instance, row, place, cells)} is {describe(value)}"
                    refuse(reason, f"{came}; expected {cells.expected(value)}")
                flat.append(number)
        return self._convert(flat, instances)

    def _values(self, instance: Any, row: int, doubled: Sequence[str]) -> list[Any]:
        """The values of one row in the order of the columns."""
        if isinstance(instance, dict):
            if not doubled and instance.keys() == self.cells.keys():
                return [instance[name] for name in self.cells]
            if doubled or instance.keys() != self._as_tensor:
                self._refuse_names(instance, row, doubled)
            instance = instance[self.spec.name]
        if not isinstance(instance, list):
            refuse("type", f"instance {row} is {describe(instance)}; expected {self.form()}")
        if len(instance) != len(self.cells):
            refuse("shape", f"instance {row} has {len(instance)} {self._noun}; expected {self.form()}")
        return instance

    def _convert(self, flat: list[float], instances: Sequence[Any]) -> Array:
        try:
            exact = np.array(flat, np.float64)
        except OverflowError:  # an integer of more than 308 digits
            exact = np.array([np.inf if abs(x) > 1e308 else x for x in flat], np.float64)
        with np.errstate(over="ignore"):
            rows = exact.astype(np.float32).reshape(-1, len(self.cells))
        unfit = ~np.isfinite(rows) & ~(self.gaps & np.isnan(rows))
        if unfit.any():
            row, place = (int(index) for index in np.argwhere(unfit)[0])
            cells = list(self.cells.values())[place]
            value = self._values(instances[row], row, ())[place]
            where = _at(instances[row], row, place, cells)
            refuse("range", f"{where} is {describe(value)}; expected a number within the range of float32")
        return rows

    def _refuse_names(self, instance: Mapping[str, Any], row: int, doubled: Sequence[str]) -> NoReturn:
        wrong = {
            "missing": [name for name in self.cells if name not in instance],
            "unknown": [name for name in instance if name not in self.cells],
            "twice": doubled,
        }
        parts = [f"{what}: {listed(names)}" for what, names in wrong.items() if names]
        refuse(
            "input_name",
            f"instance {row}: names {'; '.join(parts)}. Expected each once: {listed(self.cells)}",
        )


def table_reader(manifest: VersionManifest) -> TableReader | None:
    """What reads the rows of a model; None if they are no table's."""
    (spec, *others), columns = manifest.signature.inputs, manifest.preprocessing.columns
    if others or spec.name not in columns or spec.shape != (len(columns[spec.name]),):
        return None
    return TableReader(spec, columns[spec.name])


def _at(instance: Any, row: int, place: int, cells: Cells) -> str:
    """Where a value stands, as its sender wrote it."""
    name = quote(cells.column.name)
    by_name = isinstance(instance, dict) and cells.column.name in instance
    return f"instance {row}, {name}" if by_name else f"instance {row}, element [{place}] ({name})"


def listed(texts: Sequence[str] | Mapping[str, Any]) -> str:
    """Texts in quotes; of very many, the first."""
    shown = list(texts)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(map(quote, shown[:_SHOWN])) + more


def refuse(reason: str, message: str) -> NoReturn:
    """Refuse a request.

    Raises:
        RequestError: always.
    """
    raise RequestError(message, reason=reason)
