"""Numbers as people read them."""

from __future__ import annotations


def percent(share: float, digits: int = 1) -> str:
    """0.981 as 98.1%."""
    return f"{100 * share:.{digits}f}%"


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def count(many: int, thing: str, plural: str = "") -> str:
    """``1 row``, ``2 rows``."""
    return f"{many:,} {thing if many == 1 else plural or thing + 's'}"


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
