"""CSV files: columns of numbers or categories and a target, with errors that name line and column.

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
from dropserve.training.cells import (
    MISSING_CATEGORY,
    MISSING_CLASS,
    MISSING_NUMBER,
    MISSING_VALUE,
    Problems,
    coded,
    number,
    sorted_labels,
)
from dropserve.training.problems import did_you_mean, shown
from dropserve.training.recipe import CsvData
from dropserve.training.table import FloatArray, Table

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
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
    for key, names in (("categorical", data.categorical), ("columns", data.columns)):
        for name in names:
            _column(sheet, name, key)
    problems = Problems(sheet.file, lambda row: f"line {sheet.lines[row]}")
    features = np.empty((len(sheet.rows), len(chosen)), np.float32)
    vocabularies: list[tuple[str, ...]] = []
    for place, column in enumerate(chosen):
        features[:, place], vocabulary = _feature(sheet, column, data, problems)
        vocabularies.append(vocabulary)
    columns = tuple(sheet.header[column] for column in chosen)
    categories = tuple(vocabularies) if any(vocabularies) else ()
    if task == "regression":
        values = _numbers(sheet, target, problems, missing=MISSING_VALUE)
        problems.raise_if_any()
        return Table(str(sheet.file), features, values, columns, categories=categories)
    texts = [row[target].strip() for row in sheet.rows]
    for row, text in enumerate(texts):
        if text.lower() in _MISSING:
            problems.add(row, data.target, MISSING_CLASS)
    problems.raise_if_any()
    labels = sorted_labels(texts)
    places = {label: at for at, label in enumerate(labels)}
    classes = np.array([places[text] for text in texts], np.int64)
    return Table(str(sheet.file), features, classes, columns, labels, categories=categories)


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
    if len(header) > 1 and all(number(name) is not None for name in header):
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


def _feature(
    sheet: _Sheet, column: int, data: CsvData, problems: Problems
) -> tuple[FloatArray, tuple[str, ...]]:
    """Numbers, or codes and their vocabulary; NaN where a value is missing that may be."""
    name = sheet.header[column]
    cells = [cells[column].strip() for cells in sheet.rows]
    texts = [None if cell.lower() in _MISSING else cell for cell in cells]
    present = [text for text in texts if text is not None]
    if name in data.categorical or (present and all(number(text) is None for text in present)):
        if data.imputes(name, categories=True) == "error":
            for row in (row for row, text in enumerate(texts) if text is None):
                problems.add(row, name, MISSING_CATEGORY)
        return coded(texts)
    may_lack = data.imputes(name, categories=False) != "error"
    return _numbers(sheet, column, problems, missing=None if may_lack else MISSING_NUMBER), ()


def _numbers(sheet: _Sheet, column: int, problems: Problems, *, missing: str | None) -> FloatArray:
    """Numbers, NaN where one is missing; what to say about that, or None if it may be."""
    values, name = np.zeros(len(sheet.rows), np.float32), sheet.header[column]
    for row, cells in enumerate(sheet.rows):
        text = cells[column].strip()
        value = number(text)
        if text.lower() in _MISSING:
            values[row] = np.nan
            if missing:
                problems.add(row, name, missing)
        elif value is None:
            remedy = "mend it, leave the column out, or name it in data.categorical"
            problems.add(row, name, f"{shown(text)} is not a number; {remedy}")
        elif not math.isfinite(value) or abs(value) > _LARGEST:
            problems.add(row, name, f"{shown(text)} is not finite in 32 bits; rescale the column")
        else:
            values[row] = value
    return values
