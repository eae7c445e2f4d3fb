"""What every source of data becomes: rows of numbers and a target."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dropserve.cell_parsing import number

FloatArray = NDArray[np.float32]
OPEN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Table:
    """Raw features and a target; nothing is scaled yet.

    Attributes:
        name: of the source, for messages: ``digits`` or a file's path.
        features: ``[rows, *shape]``, float32. A categorical column holds codes, places in its vocabulary;
            NaN is a missing value, in columns that the recipe imputes.
        target: ``[rows]``: class numbers (int64) or values in their own unit (float32).
        columns: a name for each feature, in the order of a request; empty where features have no names.
        labels: classification: the name of each class; empty for regression.
        parts: ``[rows]``: rows that the source itself sets aside, ``VALIDATION`` or ``TEST``; ``OPEN`` for
            those that the recipe's ``[split]`` divides. None: all are open.
        categories: for each column its vocabulary, empty for numbers; empty where no column has one.
    """

    name: str
    features: FloatArray
    target: NDArray[np.int64] | FloatArray
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    parts: NDArray[np.int8] | None = None
    categories: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    def feature_name(self, place: int) -> str:
        """What to call a feature, by its place in a row laid flat."""
        if self.columns:
            return repr(self.columns[place])
        shape = self.features.shape[1:]
        return f"element {[int(each) for each in np.unravel_index(place, shape)]} of a row"

    @property
    def sha256(self) -> str:
        """Hash of every feature, target, column and label; independent of the platform's byte order."""
        named = [
            self.columns,
            self.labels,
            self.features.shape,
            *([self.categories] if self.categories else []),
        ]
        digest = hashlib.sha256(json.dumps(named).encode())
        for array in (self.features, self.target):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def sorted_labels(texts: Sequence[str]) -> tuple[str, ...]:
    """Names in the order of their numbers if all are numbers, else of their texts."""
    found = sorted(set(texts))
    numbers = [number(text) for text in found]
    if all(each is not None and math.isfinite(each) for each in numbers):
        return tuple(text for _, text in sorted(zip(numbers, found, strict=True)))
    return tuple(found)


def coded(texts: Sequence[str | None]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Names as their places in the vocabulary, NaN for None, and the vocabulary."""
    vocabulary = sorted_labels([text for text in texts if text is not None])
    places = {text: float(place) for place, text in enumerate(vocabulary)}
    return np.array([np.nan if text is None else places[text] for text in texts]), vocabulary
