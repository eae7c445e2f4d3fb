"""What one cell of a table means, wherever it comes from: a file to train on, or a request.

Training and serving both read cells with these functions, so that a cell cannot mean one thing in the file
and another in a request. Standard library only: hosts import this.
"""

from __future__ import annotations

import math

MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})  # in either case


def is_missing(value: object) -> bool:
    """Whether a cell holds no value: None, NaN, or a text that says so, blanks around it ignored."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING_TEXTS
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(text: str, decimal: str = ".") -> float | None:
    """A number as spreadsheets write it, not Python's ``1_000``; None for other texts.

    Args:
        text: a cell.
        decimal: what separates the fraction, ``.`` or ``,``; the other one is then in no number.
    """
    if "_" in text or (decimal == "," and "." in text):
        return None
    try:
        return float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return None


def category(value: object) -> str | None:
    """The name of a category as a vocabulary holds it; None for a missing one.

    Texts lose the blanks around them; whole numbers have no fraction (a column of whole numbers with gaps
    comes as floats); booleans are spelled as in JSON.
    """
    if is_missing(value):
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bytes):
        return category(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def spellings(value: str | bool | float) -> tuple[str, ...]:
    """The names of categories that a JSON value may stand for, the likeliest first: 1 is "1", else "1.0"."""
    if isinstance(value, str):
        return (value, value.strip())
    if isinstance(value, bool):
        text = str(value)
        return text.lower(), text, text.upper()
    if isinstance(value, float):
        return (str(value), str(int(value))) if value.is_integer() else (str(value),)
    return (str(value), str(float(value))) if abs(value) <= 2**53 else (str(value),)
