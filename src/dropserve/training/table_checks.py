"""Tables that can be read and still mean something else than they seem: what to ask about, in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.cell_parsing import number
from dropserve.errors import DataError

_SHOWN = 30  # names in a line to paste
_MOST_ROUNDING = 1e-3  # of a column's spread: what 32 bits may round away
_ENOUGH = 10  # rows: fewer are refused anyway, and say nothing about a column
_FIGURE = r"[+-]?\d+([.,]\d+)?"
_THOUSANDS = "numbers with thousands separators"
_DAY = r"\d{4}-\d{1,2}(-\d{1,2})?|\d{4}/\d{1,2}/\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d{2})"
_LOOKS = (
    (r"[+-]?\d{1,3}([' \u00a0\u202f]\d{3})+([.,]\d+)?", _THOUSANDS, "write them without"),
    (r"[+-]?\d{1,3}(,\d{3})+\.\d+|[+-]?\d{1,3}(,\d{3}){1,}", _THOUSANDS, "write them without"),
    (
        r"[+-]?\d{1,3}(\.\d{3})+,\d+|[+-]?\d{1,3}(\.\d{3}){2,}",
        f"{_THOUSANDS} and a decimal comma",
        'write them without separators, and set data.decimal = ","',
    ),
    (rf"{_FIGURE}\s?%", "percentages", "write them as numbers, 7% as 7 or .07"),
    (
        r"[$€£¥]\s?[+-]?\d[\d,.']*|[+-]?\d[\d,.']*\s?[$€£¥]",
        "amounts of money",
        "write them without the currency",
    ),
    (
        rf"({_DAY})([ T]\d{{1,2}}:\d{{2}}.*)?",
        "dates",
        "write them as numbers, such as days since the first, or as columns of month and weekday",
    ),
    (r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?", "times of day", "write them as numbers, such as minutes"),
)
_UNIT = re.compile(rf"{_FIGURE}\s?([^\W\d_]+(?:/[^\W\d_]+)?|°[A-Z]?)")
_FEWEST_WITH_UNIT = 5  # different numbers: "2wd" and "4wd" are names


def looks_like(texts: Sequence[str], decimal: str) -> str | None:
    """What texts that are no numbers seem to be, and what to do; None if they seem to be names.

    Args:
        texts: every present cell of a column that is not a number; at least one.
        decimal: what separates fractions in this file.
    """
    if decimal == "," and all(number(text) is not None for text in texts):
        return 'numbers with a decimal point; leave data.decimal = "," out, or write them with a comma'
    if decimal == "." and all(re.fullmatch(r"[+-]?\d+,\d+", text) for text in texts):
        more = ""
        if all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", text) for text in texts):
            more = " (or, if it separates thousands, write them without)"
        return f'numbers with a decimal comma; set data.decimal = ","{more}'
    for pattern, what, remedy in _LOOKS:
        if all(re.fullmatch(pattern, text) for text in texts):
            return f"{what}; {remedy}"
    found = [_UNIT.fullmatch(text) for text in texts]
    units = {match[2] if match else None for match in found}
    if None not in units and len(units) == 1 and len(set(texts)) >= _FEWEST_WITH_UNIT:
        return f"numbers with the unit {units.pop()!r}; write them without it"
    return None


def lost_in_float32(values: NDArray[np.float64]) -> str | None:
    """How a column's values run into each other in 32 bits; None if they do not.

    Far from zero, neighbouring float32 numbers are far apart: 131,072 ms at today's epoch milliseconds.
    What counts is the rounding error (root mean square) beside the column's spread (the standard
    deviation, or the quartiles' distance where outliers make it the smaller).

    Args:
        values: ``[rows]``, all within float32's range; NaN is left out.
    """
    values = values[~np.isnan(values)]
    if not len(values) or np.ptp(values) == 0:
        return None
    centred = values - values[0]  # so that the mean of large numbers costs no digits
    quartiles = np.quantile(centred, [0.25, 0.75])
    spread = centred.std()
    if quartiles[1] > quartiles[0]:
        spread = min(spread, (quartiles[1] - quartiles[0]) / 1.349)
    rounding = np.sqrt(np.mean((values - values.astype(np.float32)) ** 2))
    if rounding <= _MOST_ROUNDING * spread:
        return None
    before, after = len(np.unique(values)), len(np.unique(values.astype(np.float32)))
    offset = float(np.floor(values.min()))
    return (
        f"{before} different values become {after} in 32 bits (from {values.min():.17g} to "
        f"{values.max():.17g}); subtract an offset, such as {offset:.17g}, here and in requests"
    )


def check_spelling(labels: Sequence[str]) -> str | None:
    """Names of classes that are equal as numbers, or differ only in case or blanks; None if none are."""
    groups: dict[object, list[str]] = {}
    for label in labels:
        value = number(label)
        plain = " ".join(label.casefold().split()) if len(label) > 1 else label  # "a" and "A" are letters
        groups.setdefault(plain if value is None else value, []).append(label)
    alike = [" and ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if not alike:
        return None
    return f"classes that differ only in how they are written: {'; '.join(alike[:10])}. Write each one way"


def check_unasked(
    columns: dict[str, NDArray[np.float64]], texts: dict[str, list[str | None]], target: Sequence[Any]
) -> tuple[list[str], list[str]]:
    """What is wrong with columns that nobody asked for by name.

    Args:
        columns: ``[rows]`` for each column, in the file's order: numbers, or codes of categories.
        texts: the categories of columns that hold some.
        target: for each row its class, a text, or its value.

    Returns:
        The names of those columns, and a line for each.
    """
    names: list[str] = []
    lines: list[str] = []
    rows = np.arange(len(target))
    values_of_target = [number(each) if isinstance(each, str) else each for each in target]  # class "1" is 1
    for place, (name, values) in enumerate(columns.items()):
        whole: Sequence[Any] = texts[name] if name in texts else values.tolist()
        is_target = len(rows) >= _ENOUGH and list(whole) == (
            list(target) if name in texts else values_of_target
        )  # fmt: skip
        counts = name not in texts and len(rows) >= _ENOUGH and (
            np.array_equal(values, rows) or np.array_equal(values, rows + 1)
        )  # fmt: skip
        if not name or re.fullmatch(r"Unnamed: \d+|__index_level_\d+__", name):
            what = f"column {place + 1} has no name" if not name else f"column {name!r} had no name"
            lines.append(f"{what} (a data frame's index?)")
        elif counts:
            lines.append(f"column {name!r} numbers the rows (a data frame's index?)")
        elif is_target:
            lines.append(f"column {name!r} equals the target in every row; a request will not have it")
        else:
            continue
        names.append(name)
    return names, lines


class Problems:
    """What is wrong with the columns of a table: a line for each, all told at once.

    Args:
        where: the file.
        place: what to call a row, given its number from 0: ``line 7``.
    """

    def __init__(self, where: object, place: Callable[[int], str]) -> None:
        self._where, self._place = where, place
        self._lines: list[str] = []
        self._values = 0

    def add(self, column: str, rows: Sequence[int], what: str) -> None:
        """Note a column's cells that have the same fault; nothing if there are none."""
        if not rows:
            return
        self._values += len(rows)
        more = f" ({len(rows)} such values in the column)" if len(rows) > 1 else ""
        self._lines.append(f"{self._place(rows[0])}, column {column!r}: {what}{more}")

    def note(self, line: str) -> None:
        """Note what concerns more than single cells."""
        self._lines.append(line)

    def raise_if_any(self) -> None:
        """Tell them all at once.

        Raises:
            DataError: if any was noted.
        """
        if self._lines:
            lines = "\n".join(f"  - {line}" for line in self._lines)
            count = f"{self._values} values" if self._values else "columns that"
            raise DataError(f"{self._where}: {count} cannot be learned from\n{lines}")


def features_line(names: Sequence[str]) -> str:
    """The line of a recipe that takes these columns."""
    listed = ", ".join('"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' for name in names[:_SHOWN])
    return f"features = [{listed}{', ...' if len(names) > _SHOWN else ''}]"
