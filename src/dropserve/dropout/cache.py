"""A cache of arrays that is bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

Arrays = list[NDArray[np.float32]]


class ByteCache:
    """Keeps the arrays that were used last, up to a number of bytes; safe to share between threads.

    Args:
        capacity: bytes of array data to keep at most; what is larger alone is not kept at all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._entries: OrderedDict[Hashable, Arrays] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Arrays | None:
        """The arrays kept under a key, now the most recently used; None if there are none."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Hashable, arrays: Arrays) -> None:
        """Keep arrays under a key, and drop what was used longest ago until all fits."""
        with self._lock:
            self._drop(key)
            size = _bytes(arrays)
            if size > self.capacity:
                return
            while self._entries and self.size + size > self.capacity:
                self._drop(next(iter(self._entries)))
            self._entries[key] = arrays
            self.size += size

    def _drop(self, key: Hashable) -> None:
        self.size -= _bytes(self._entries.pop(key, []))


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays)
