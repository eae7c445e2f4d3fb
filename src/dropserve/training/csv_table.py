"""CSV files: numeric feature columns and a target column, with errors that name line and column.

The csv module counts lines as an editor does (blank lines and quoted line breaks included); that is worth
more here than speed.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dropserve.errors import DataError
from dropserve.training.problems import did_you_mean, shown
from dropserve.training.recipe import CsvData
from dropserve.training.table import FloatArray, Table

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
_SHOWN = 10
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Sheet:
    file: Path
    header: list[str]
    lines: list[int]
    rows: list[list[str]]


def read_csv(data: CsvData, folder: Path, *, task: str) -> Table:
    """Read a CSV file into a table.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which the file's path is relative to.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.

    Raises:
        DataError: for what cannot be learned from; the message names file, line and column.
    """
    sheet = _read(folder / data.file, data.delimiter)
    target = _column(sheet, data.target, "target")
    if data.features is None:
        chosen = [place for place in range(len(sheet.header)) if place != target]
    else:
        chosen = [_column(sheet, name, "features") for name in data.features]
    if not chosen:
        raise DataError(f"{sheet.file}: no column is left beside the target {data.target!r} to learn from")
    problems = _Problems(sheet)
    features = np.empty((len(sheet.rows), len(chosen)), np.float32)
    for place, column in enumerate(chosen):
        features[:, place] = _numbers(sheet, column, problems)
    columns = tuple(sheet.header[column] for column in chosen)
    if task == "regression":
        values = _numbers(sheet, target, problems)
        problems.raise_if_any()
        return Table(str(sheet.file), features, values, columns)
    texts = [row[target].strip() for row in sheet.rows]
    for row, text in enumerate(texts):
        if text.lower() in _MISSING:
            problems.add(row, target, "the class is missing; fill it in, or remove the line")
    problems.raise_if_any()
    labels = _sorted_labels(texts)
    number = {label: place for place, label in enumerate(labels)}
    return Table(
        str(sheet.file), features, np.array([number[text] for text in texts], np.int64), columns, labels
    )


def _read(file: Path, delimiter: str) -> _Sheet:
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            begin = reader.line_num + 1
            for row in reader:
                if row and any(cell.strip() for cell in row):
                    _check_width(file, begin, row, header)
                    lines.append(begin)
                    rows.append(row)
                begin = reader.line_num + 1
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{file}: not a CSV file: {error}") from error
    if not header:
        raise DataError(f"{file}: empty; expected a header line with the names of the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{file}, line 1: column {', '.join(map(repr, twice))} stands twice; rename one")
    if not rows:
        raise DataError(f"{file}: a header line and no rows below it")
    _check_header(file, header)
    return _Sheet(file, header, lines, rows)


def _check_width(file: Path, line: int, row: Sequence[str], header: Sequence[str]) -> None:
    if len(row) != len(header):
        raise DataError(
            f"{file}, line {line}: {len(row)} values, but the header names {len(header)} columns "
            f"({', '.join(header[:8])}{', ...' if len(header) > 8 else ''})"
        )


def _check_header(file: Path, header: Sequence[str]) -> None:
    if len(header) > 1 and all(_number(name) is not None for name in header):
        raise DataError(
            f"{file}, line 1: {', '.join(header[:4])}... are numbers; expected a header line with the names "
            "of the columns. Add one."
        )


def _column(sheet: _Sheet, name: str, key: str) -> int:
    if name in sheet.header:
        return sheet.header.index(name)
    hint = did_you_mean(name, sheet.header)
    if len(sheet.header) == 1 and (other := [c for c in ";\t|," if c in sheet.header[0]]):
        hint = f" (the file seems to be separated by {other[0]!r}: set data.delimiter)"
    raise DataError(
        f"{sheet.file}: no column {name!r} (data.{key}){hint}; its columns: {', '.join(sheet.header)}"
    )


def _number(text: str) -> float | None:
    """A number as spreadsheets write it; not Python's ``1_000``."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _numbers(sheet: _Sheet, column: int, problems: _Problems) -> FloatArray:
    values = np.zeros(len(sheet.rows), np.float32)
    for row, cells in enumerate(sheet.rows):
        text = cells[column].strip()
        number = _number(text)
        if text.lower() in _MISSING:
            problems.add(row, column, "the value is missing; fill it in, or remove the line")
        elif number is None:
            problems.add(row, column, f"{shown(text)} is not a number; mend it, or leave the column out")
        elif not math.isfinite(number) or abs(number) > _LARGEST:
            problems.add(row, column, f"{shown(text)} is not finite in 32 bits; rescale the column")
        else:
            values[row] = number
    return values


def _sorted_labels(texts: list[str]) -> tuple[str, ...]:
    """Classes in the order of their numbers if all are numbers, else of their texts."""
    found = sorted(set(texts))
    numbers = [_number(text) for text in found]
    if all(number is not None and math.isfinite(number) for number in numbers):
        return tuple(text for _, text in sorted(zip(numbers, found, strict=True)))
    return tuple(found)


class _Problems:
    """Cells that cannot be used: the first few by place, the rest by number."""

    def __init__(self, sheet: _Sheet) -> None:
        self._sheet = sheet
        self._found: list[str] = []
        self._count = 0

    def add(self, row: int, column: int, what: str) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            name = self._sheet.header[column]
            self._found.append(f"line {self._sheet.lines[row]}, column {name!r}: {what}")

    def raise_if_any(self) -> None:
        if not self._count:
            return
        more = [f"... and {self._count - _SHOWN} more"] if self._count > _SHOWN else []
        lines = "\n".join(f"  - {line}" for line in [*self._found, *more])
        raise DataError(f"{self._sheet.file}: {self._count} values cannot be learned from\n{lines}")
