"""How rows are divided into batches."""

from __future__ import annotations


def batch_sizes(rows: int, size: int, *, least: int = 2) -> list[int]:
    """How rows are divided into batches; a last batch of fewer than ``least`` rows joins its neighbour."""
    full, rest = divmod(rows, size)
    if 0 < rest < least and full:
        return [size] * (full - 1) + [size + rest]
    return [size] * full + ([rest] if rest else [])
