"""CSV and Parquet files: columns of numbers or categories and a target, with errors that name row and column.

Both become a data frame, and one reader takes its columns. A CSV file is split by the csv module, as pandas
cannot tell on which line of the file a row begins.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.cell_parsing import category, is_missing, number
from dropserve.errors import DataError
from dropserve.training.problems import did_you_mean, shown
from dropserve.training.recipe import CsvData, ParquetData
from dropserve.training.table import Table, coded
from dropserve.training.table_checks import (
    Problems,
    check_spelling,
    check_unasked,
    features_line,
    looks_like,
    lost_in_float32,
)

MISSING_VALUE = "the value is missing; fill it in, or remove the row"
MISSING_CLASS = "the class is missing; fill it in, or remove the row"
MISSING_NUMBER = "the value is missing; fill it in, remove the row, or set data.impute"
MISSING_CATEGORY = "the category is missing; fill it in, remove the row, or set data.impute_categories"
_LARGEST = float(np.finfo(np.float32).max)
_SEPARATORS = ";\t|,"


@dataclass(frozen=True)
class _Sheet:
    """A file's columns, and what to call a row of it. Texts of a CSV file may be numbers."""

    file: Path
    frame: Any
    names: list[str]
    place: Callable[[int], str]
    decimal: str | None = None


def read_tabular(data: CsvData | ParquetData, folder: Path, *, task: str) -> Table:
    """Read a CSV or Parquet file into a table.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which the file's path is relative to.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.

    Raises:
        DataError: for what cannot be learned from; the message names file, row and column.
    """
    path = folder / data.file
    sheet = _read_csv(path, data) if isinstance(data, CsvData) else _read_parquet(path)
    columns = _chosen(sheet, data)
    problems = Problems(path, sheet.place)
    read = [_feature(sheet, name, data, problems) for name in columns]
    codes = [coded(texts) if texts is not None else (values, ()) for values, texts in read]
    texts = {name: each for name, (_, each) in zip(columns, read, strict=True) if each is not None}
    labels: tuple[str, ...] = ()
    if task == "regression":
        target: NDArray[Any] = _numbers(sheet, data.target, problems, missing=MISSING_VALUE)
        asked: Sequence[Any] = target.tolist()
    else:
        asked = [category(cell) for cell in _cells(sheet, data.target)]
        problems.add(data.target, [row for row, text in enumerate(asked) if text is None], MISSING_CLASS)
        target, labels = coded(asked)
        if alike := check_spelling(labels):
            problems.note(f"column {data.target!r} holds {alike}")
    if data.features is None:
        numbers = {name: values for name, (values, _) in zip(columns, codes, strict=True)}
        names, lines = check_unasked(numbers, texts, asked)
        for line in lines:
            problems.note(line)
        if names and (rest := [name for name in columns if name not in names]):
            problems.note(f"say which columns to learn from, in [data]: {features_line(rest)}")
    problems.raise_if_any()
    features = np.stack([values for values, _ in codes], axis=1).astype(np.float32)
    vocabularies = tuple(vocabulary for _, vocabulary in codes)
    return Table(
        str(path),
        features,
        target.astype(np.int64) if labels else target.astype(np.float32),
        tuple(columns),
        labels,
        categories=vocabularies if any(vocabularies) else (),
    )


def _read_csv(file: Path, data: CsvData) -> _Sheet:
    import pandas as pd  # noqa: PLC0415  # a second to import

    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=data.delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            begin = reader.line_num + 1
            for row in reader:
                if row and any(cell.strip() for cell in row):
                    if len(row) != len(header):
                        _refuse_width(file, begin, len(row), header)
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
    _refuse_twice(f"{file}, line 1", header)
    if not rows:
        raise DataError(f"{file}: a header line and no rows below it")
    if len(header) > 1 and all(number(name) is not None for name in header):
        raise DataError(
            f"{file}, line 1: {', '.join(header[:4])}... are numbers; expected a header line with the names "
            "of the columns. Add one."
        )
    frame = pd.DataFrame(rows, columns=header, dtype=object)
    return _Sheet(file, frame, header, lambda row: f"line {lines[row]}", data.decimal)


def _read_parquet(path: Path) -> _Sheet:
    import pandas as pd  # noqa: PLC0415  # a second to import

    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error
    frame.columns = names = [str(name) for name in frame.columns]
    _refuse_twice(str(path), names)
    if not len(frame):
        raise DataError(f"{path}: columns and no rows")
    return _Sheet(path, frame, names, lambda row: f"row {row + 1}")


def _refuse_width(file: Path, line: int, width: int, header: Sequence[str]) -> None:
    listed = f"{', '.join(header[:8])}{', ...' if len(header) > 8 else ''}"
    raise DataError(
        f"{file}, line {line}: {width} values, but the header names {len(header)} columns ({listed})"
        f"{_delimiter_hint(header)}"
    )


def _refuse_twice(where: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice == [""]:
        raise DataError(f"{where}: {names.count('')} columns have no name; name them, or remove them")
    if twice:
        raise DataError(f"{where}: column {', '.join(map(repr, twice))} stands twice; rename one")


def _delimiter_hint(header: Sequence[str]) -> str:
    if len(header) == 1 and (other := [mark for mark in _SEPARATORS if mark in header[0]]):
        return f" (the file seems to be separated by {other[0]!r}: set data.delimiter = {_toml(other[0])})"
    return ""


def _toml(mark: str) -> str:
    return '"\\t"' if mark == "\t" else f'"{mark}"'


def _chosen(sheet: _Sheet, data: CsvData | ParquetData) -> list[str]:
    """The names of the features, every name that the recipe gives having been looked up."""
    chosen = data.features or [name for name in sheet.names if name != data.target]
    given = {
        "target": [data.target],
        "features": chosen,
        "categorical": data.categorical,
        "columns": data.columns,
    }
    for key, name in ((key, name) for key, names in given.items() for name in names):
        if name not in sheet.names:
            hint = _delimiter_hint(sheet.names) or did_you_mean(name, sheet.names)
            raise DataError(
                f"{sheet.file}: no column {name!r} (data.{key}){hint}; its columns: {', '.join(sheet.names)}"
            )
    if not chosen:
        raise DataError(f"{sheet.file}: no column is left beside the target {data.target!r} to learn from")
    return chosen


def _cells(sheet: _Sheet, name: str) -> list[Any]:
    """The values of a column: None for what is missing, texts without the blanks around them."""
    series = sheet.frame[name]
    cells = series.astype(object).where(series.notna(), None).tolist()
    return [
        None if is_missing(cell) else cell.strip() if isinstance(cell, str) else _plain(cell)
        for cell in cells
    ]


def _plain(cell: Any) -> Any:
    """Numpy's booleans and numbers as Python's."""
    return cell.item() if isinstance(cell, np.bool_ | np.number) else cell


def _feature(
    sheet: _Sheet, name: str, data: CsvData | ParquetData, problems: Problems
) -> tuple[NDArray[np.float64], list[str | None] | None]:
    """Numbers, NaN where one is missing that may be; or nothing, and the categories."""
    cells = _cells(sheet, name)
    if name not in data.categorical and not _holds_names(sheet, cells):
        may_lack = data.imputes(name, categories=False) != "error"
        return _numbers(sheet, name, problems, missing=None if may_lack else MISSING_NUMBER), None
    texts = [category(cell) for cell in cells]
    if data.imputes(name, categories=True) == "error":
        problems.add(name, [row for row, text in enumerate(texts) if text is None], MISSING_CATEGORY)
    written = [cell for cell in cells if isinstance(cell, str)]
    if name not in data.categorical and written and (what := looks_like(written, sheet.decimal or ".")):
        rows = [row for row, cell in enumerate(cells) if cell is not None]
        remedy = "or, if they are names, list the column in data.categorical"
        problems.add(name, rows, f"{shown(cells[rows[0]])} and the others look like {what}; {remedy}")
    return np.empty(0), texts


def _holds_names(sheet: _Sheet, cells: list[Any]) -> bool:
    """Whether no present value is a number. Booleans some of which are missing are names."""
    present = [cell for cell in cells if cell is not None]
    if sheet.decimal is not None:
        return bool(present) and all(number(cell, sheet.decimal) is None for cell in present)
    kinds = {type(cell) for cell in present}
    return bool(kinds) and (kinds <= {str, bool}) and not (kinds == {bool} and len(present) == len(cells))


def _numbers(sheet: _Sheet, name: str, problems: Problems, *, missing: str | None) -> NDArray[np.float64]:
    """Numbers in 64 bits, NaN where one is missing; what to say about that, or None if it may be."""
    cells = _cells(sheet, name)
    present = [(row, cell) for row, cell in enumerate(cells) if cell is not None]
    values = np.full(len(cells), np.nan)
    if sheet.decimal is not None:
        read = [(row, number(cell, sheet.decimal)) for row, cell in present]
    else:
        odd = next((cell for _, cell in present if not isinstance(cell, bool | int | float | Decimal)), None)
        if odd is not None:
            raise DataError(
                f"{sheet.file}: column {name!r} holds {sheet.frame[name].dtype}, such as {shown(odd)}, not "
                "numbers; leave it out of data.features, or store it as numbers (dates as days, say) or texts"
            )
        read = [(row, float(cell)) for row, cell in present]
    for row, value in read:
        values[row] = np.nan if value is None else value
    if missing:
        problems.add(name, [row for row, cell in enumerate(cells) if cell is None], missing)
    odd_rows = [row for row, value in read if value is None]
    if odd_rows:
        seen = looks_like([cells[row] for row in odd_rows], sheet.decimal or ".")
        remedy = f"it looks like {seen}" if seen else "mend it, leave the column out"
        what = f"{shown(cells[odd_rows[0]])} is not a number; {remedy}, or name it in data.categorical"
        problems.add(name, odd_rows, what)
    wide = [row for row, value in read if value is not None and not abs(value) <= _LARGEST]
    if wide:
        problems.add(name, wide, f"{shown(cells[wide[0]])} is not finite in 32 bits; rescale the column")
    elif lost := lost_in_float32(values):
        problems.note(f"column {name!r}: {lost}")
    return values
