"""Where rows come from: one function from a recipe's ``[data]`` to a table, one case for each source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

import numpy as np

from dropserve.training.array_table import read_npz
from dropserve.training.idx import read_idx
from dropserve.training.images import read_images
from dropserve.training.recipe import (
    BundledData,
    CsvData,
    IdxData,
    ImagesData,
    MakeClassificationData,
    MakeMoonsData,
    MakeRegressionData,
    NpzData,
    ParquetData,
    Recipe,
)
from dropserve.training.table import Table
from dropserve.training.tabular import read_tabular


def load_table(recipe: Recipe, folder: Path) -> Table:
    """Read a recipe's data, all rows, unscaled.

    Raises:
        DataError: if it cannot be read.
    """
    from sklearn import datasets  # noqa: PLC0415  # a second to import, and CSV does not need it

    data = recipe.data
    match data:
        case CsvData() | ParquetData() | NpzData() | IdxData() | ImagesData():
            return _read_files(data, folder, recipe.task)
        case BundledData():
            bundle = getattr(datasets, f"load_{data.source}")()
            names = map(str, getattr(bundle, "target_names", ()))
            labels = tuple(names) if recipe.task == "classification" else ()
            columns = tuple(map(str, bundle.feature_names))
            return _table(data.source, bundle.data, bundle.target, columns, labels)
        case MakeClassificationData():
            features, target = datasets.make_classification(
                n_samples=data.samples,
                n_features=data.features,
                n_informative=data.informative,
                n_redundant=0,
                n_classes=data.classes,
                n_clusters_per_class=1,
                class_sep=data.separation,
                random_state=data.seed,
            )
            return _generated(data.source, features, target, data.classes)
        case MakeMoonsData():
            features, target = datasets.make_moons(data.samples, noise=data.noise, random_state=data.seed)
            return _generated(data.source, features, target, 2)
        case MakeRegressionData():
            generated: Any = datasets.make_regression(
                n_samples=data.samples,
                n_features=data.features,
                n_informative=data.informative,
                noise=data.noise,
                random_state=data.seed,
            )  # its type allows a third value
            return _generated(data.source, *generated, classes=0)
        case _:
            assert_never(data)


def _read_files(
    data: CsvData | ParquetData | NpzData | IdxData | ImagesData, folder: Path, task: str
) -> Table:
    match data:
        case CsvData() | ParquetData():
            return read_tabular(data, folder, task=task)
        case NpzData():
            return read_npz(data, folder, task=task)
        case IdxData():
            return read_idx(data, folder, task=task)
        case ImagesData():
            return read_images(data, folder)


def _generated(name: str, features: Any, target: Any, classes: int) -> Table:
    columns = tuple(f"x{place}" for place in range(features.shape[1]))
    return _table(name, features, target, columns, tuple(map(str, range(classes))))


def _table(name: str, features: Any, target: Any, columns: tuple[str, ...], labels: tuple[str, ...]) -> Table:
    dtype = np.int64 if labels else np.float32
    return Table(name, features.astype(np.float32), target.astype(dtype), columns, labels)
