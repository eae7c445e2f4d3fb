"""Numbers as people read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dropserve.uncertainty.checks import Float

FEW = 100
"""Fewer test rows than this leave a share uncertain by ten points or so."""


def percent(share: float, digits: int = 1) -> str:
    """0.981 as 98.1%."""
    return f"{100 * share:.{digits}f}%"


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def count(many: int, thing: str, plural: str = "") -> str:
    """``1 row``, ``2 rows``."""
    return f"{many:,} {thing if many == 1 else plural or thing + 's'}"


def interval(hits: ArrayLike, rows: ArrayLike) -> tuple[Float, Float]:
    """Ends of the 95% intervals of shares of so many rows (Wilson, 1927); 0 to 1 for no rows."""
    many = np.asarray(rows, np.float64)
    z, n = 1.959964, np.maximum(many, 1.0)
    share = np.where(many > 0, np.asarray(hits, np.float64) / n, 0.5)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (
        np.where(many > 0, np.maximum(centre - half, 0.0), 0.0),
        np.where(many > 0, np.minimum(centre + half, 1.0), 1.0),
    )


def between(hits: float, rows: int) -> str:
    """``95% interval 92.1% to 100.0%``."""
    low, high = interval(hits, rows)
    return f"95% interval {percent(float(low))} to {percent(float(high))}"


def of_rows(hits: int, rows: int) -> str:
    """``45 of 45 (95% interval 92.1% to 100.0%)``."""
    return f"{hits:,} of {rows:,} ({between(hits, rows)})"


def size(many: int) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    value = float(many)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def listed(names: list[str], most: int = 12) -> str:
    """Names joined by commas, the rest counted."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def spaced(metric: str) -> str:
    """``test_accuracy`` as ``test accuracy``."""
    return metric.replace("_", " ")
