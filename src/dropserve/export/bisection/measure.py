"""How far two tensors are apart, and what their difference looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dropserve.export.comparison import Array

_SHOWN = 6  # numbers of either side


@dataclass(frozen=True)
class Gap:
    """The difference between what a tensor should be and what it is.

    Attributes:
        error: greatest, as a share of the tensor's scale; infinite if the two cannot be compared.
        row: where on axis 0 it is greatest.
        expected, got: a few numbers of that row, around the worst.
        looks: what kind of difference it is, in words.
    """

    error: float
    row: int = 0
    expected: list[Any] = field(default_factory=list[Any])
    got: list[Any] = field(default_factory=list[Any])
    looks: str = ""


def error(expected: Array, got: Array) -> float:
    """The greatest difference as a share of the scale; NaN against a number, or other shapes: infinite."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if not expected.size:
        return 0.0
    a, b = _doubles(expected), _doubles(got)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    usable = np.isfinite(a) & np.isfinite(b)
    if not (same | usable).all():
        return float("inf")
    return float(_errors(a, b, usable, whole=expected.dtype.kind in "biu").max())


def gap(expected: Array, got: Array) -> Gap:
    """The difference in full."""
    size = error(expected, got)
    if expected.shape != got.shape:
        return Gap(size, looks=f"its shape is {list(got.shape)}, expected {list(expected.shape)}")
    if expected.dtype != got.dtype:
        return Gap(size, looks=f"its dtype is {got.dtype}, expected {expected.dtype}")
    if not expected.size:
        return Gap(size)
    a, b = _doubles(expected), _doubles(got)
    usable = np.isfinite(a) & np.isfinite(b)
    errors = _errors(a, b, usable, whole=expected.dtype.kind in "biu")
    errors[~usable & ~((a == b) | (np.isnan(a) & np.isnan(b)))] = np.inf
    place = np.unravel_index(int(errors.argmax()), errors.shape)
    row = int(place[0]) if place else 0
    return Gap(size, row, _around(expected, place), _around(got, place), looks(expected, got))


def looks(expected: Array, got: Array) -> str:
    """What kind of difference it is: the simplest rule that turns one tensor into the other."""
    a, b = _doubles(expected), _doubles(got)
    if strange := int((np.isfinite(a) & ~np.isfinite(b)).sum()):
        return f"{strange} of {a.size} numbers are NaN or infinite where eager has numbers"
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return "eager has NaN or infinity there, the graph has numbers"
    apart = np.abs(a - b)
    wrong = apart > 0.01 * apart.max()
    if wrong.sum() == 1:
        place = [int(index[0]) for index in np.nonzero(wrong)]
        return f"one number alone, at {place}: {b[wrong][0]:.6g} in place of {a[wrong][0]:.6g}"
    return _whole(a, b) or _some(a, b, wrong) or f"{int(wrong.sum())} of {a.size} numbers, in no pattern"


def _whole(a: Array, b: Array) -> str:
    """Rules that hold everywhere: what they leave unexplained is a hundredth of the difference."""
    left = 0.01 * float(np.abs(a - b).max())
    factor = float((a * b).sum() / ((a * a).sum() or 1.0))
    offset = float((b - a).mean())
    half = np.abs(a).max() * 2**-10
    rules = (
        ("all zero", not b.any()),
        ("the sign is turned", _near(-a, b, left)),
        (f"{factor:.6g} times as large", _near(a * factor, b, left)),
        (f"shifted by {offset:.6g}", _near(a + offset, b, left)),
        ("the same numbers in another order", _near(np.sort(a, axis=None), np.sort(b, axis=None), left)),
        ("only where eager is negative", _only(a < 0, a, b, left)),
        ("only where eager is positive", _only(a > 0, a, b, left)),
        ("only where the graph is negative", _only(b < 0, a, b, left)),
        ("only where the graph is positive", _only(b > 0, a, b, left)),
        ("small everywhere, as rounding to float16 would be", left <= 0.01 * half),
    )
    return next((text for text, holds in rules if holds), "")


def _near(a: Array, b: Array, left: float) -> bool:
    return bool(np.abs(a - b).max() <= left)


def _only(where: Array, a: Array, b: Array, left: float) -> bool:
    """Whether the two differ at most of some places, and at no other."""
    if where.all() or not _near(a[~where], b[~where], left):
        return False
    return bool((np.abs(a - b)[where] > left).mean() > 0.5)


def _some(a: Array, b: Array, wrong: Array) -> str:
    """Where the difference is, if it is not everywhere."""
    for axis in range(wrong.ndim - 1, 0, -1):
        hit = np.flatnonzero(wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis)))
        length = wrong.shape[axis]
        if len(hit) * 2 <= length:
            where = ", ".join(map(str, hit[:4])) + (", ..." if len(hit) > 4 else "")
            rule = _whole(np.take(a, hit, axis), np.take(b, hit, axis))
            rule = "" if rule.startswith(("only", "small")) else rule
            return f"only at {where} of the {length} along axis {axis}" + (f", {rule}" if rule else "")
    if wrong.ndim > 2:
        edge = np.ones_like(wrong)
        edge[(slice(None), slice(None), *(slice(1, -1) for _ in range(wrong.ndim - 2)))] = False
        if not edge.all() and not (wrong & ~edge).any():
            return "only at the edges"
    return ""


def _around(array: Array, place: tuple[Any, ...]) -> list[Any]:
    """A few numbers of the worst row, the worst among them."""
    if not place:
        return [array.item()]
    row = np.asarray(array[place[0]]).reshape(-1)
    flat = int(np.ravel_multi_index(place[1:], array.shape[1:])) if place[1:] else 0
    start = max(0, min(flat - _SHOWN // 2, row.size - _SHOWN))
    return row[start : start + _SHOWN].tolist()


def _doubles(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _errors(a: Array, b: Array, usable: Array, *, whole: bool) -> Array:
    errors = np.zeros(a.shape)
    np.subtract(a, b, out=errors, where=usable)
    scale = 1.0 if whole else float(np.abs(a).max(initial=0.0, where=np.isfinite(a))) or 1.0
    return np.abs(errors) / scale
