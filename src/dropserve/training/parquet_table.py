"""Parquet files: the rules of CSV files for columns that already have a type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dropserve.errors import DataError
from dropserve.training.cells import (
    MISSING_CATEGORY,
    MISSING_CLASS,
    MISSING_NUMBER,
    MISSING_VALUE,
    Problems,
    coded,
)
from dropserve.training.problems import did_you_mean, shown
from dropserve.training.recipe import ParquetData
from dropserve.training.table import FloatArray, Table


def read_parquet(data: ParquetData, folder: Path, *, task: str) -> Table:
    """Read a Parquet file into a table.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which the file's path is relative to.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.

    Raises:
        DataError: for what cannot be learned from; the message names file, row (from 1) and column.
    """
    path = folder / data.file
    frame = _read(path)
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(map(repr, twice))} stands twice; rename one")
    frame.columns = names
    columns = data.features or [name for name in names if name != data.target]
    wanted = {
        "target": [data.target],
        "features": columns,
        "categorical": data.categorical,
        "columns": data.columns,
    }
    for key, name in ((key, name) for key, names in wanted.items() for name in names):
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(f"{path}: no column {name!r} (data.{key}){hint}; its columns: {', '.join(names)}")
    if not columns:
        raise DataError(f"{path}: no column is left beside the target {data.target!r} to learn from")
    if not len(frame):
        raise DataError(f"{path}: columns and no rows")
    problems = Problems(path, lambda row: f"row {row + 1}")
    read = [_feature(path, frame[name], data, problems) for name in columns]
    features = np.stack([values for values, _ in read], axis=1)
    vocabularies = tuple(vocabulary for _, vocabulary in read)
    categories = vocabularies if any(vocabularies) else ()
    if task == "regression":
        target = _numbers(path, frame[data.target], problems, missing=MISSING_VALUE)
        problems.raise_if_any()
        return Table(str(path), features, target, tuple(columns), categories=categories)
    texts = _texts(frame[data.target], str)
    for row in (row for row, text in enumerate(texts) if text is None):
        problems.add(row, data.target, MISSING_CLASS)
    problems.raise_if_any()
    classes, labels = coded(texts)
    return Table(str(path), features, classes.astype(np.int64), tuple(columns), labels, categories=categories)


def _read(path: Path) -> Any:
    import pandas as pd  # noqa: PLC0415  # a second to import

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def _feature(
    path: Path, series: Any, data: ParquetData, problems: Problems
) -> tuple[FloatArray, tuple[str, ...]]:
    """Numbers, or codes and their vocabulary; NaN where a value is missing that may be."""
    name = str(series.name)
    if name not in data.categorical and not _holds_texts(series):
        may_lack = data.imputes(name, categories=False) != "error"
        return _numbers(path, series, problems, missing=None if may_lack else MISSING_NUMBER), ()
    texts = _texts(series, _category)
    if data.imputes(name, categories=True) == "error":
        for row in (row for row, text in enumerate(texts) if text is None):
            problems.add(row, name, MISSING_CATEGORY)
    return coded(texts)


def _holds_texts(series: Any) -> bool:
    """Whether a column holds texts, or truth values some of which are missing, and nothing else."""
    from pandas.api import types  # noqa: PLC0415  # see _read

    if types.is_numeric_dtype(series.dtype):
        return False
    return {type(value) for value in series.dropna()} <= {str, bool} and not series.isna().all()


def _texts(series: Any, write: Callable[[Any], str]) -> list[str | None]:
    """None for what is missing, an empty text too."""
    missing = series.isna()
    return [
        None if lacks else write(value).strip() or None for value, lacks in zip(series, missing, strict=True)
    ]


def _category(value: Any) -> str:
    """As a request writes it: whole numbers without a fraction, truth values as JSON has them.

    A column of whole numbers with a missing one comes as fractions.
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _numbers(path: Path, series: Any, problems: Problems, *, missing: str | None) -> FloatArray:
    """Numbers, NaN where one is missing; what to say about that, or None if it may be."""
    from pandas.api import types  # noqa: PLC0415  # see _read

    name = str(series.name)
    if not types.is_numeric_dtype(series.dtype) or types.is_complex_dtype(series.dtype):
        held = shown(next(iter(series.dropna()), None))
        raise DataError(
            f"{path}: column {name!r} holds {series.dtype}, such as {held}, not numbers; leave it out of "
            "data.features, or store it as numbers or texts"
        )
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    lacking = np.isnan(values)
    numbers[lacking] = np.nan
    for row in np.flatnonzero(lacking) if missing else ():
        problems.add(int(row), name, missing or "")
    for row in np.flatnonzero(np.isinf(numbers)):
        problems.add(int(row), name, f"{values[row]:g} is not finite in 32 bits; rescale the column")
    return numbers
