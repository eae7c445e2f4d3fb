"""Rows that come as arrays: what every such source is held to, and ``.npz`` files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dropserve.cell_parsing import category
from dropserve.errors import DataError
from dropserve.training.problems import did_you_mean
from dropserve.training.recipe import NpzData
from dropserve.training.table import Table, coded
from dropserve.training.table_checks import check_spelling, lost_in_float32


def read_npz(data: NpzData, folder: Path, *, task: str) -> Table:
    """Read two arrays of an ``.npz`` file into a table.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which the file's path is relative to.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.

    Raises:
        DataError: for what cannot be learned from; the message names file and array.
    """
    path = folder / data.file
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; expected an .npz file (numpy.savez) of two or more")
            features, target = (_array(path, file, key) for key in (data.features, data.target))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, BadZipFile, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected an .npz file of plain arrays, made by "
            "numpy.savez from no objects"
        ) from error
    return array_table(str(path), features, target, task=task, shape=data.shape)


def _array(path: Path, file: Any, key: str) -> NDArray[Any]:
    if key not in file.files:
        raise DataError(
            f"{path}: no array {key!r}{did_you_mean(key, file.files)}; its arrays: {', '.join(file.files)}"
        )
    return file[key]


def array_table(
    name: str, features: NDArray[Any], target: NDArray[Any], *, task: str, shape: Sequence[int] | None
) -> Table:
    """Check two arrays and make a table of them.

    Args:
        name: of the source, for messages.
        features: ``[rows, ...]``, numbers.
        target: ``[rows]`` or ``[rows, 1]``.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.
        shape: of a row, if it is to differ from the array's.

    Raises:
        DataError: if they cannot be learned from.
    """
    if features.ndim == 0 or target.ndim == 0 or len(features) != len(target):
        raise DataError(
            f"{name}: features {list(features.shape)}, target {list(target.shape)}; "
            "expected as many rows in both"
        )
    if target.ndim > 1 and math.prod(target.shape[1:]) == 1:
        target = target.reshape(-1)
    if target.ndim > 1:
        raise DataError(
            f"{name}: the target is {list(target.shape)}; expected one value for each row, [rows]"
        )
    if math.prod(features.shape[1:]) == 0:
        raise DataError(f"{name}: the features are {list(features.shape)}; a row holds no number")
    rows = _numbers(name, "the features", features)
    rows = rows.reshape(-1, 1) if rows.ndim == 1 else rows
    if shape is not None:
        if math.prod(shape) != math.prod(rows.shape[1:]):
            raise DataError(
                f"{name}: data.shape is {list(shape)}, {math.prod(shape)} numbers, but a row is "
                f"{list(rows.shape[1:])}, {math.prod(rows.shape[1:])} numbers"
            )
        rows = rows.reshape(len(rows), *shape)
    if task == "regression":
        return Table(name, rows, _numbers(name, "the target", target), ())
    classes, labels = _classes(name, target)
    return Table(name, rows, classes, (), labels)


def _classes(name: str, target: NDArray[Any]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers and names: numbers as numpy writes them, texts as a table's cells have them."""
    if target.dtype.kind not in "biufUS":
        raise DataError(f"{name}: the target is of type {target.dtype}; expected numbers or texts")
    if target.dtype.kind == "f":
        _numbers(name, "the target", target)
    written = target if target.dtype.kind in "US" else target.astype(str)
    texts = [category(value) for value in written.tolist()]
    if None in texts:
        raise DataError(
            f"{name}: {texts.count(None)} classes of the target are missing, the first at "
            f"[{texts.index(None)}]; fill them in, or leave those rows out"
        )
    classes, labels = coded(texts)
    if alike := check_spelling(labels):
        raise DataError(f"{name}: the target holds {alike}")
    return classes.astype(np.int64), labels


def _numbers(name: str, what: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """In 32 bits, every one finite."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: {what} are of type {array.dtype}; expected numbers")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    bad = ~np.isfinite(numbers)
    if bad.any():
        first = [int(place) for place in np.argwhere(bad)[0]]
        raise DataError(
            f"{name}: {what} hold {int(bad.sum())} values that are missing or not finite in 32 bits, the "
            f"first at {first} ({array[tuple(first)]}); fill them in, or leave those rows out"
        )
    if not np.array_equal(numbers, array):
        for place, column in enumerate(array.astype(np.float64).reshape(len(array), -1).T):
            if lost := lost_in_float32(column):
                at = [int(each) for each in np.unravel_index(place, array.shape[1:])]
                raise DataError(f"{name}: {what}{f' at {at} of a row' if at else ''}: {lost}")
    return numbers
