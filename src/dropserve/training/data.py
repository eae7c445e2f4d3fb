"""From ``[data]`` and ``[split]`` of a recipe to prepared rows, and what the graph does to prepare them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from dropserve.columns import Column, encoded, filled, lay_out
from dropserve.errors import DataError
from dropserve.manifest import Preprocessing, Scaling
from dropserve.training.fit_columns import fit_columns
from dropserve.training.recipe import ImagesData, Recipe, SplitTable
from dropserve.training.recipe_columns import ColumnKeys
from dropserve.training.sources import load_table
from dropserve.training.table import OPEN, TEST, VALIDATION, FloatArray, Table

INPUT = "input"  # the name of a recipe model's input, in its signature and graphs
OUTPUT = "output"
_FEWEST = 3  # rows of a class, and rows of a split
_ENOUGH = (
    2000  # validation rows of which half may calibrate: coverage is then within 2 points, 19 times of 20
)
_AT_ONCE = 1024  # rows that are compared together: a copy of them is made
_MOST = 5000  # rows that a calibration uses


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending; the parts are disjoint and cover the table.

    Attributes:
        validation: rows that choose the epoch.
        calibration: rows that choose nothing before export; empty where the validation rows calibrate.
        test: rows that choose nothing.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    calibration: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """The parts that hold rows, by name."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return found | ({"calibration": self.calibration} if len(self.calibration) else {})

    @property
    def sha256(self) -> str:
        """Hash of which row went where."""
        digest = hashlib.sha256()
        for part in self.parts.values():
            digest.update(len(part).to_bytes(8, "little") + part.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A table, its split, and the preprocessing fitted on the training rows alone."""

    table: Table
    split: Split
    preprocessing: Preprocessing

    @cached_property
    def features(self) -> FloatArray:
        """All rows as the model is trained on them."""
        columns = self.preprocessing.columns.get(INPUT, ())
        rows = filled(self.table.features, columns)
        return encoded(_scaled(rows, self.preprocessing.inputs.get(INPUT)), columns)

    @cached_property
    def constant_columns(self) -> tuple[str, ...]:
        """Names of the columns that are the same in every training row; empty where there are no names."""
        if not self.table.columns:
            return ()
        flat = _constant(self.table.features, self.split.train)
        return tuple(self.table.columns[place] for place in np.flatnonzero(flat).tolist())

    @cached_property
    def target(self) -> NDArray[Any]:
        """All targets as the model is trained on them: class numbers, or standardised values."""
        if self.table.labels:
            return self.table.target
        return _scaled(self.table.target.reshape(-1, 1), self.preprocessing.target).reshape(-1)

    def record(self) -> dict[str, JsonValue]:
        """What the manifest says about the data."""
        return {
            "source": self.table.name,
            "sha256": self.table.sha256,
            "split_sha256": self.split.sha256,
            "rows": {part: len(rows) for part, rows in self.split.parts.items()},
            "columns": list(self.table.columns),
        }


def load_dataset(recipe: Recipe, folder: Path) -> Dataset:
    """Read, split and prepare a recipe's data.

    Args:
        recipe: a checked recipe.
        folder: the recipe's, which relative paths start from.

    Raises:
        DataError: if the data cannot be read, or cannot be learned from.
    """
    table = load_table(recipe, folder)
    _check_target(table)
    split = split_rows(table, recipe.split)
    keys = recipe.data if isinstance(recipe.data, ColumnKeys) else None
    table, columns = fit_columns(table, split.train, keys)
    _check_varies(table, split.train, images=isinstance(recipe.data, ImagesData))
    scaling = fit_scaling(table, split.train, recipe.data.scaling, columns)
    if recipe.training.noise == "heteroscedastic":
        scaling = scaling.model_copy(update={"heteroscedastic": True})
    dataset = Dataset(table, split, scaling)
    _check_scaled(dataset)
    return dataset


def _constant(features: FloatArray, train: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which elements of a row laid flat are the same in every training row; a gap is a value of its own."""
    flat = features.reshape(len(features), -1)
    same = np.ones(flat.shape[1], np.bool_)
    first = flat[train[0]]
    for start in range(0, len(train), _AT_ONCE):
        rows = flat[train[start : start + _AT_ONCE]]
        same &= ((rows == first) | (np.isnan(rows) & np.isnan(first))).all(axis=0)
        if not same.any():
            break
    return same


def _check_varies(table: Table, train: NDArray[np.int64], *, images: bool) -> None:
    if not _constant(table.features, train).all():
        return
    row = table.features[train[0]].reshape(-1)
    what = f"every value of every row is {row[0]:g}" if (row == row[0]).all() else "all rows are the same"
    if images:
        remedy = (
            "Look at some of them. Where they differ in their transparency alone, set data.background to "
            'another colour than theirs, such as "black" or [255, 0, 0]'
        )
    else:
        remedy = "Check that data.features or data.file names the right values"
    raise DataError(f"{table.name}: {what} ({len(train)} training rows), so nothing can be learned. {remedy}")


def _check_target(table: Table) -> None:
    where = table.name
    if len(table) < 10:
        raise DataError(f"{where}: {len(table)} rows; at least 10 are needed to train, validate and test")
    if len(table.labels) == 0:
        if np.ptp(table.target) == 0:
            raise DataError(
                f"{where}: the target is {table.target[0]:g} in every row; nothing can be learned"
            )
        return
    if len(table.labels) == 1:
        raise DataError(f"{where}: every row is of class {table.labels[0]!r}; at least 2 classes are needed")
    if len(table.labels) > len(table) // 2:
        raise DataError(
            f"{where}: the target has {len(table.labels)} different values in {len(table)} rows; that looks "
            'like a number or an identifier, not a class. Set task = "regression", or another data.target.'
        )
    _check_classes(table, np.arange(len(table)))


def _check_classes(table: Table, rows: NDArray[np.int64]) -> None:
    counts = np.bincount(table.target[rows], minlength=len(table.labels))
    rare = [
        f"{label!r} ({count})" for label, count in zip(table.labels, counts, strict=True) if count < _FEWEST
    ]
    if rare:
        raise DataError(
            f"{table.name}: too few rows of class {', '.join(rare[:10])}; each class needs at least "
            f"{_FEWEST}, one for training, validation and test each. Add rows, merge classes, or "
            "remove those rows."
        )


def _check_scaled(dataset: Dataset) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        features, target = dataset.features.reshape(len(dataset.table), -1), dataset.target
    wide = np.flatnonzero(~np.isfinite(features).all(axis=0))
    layout = lay_out(dataset.preprocessing.columns.get(INPUT, ()))
    places = wide if layout is None else layout.source[wide]
    names = [dataset.table.feature_name(int(place)) for place in places[:10]]
    if not np.isfinite(target).all():
        names.append("the target")
    if names:
        raise DataError(
            f"{dataset.table.name}: {', '.join(names)}: values too far apart for 32-bit numbers; rescale them"
        )


def split_rows(table: Table, split: SplitTable) -> Split:
    """Divide the rows at random, classes in proportion; the same seed always gives the same parts.

    Raises:
        DataError: if a part would be too small.
    """
    parts = table.parts if table.parts is not None else np.full(len(table), OPEN, np.int8)
    rest = np.flatnonzero(parts == OPEN)
    held: dict[str, NDArray[np.int64]] = {
        "validation": np.flatnonzero(parts == VALIDATION),
        "test": np.flatnonzero(parts == TEST),
    }
    drawn = [part for part in ("test", "validation") if not len(held[part])]
    drawn += ["calibration"] if split.calibration else []
    counts = {part: round(getattr(split, part) * len(rest)) for part in drawn}
    counts["training"] = len(rest) - sum(counts.values())
    smallest = max(_FEWEST, len(table.labels)) if drawn else _FEWEST
    for part, count in counts.items():
        if count < smallest:
            raise DataError(
                f"{table.name}: {count} of {len(rest)} rows would be for {part}, and at least {smallest} are "
                f"needed{' (a row of each class)' if table.labels else ''}. Add rows, or change [split]."
            )
    if drawn and table.labels:
        _check_classes(table, rest)
    for part in drawn:
        rest, held[part] = _divided(table, rest, counts[part], split.seed)
    if split.calibration is None and len(held["validation"]) >= _ENOUGH:
        count = min(len(held["validation"]) // 2, _MOST)
        held["validation"], held["calibration"] = _divided(table, held["validation"], count, split.seed)
    train = rest
    unseen = sorted(set(range(len(table.labels))) - set(table.target[train].tolist()))
    if unseen:
        names = ", ".join(repr(table.labels[number]) for number in unseen)
        raise DataError(
            f"{table.name}: no training row of class {names}; add rows of it, or give [split] smaller shares"
        )
    return Split(np.sort(train), **{part: np.sort(rows) for part, rows in held.items()})


def _divided(
    table: Table, rows: NDArray[np.int64], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All but so many of the rows, and these."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  # a second to import

    strata = table.target[rows] if table.labels else None
    if strata is not None and 1 in np.bincount(strata):  # in a part that the source set aside
        strata = None
    divided: Any = train_test_split(rows, test_size=count, stratify=strata, random_state=seed)
    return divided[0], divided[1]  # its type allows lists


def fit_scaling(
    table: Table, train: NDArray[np.int64], scaling: str, columns: tuple[Column, ...] = ()
) -> Preprocessing:
    """Mean and deviation of the training rows, gaps filled.

    A constant feature keeps its scale, so it becomes 0. Categories are not scaled: their codes have mean 0
    and scale 1.
    """
    target = None if table.labels else _fit(table.target[train].reshape(-1, 1))
    named = {INPUT: columns} if columns else {}
    rows = filled(table.features[train].reshape(len(train), -1), columns)
    numbers = np.array([not column.categories for column in columns] or [True] * rows.shape[1])
    if scaling == "none" or not numbers.any():
        return Preprocessing(columns=named, target=target)
    fitted = _fit(rows[:, numbers] if scaling == "feature" else rows[:, numbers].reshape(-1, 1))
    mean, scale = np.zeros(len(numbers)), np.ones(len(numbers))
    mean[numbers], scale[numbers] = fitted.mean, fitted.scale
    scaled = Scaling(mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))
    return Preprocessing(columns=named, inputs={INPUT: scaled}, target=target)


def _fit(rows: NDArray[Any]) -> Scaling:
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415  # a second to import

    scaler: Any = StandardScaler().fit(rows.astype(np.float64))
    tiny = scaler.scale_ < np.finfo(np.float32).tiny  # the graph would divide by zero
    return Scaling(
        mean=tuple(scaler.mean_.tolist()), scale=tuple(np.where(tiny, 1.0, scaler.scale_).tolist())
    )


def _scaled(rows: NDArray[Any], scaling: Scaling | None) -> FloatArray:
    """In float32 and in the order of :class:`dropserve.model.ServedModel`, so that both agree to the bit."""
    if scaling is None:
        return rows.astype(np.float32)
    shape = rows.shape[1:]
    mean = np.array(scaling.mean, np.float32).reshape(shape)
    scale = np.array(scaling.scale, np.float32).reshape(shape)
    return (rows.astype(np.float32) - mean) / scale
