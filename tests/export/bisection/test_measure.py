"""How far apart, and in what way: every rule on a tensor made by that rule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dropserve.export.bisection.explain import weights
from dropserve.export.bisection.measure import error, gap, looks

A = np.random.default_rng(0).normal(size=(4, 6, 5, 5)).astype(np.float32)


def channel(values: np.ndarray) -> np.ndarray:
    changed = A.copy()
    changed[:, 2] = values[:, 2]
    return changed


def edges() -> np.ndarray:
    changed = A + np.float32(0.3) * np.random.default_rng(1).random(A.shape).astype(np.float32)
    changed[:, :, 1:-1, 1:-1] = A[:, :, 1:-1, 1:-1]
    return changed


def some() -> np.ndarray:
    changed = A.copy()
    changed[1, 3, 2, 4] = 9
    return changed


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (np.zeros_like(A), "all zero"),
        (-A, "the sign is turned"),
        (A * np.float32(1.25), "1.25 times as large"),
        (A + np.float32(0.5), "shifted by 0.5"),
        (A[::-1], "the same numbers in another order"),
        (np.where(A < 0, A * np.float32(0.2), A), "only where eager is negative"),
        (np.where(A > 0, np.sin(A), A), "only where eager is positive"),
        (A.astype(np.float16).astype(np.float32), "small everywhere, as rounding to float16 would be"),
        (channel(A + 1), "only at 2 of the 6 along axis 1, shifted by 1"),
        (channel(A * 3), "only at 2 of the 6 along axis 1, 3 times as large"),
        (edges(), "only at the edges"),
        (some(), "one number alone, at [1, 3, 2, 4]: 9 in place of"),
        (np.where(A > 1, np.nan, A), "are NaN or infinite where eager has numbers"),
        (np.random.default_rng(5).normal(size=A.shape).astype(np.float32), "in no pattern"),
        (A[:, :3], "its shape is [4, 3, 5, 5], expected [4, 6, 5, 5]"),
        (A.astype(np.float64), "its dtype is float64, expected float32"),
    ],
)
def test_each_kind_of_difference_has_its_words(got: np.ndarray, words: str) -> None:
    assert words in gap(A, got).looks


def test_numbers_where_eager_has_none_are_told() -> None:
    assert "eager has NaN or infinity there" in looks(np.where(A > 1, np.inf, A), A)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3), elements=st.floats(-8, 8, width=32)),
    st.data(),
)
def test_the_error_is_that_of_the_worst_number_and_the_row_is_its_row(
    a: np.ndarray, data: st.DataObject
) -> None:
    place = data.draw(st.tuples(*(st.integers(0, size - 1) for size in a.shape)))
    amount = data.draw(st.floats(0.5, 100, width=32))
    b = a.copy()
    b[place] += np.float32(amount)
    found = gap(a, b)
    scale = float(np.abs(a).max()) or 1.0
    assert found.error == pytest.approx(abs(float(b[place]) - float(a[place])) / scale)
    assert found.error == error(a, b)
    assert found.row == place[0]
    assert float(b[place]) in found.got
    assert float(a[place]) in found.expected
    assert len(found.expected) == len(found.got) <= 6
    assert found.looks.startswith("one number alone") or a.size == 1 or not np.any(a)


def test_the_same_is_no_difference_wherever_it_is_nan() -> None:
    strange = np.where(A > 0, np.nan, np.where(A < -1, -np.inf, A)).astype(np.float32)
    assert error(strange, strange.copy()) == 0
    assert error(strange, np.where(np.isnan(strange), 0, strange).astype(np.float32)) == np.inf
    assert error(strange, -strange) == np.inf


def test_whole_numbers_are_measured_by_themselves() -> None:
    many = np.array([10**9, 5])
    assert error(many, many + 1) == 1
    assert error(np.array([True, False]), np.array([True, True])) == 1


W = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)


def test_weights_are_told_apart_by_what_was_done_to_them() -> None:
    one = W.copy()
    one[2, 0, 1] = 4
    assert weights(W, W.copy()) == ""
    assert "transposed: its axes are [1, 0]" in weights(W[0], W[0].T)
    assert "axes are [0, 2, 1]" in weights(W, W.swapaxes(1, 2))
    assert weights(W, W.astype(np.float16).astype(np.float32)) == "is rounded to float16"
    assert "one number alone, at [2, 0, 1]: 4 in place of" in weights(W, one)
    assert "has shape [2, 4, 5] where a fresh export has [3, 4, 5]" in weights(W, W[:2])
    assert "has dtype float64" in weights(W, W * np.float64(2))
    assert "1 of 3 numbers" in weights(np.array([1, 2, 3]), np.array([1, 2, 4]))
