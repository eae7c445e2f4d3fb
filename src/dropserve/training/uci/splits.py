"""Tables with splits, as ``.npz`` files: ``X`` [n, d], ``y`` [n], and the rows of each split's two parts.

``train_index`` holds the rows of all splits one after the other, ``train_offsets`` [splits + 1] where each
begins; the same for ``test_index`` and ``test_offsets``.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import DataError
from dropserve.store import hash_file

Float = NDArray[np.float64]
_ARRAYS = ("X", "y", "train_index", "train_offsets", "test_index", "test_offsets")
_FEWEST = 20  # training rows


@dataclass(frozen=True)
class Part:
    """Some rows of a table, raw, in the order in which the split names them.

    Attributes:
        features: [n, d].
        target: [n].
    """

    features: Float
    target: Float

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.intp]) -> Part:
        """Some of the rows."""
        return Part(self.features[rows], self.target[rows])


@dataclass(frozen=True)
class SplitTable:
    """A table that was read; it hands out rows by part.

    Attributes:
        name: the file's, without its ending.
        sha256: of the file.
        splits: how many.
        rows: of the whole table.
    """

    name: str
    sha256: str
    splits: int
    rows: int
    _whole: Part
    _train: tuple[NDArray[np.intp], ...]
    _test: tuple[NDArray[np.intp], ...]

    def training(self, split: int) -> Part:
        """A copy of the rows to learn from and to choose by."""
        return self._whole.take(self._train[split])

    def test(self, split: int) -> Part:
        """The rows to measure on, once all is chosen."""
        return self._whole.take(self._test[split])


def read_tables(folder: Path, names: list[str] | None = None) -> list[SplitTable]:
    """Read the tables of a folder, smallest first.

    Args:
        folder: holds ``NAME.npz`` files.
        names: which; all that there are if None.

    Raises:
        DataError: if there are none, or one is not of the format; with all that is wrong.
    """
    there = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not there:
        raise DataError(f"{folder}: no .npz file in it; expected tables with the arrays {', '.join(_ARRAYS)}")
    missing = [name for name in names or [] if name not in there]
    if missing:
        raise DataError(f"{folder}: no table {', '.join(missing)}; there are: {', '.join(there)}")
    problems: list[str] = []
    tables: list[SplitTable] = []
    for name in names or there:
        try:
            tables.append(read_table(there[name]))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return sorted(tables, key=lambda table: table.rows)


def read_table(path: Path) -> SplitTable:
    """Read one table and check that its splits are splits.

    Raises:
        DataError: naming the file, what was expected and what came.
    """
    try:
        # A file of ours: numpy leaves its own open when it is no archive.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS if name not in file.files]
            if missing:
                raise DataError(f"{path}: no array {', '.join(missing)}; expected {', '.join(_ARRAYS)}")
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz of plain arrays: {error}") from error
    features, target = arrays["X"], arrays["y"]
    if features.ndim != 2 or target.shape != features.shape[:1] or not len(target):
        raise DataError(f"{path}: X {features.shape} and y {target.shape}; expected [n, d] and [n]")
    whole = Part(features.astype(np.float64), target.astype(np.float64))
    if not (np.isfinite(whole.features).all() and np.isfinite(whole.target).all()):
        raise DataError(f"{path}: NaN or infinity in X or y; expected finite numbers")
    train, test = (_parts(path, arrays, part) for part in ("train", "test"))
    if len(train) != len(test):
        raise DataError(f"{path}: {len(train)} training parts and {len(test)} test parts; expected as many")
    for number, (learnt, measured) in enumerate(zip(train, test, strict=True)):
        _check_split(path, number, learnt, measured, whole)
    return SplitTable(path.stem, hash_file(path).sha256, len(train), len(target), whole, train, test)


def _parts(path: Path, arrays: dict[str, NDArray[np.generic]], part: str) -> tuple[NDArray[np.intp], ...]:
    index, offsets = arrays[f"{part}_index"], arrays[f"{part}_offsets"]
    for name, array in ((f"{part}_index", index), (f"{part}_offsets", offsets)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{path}: {name} is {array.dtype} {array.shape}; expected whole numbers [n]")
    bounds = offsets.astype(np.int64)
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != len(index) or (np.diff(bounds) <= 0).any():
        raise DataError(
            f"{path}: {part}_offsets {bounds.tolist()[:5]}...; expected growing numbers from 0 to "
            f"{len(index)}, the length of {part}_index"
        )
    rows = index.astype(np.intp)
    return tuple(rows[a:b] for a, b in pairwise(bounds))


def _check_split(
    path: Path, number: int, train: NDArray[np.intp], test: NDArray[np.intp], whole: Part
) -> None:
    both = np.concatenate([train, test])
    if both.min() < 0 or both.max() >= len(whole):
        raise DataError(
            f"{path}: split {number} names rows from {both.min()} to {both.max()} of {len(whole)}"
        )
    if len(np.unique(both)) != len(both):
        raise DataError(f"{path}: split {number} names a row twice; its parts must be disjoint")
    if len(train) < _FEWEST or np.ptp(whole.target[train]) == 0:
        raise DataError(
            f"{path}: split {number} has {len(train)} training rows with targets from "
            f"{whole.target[train].min():g} to {whole.target[train].max():g}; expected at least {_FEWEST} "
            "rows and more than one value"
        )
