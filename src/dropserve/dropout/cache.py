"""A cache that is bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Keeps what was used last, up to a number of bytes; safe to share between threads.

    Args:
        capacity: bytes to keep at most; what is larger alone is not kept at all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> T | None:
        """What is kept under a key, now the most recently used; None if there is nothing."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Hashable, value: T, nbytes: int) -> None:
        """Keep a value under a key, and drop what was used longest ago until all fits."""
        with self._lock:
            self._drop(key)
            if nbytes > self.capacity:
                return
            while self._entries and self.size + nbytes > self.capacity:
                self._drop(next(iter(self._entries)))
            self._entries[key] = value, nbytes
            self.size += nbytes

    def _drop(self, key: Hashable) -> None:
        if key in self._entries:
            self.size -= self._entries.pop(key)[1]
