"""IDX images and labels under MNIST's file names, from any folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import DataError
from dropserve.training.idx import read_file
from dropserve.training.table import FloatArray

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True)
class Images:
    """Images of one part.

    Attributes:
        pixels: [N, height * width], as they are in the file.
        labels: [N], class numbers; empty where they are not needed.
        size: height and width.
    """

    pixels: FloatArray
    labels: NDArray[np.int64]
    size: tuple[int, ...]


def read_part(folder: Path, part: str, *, labels: bool = True) -> Images:
    """Read ``train`` or ``test`` images, compressed or not.

    Raises:
        DataError: naming the file and what is wrong.
    """
    images, classes = _FILES[part]
    values = _read(folder, images)
    if values.ndim != 3 or not len(values):
        raise DataError(f"{folder}/{images}: {list(values.shape)}; expected images [rows, height, width]")
    found = np.empty(0, np.int64)
    if labels:
        found = _read(folder, classes).astype(np.int64)
        if found.shape != (len(values),) or found.min() < 0:
            raise DataError(f"{folder}/{classes}: {list(found.shape)}; expected {len(values)} class numbers")
    return Images(values.reshape(len(values), -1).astype(np.float32), found, values.shape[1:])


def _read(folder: Path, name: str) -> NDArray[Any]:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no file {name}, nor {name}.gz")
    return read_file(path)
