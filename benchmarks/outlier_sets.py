"""Tables and images for ``planted_outliers.py``, and what is planted among their rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets

from dropserve.training.idx import read_file

SEED = 0
FASHION = 6000  # rows of Fashion-MNIST
Rows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class DataSet:
    """Rows [N, ...] with targets [N].

    Attributes:
        codes: columns of whole numbers that stand for categories.
        white: the largest value of a pixel.
    """

    rows: Rows
    target: Any
    task: str = "classification"
    codes: tuple[int, ...] = ()
    white: float = 16

    @property
    def images(self) -> bool:
        """Whether a row is an image [channels, height, width]."""
        return self.rows.ndim > 2


def tables() -> dict[str, DataSet]:
    """Five tables; one has categories, one is of a regressor."""
    cancer, wine = datasets.load_breast_cancer(), datasets.load_wine()
    diabetes, digits = datasets.load_diabetes(), datasets.load_digits()
    made, classes = datasets.make_classification(1500, 20, n_informative=8, n_redundant=8, random_state=SEED)
    made[:, 18:] = np.random.default_rng(SEED).integers(0, 4, (len(made), 2))
    return {
        "breast cancer": DataSet(cancer.data.astype(np.float32), cancer.target),
        "wine": DataSet(wine.data.astype(np.float32), wine.target),
        "diabetes": DataSet(diabetes.data.astype(np.float32), diabetes.target, "regression"),
        "digits as a table": DataSet(digits.data.astype(np.float32), digits.target),
        "made, two of categories": DataSet(made.astype(np.float32), classes, codes=(18, 19)),
    }


def images() -> dict[str, DataSet]:
    """Digits, bars and rings of 8 x 8 pixels."""
    digits = datasets.load_digits()
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:8, :8]

    def drawn(shape: Callable[[int], Any]) -> DataSet:
        classes = rng.integers(0, 10, 1500)
        rows = np.stack([np.asarray(shape(kind), float) for kind in classes]) * rng.uniform(
            10, 16, (1500, 1, 1)
        )
        noisy = np.clip(rows + rng.normal(0, 0.5, rows.shape), 0, 16)
        return DataSet(noisy[:, None].astype(np.float32), classes)

    def bar(kind: int) -> Any:
        return np.abs((x if kind % 2 else y) - 1 - kind // 2) <= rng.integers(0, 2)

    def ring(kind: int) -> Any:
        away = np.hypot(x - rng.uniform(2.5, 4.5), y - rng.uniform(2.5, 4.5))
        radius = 1.2 + kind // 2 * 0.4
        return np.abs(away - radius) < 0.7 if kind % 2 else away < radius

    return {
        "digits": DataSet(digits.data.reshape(-1, 1, 8, 8).astype(np.float32), digits.target),
        "bars": drawn(bar),
        "rings": drawn(ring),
    }


def photographs(folder: Path) -> tuple[DataSet, DataSet]:
    """Rows of Fashion-MNIST, and of MNIST."""

    def read(name: str, part: str, count: int) -> DataSet:
        rows, target = (
            read_file(folder / name / f"{part}-{kind}-ubyte.gz")[:count]
            for kind in ("images-idx3", "labels-idx1")
        )
        return DataSet(rows[:, None].astype(np.float32), target.astype(int), white=255)

    return read("fashion-mnist", "train", FASHION), read("mnist", "t10k", 2000)


def planted(data: DataSet, fresh: Rows, other: DataSet, rng: np.random.Generator) -> dict[str, Rows]:
    """What shall be flagged, by its kind."""
    if data.images:
        blank = rng.choice([0, data.white // 2, data.white], (len(fresh), 1, 1, 1)) + np.zeros_like(fresh)
        return {
            "blank": blank.astype(np.float32),
            "noise": rng.uniform(0, data.white, fresh.shape).astype(np.float32),
            "inverted": data.white - fresh,
            "other set": other.rows[rng.permutation(len(other.rows))[: len(fresh)]],
        }
    numbers = [place for place in range(fresh.shape[1]) if place not in data.codes]
    deviation = data.rows.std(axis=0)
    found: dict[str, Rows] = {}
    for size in (10, 100, 10**6):
        rows = fresh.copy()
        place = rng.choice([p for p in numbers if deviation[p] > 0], len(rows))
        each = np.arange(len(rows))
        rows[each, place] = data.rows.mean(axis=0)[place] + size * deviation[place] * rng.choice(
            [-1, 1], len(rows)
        )
        found[f"{size} sd"] = rows
    found["shuffled"] = np.stack([rng.permutation(column) for column in fresh.T], axis=1)
    moved = np.resize(other.rows[rng.permutation(len(other.rows))], (len(fresh), other.rows.shape[1]))
    rows = fresh.copy()
    rows[:, numbers] = np.resize(moved.T, (len(numbers), len(fresh))).T
    found["other table"] = rows
    return found
