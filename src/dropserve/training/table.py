"""What every source of data becomes: rows of numbers and a target."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """Raw features and a target; nothing is scaled yet.

    Attributes:
        name: of the source, for messages: ``digits`` or a file's path.
        features: ``[rows, *shape]``, float32.
        target: ``[rows]``: class numbers (int64) or values in their own unit (float32).
        columns: a name for each feature, in the order of a request.
        labels: classification: the name of each class; empty for regression.
    """

    name: str
    features: FloatArray
    target: NDArray[np.int64] | FloatArray
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.target)

    @property
    def sha256(self) -> str:
        """Hash of every feature, target, column and label; independent of the platform's byte order."""
        digest = hashlib.sha256(json.dumps([self.columns, self.labels, self.features.shape]).encode())
        for array in (self.features, self.target):
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()
