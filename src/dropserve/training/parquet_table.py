"""Parquet files: the rules of CSV files for columns that already have a type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dropserve.errors import DataError
from dropserve.training.cells import Problems, sorted_labels
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
    for key, name in [("target", data.target), *(("features", name) for name in columns)]:
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(f"{path}: no column {name!r} (data.{key}){hint}; its columns: {', '.join(names)}")
    if not columns:
        raise DataError(f"{path}: no column is left beside the target {data.target!r} to learn from")
    if not len(frame):
        raise DataError(f"{path}: columns and no rows")
    problems = Problems(path, lambda row: f"row {row + 1}")
    features = np.stack([_numbers(path, frame[name], problems) for name in columns], axis=1)
    if task == "regression":
        target = _numbers(path, frame[data.target], problems)
        problems.raise_if_any()
        return Table(str(path), features, target, tuple(columns))
    series: Any = frame[data.target]
    texts = [
        "" if missing else str(value).strip() for value, missing in zip(series, series.isna(), strict=True)
    ]
    for row, text in enumerate(texts):
        if not text:
            problems.add(row, data.target, "the class is missing; fill it in, or remove the row")
    problems.raise_if_any()
    labels = sorted_labels(texts)
    places = {label: at for at, label in enumerate(labels)}
    return Table(
        str(path), features, np.array([places[text] for text in texts], np.int64), tuple(columns), labels
    )


def _read(path: Path) -> Any:
    import pandas as pd  # noqa: PLC0415  # a second to import

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{path}: not a Parquet file that can be read: {error}") from error


def _numbers(path: Path, series: Any, problems: Problems) -> FloatArray:
    from pandas.api import types  # noqa: PLC0415  # see _read

    name = str(series.name)
    if not types.is_numeric_dtype(series.dtype) or types.is_complex_dtype(series.dtype):
        held = shown(next(iter(series.dropna()), None))
        raise DataError(
            f"{path}: column {name!r} holds {series.dtype}, such as {held}, not numbers; leave it out of "
            "data.features, or store it as numbers"
        )
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    for row in np.flatnonzero(np.isnan(values)):
        problems.add(int(row), name, "the value is missing; fill it in, or remove the row")
    for row in np.flatnonzero(np.isinf(numbers)):
        problems.add(int(row), name, f"{values[row]:g} is not finite in 32 bits; rescale the column")
    return numbers
