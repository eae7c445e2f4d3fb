"""How rows are divided into batches."""

from __future__ import annotations


def batch_sizes(rows: int, size: int) -> list[int]:
    """How rows are divided into batches; a last batch of one row joins its neighbour."""
    full, rest = divmod(rows, size)
    if rest == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + ([rest] if rest else [])
