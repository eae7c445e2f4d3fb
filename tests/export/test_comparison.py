from __future__ import annotations

import numpy as np
import pytest

from dropserve.export.comparison import REMEDIES, Tally, compare

A = np.arange(12, dtype=np.float32).reshape(4, 3)


def one(expected: np.ndarray, got: dict[str, np.ndarray], *, finite: bool = True, scale: float = 10.0):
    (difference,) = compare({"output": expected}, got, {"output": scale}, finite=finite)
    return difference


def with_value(value: float) -> np.ndarray:
    changed = A.copy()
    changed[2, 1] = value
    return changed


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        ({}, "missing output"),
        ({"other": A}, "missing output"),
        ({"output": A.astype(np.float64)}, "wrong dtype"),
        ({"output": A[:3]}, "wrong shape"),
        ({"output": A[0]}, "wrong shape"),  # [3] would broadcast against [4, 3]
        ({"output": with_value(np.nan)}, "NaN"),
        ({"output": with_value(np.inf)}, "NaN"),
    ],
)
def test_what_cannot_be_compared_has_a_class_of_its_own(got: dict[str, np.ndarray], problem: str) -> None:
    difference = one(A, got)
    assert difference.problem == problem
    assert difference.problem in REMEDIES
    assert difference.detail
    assert difference.maximum == 0, "values are not looked at"


def test_errors_are_shares_of_the_scale_and_the_worst_row_is_kept() -> None:
    difference = one(A, {"output": with_value(A[2, 1] + 0.5)})
    assert difference.problem is None
    assert difference.maximum == pytest.approx(0.05)
    assert difference.mean == pytest.approx(0.05 / 12)
    assert difference.percentile == pytest.approx(np.percentile([0.0] * 11 + [0.05], 99))
    assert difference.worst is not None
    assert (difference.worst.row, difference.worst.expected, difference.worst.got) == (
        2,
        [6, 7, 8],
        [6, 7.5, 8],
    )


def test_off_real_rows_the_reference_may_overflow_if_the_graph_does_so_at_the_same_places() -> None:
    both = with_value(np.nan)
    assert one(both, {"output": both}, finite=True).problem == "NaN"
    assert one(both, {"output": both}, finite=False).problem is None
    assert one(with_value(np.inf), {"output": with_value(-np.inf)}, finite=False).problem == "NaN"
    shifted = both + np.float32(0.2)
    assert one(both, {"output": shifted}, finite=False).maximum == pytest.approx(0.02)


def test_a_tally_keeps_the_first_problem_and_where_it_was() -> None:
    tally = Tally(tolerance=1e-3)
    tally.add([one(A, {"output": A})], {"batch": 1})
    tally.add([one(A, {"output": with_value(7.02)})], {"batch": 3, "inputs": "rows"})
    tally.add([one(A, {})], {"batch": 17})
    tally.crashed(ValueError("late"), {"batch": 2})
    assert tally.problem == "difference"
    assert "0.002 of its scale (batch 3, inputs rows)" in tally.detail
    assert (tally.runs, tally.worst["row"], tally.worst["batch"]) == (4, 2, 3)


def test_slack_is_allowed_beyond_the_tolerance_for_that_output_alone() -> None:
    tally = Tally(tolerance=1e-3)
    tally.add([one(A, {"output": with_value(7.02)})], {}, {"output": 0.01})
    assert tally.problem is None
    tally.add([one(A, {"output": with_value(7.02)})], {}, {"other": 0.01})
    assert tally.problem == "difference"


def test_integer_and_boolean_outputs_compare() -> None:
    labels = np.array([1, 2, 3])
    assert one(labels, {"output": labels}).maximum == 0
    assert one(labels, {"output": labels + 1}, scale=3).maximum == pytest.approx(1 / 3)
    flags = np.array([True, False])
    assert one(flags, {"output": ~flags}, scale=1).maximum == 1


def test_an_output_that_is_always_zero_is_measured_absolutely() -> None:
    zeros = np.zeros((2, 2), np.float32)
    assert one(zeros, {"output": zeros}, scale=0.0).maximum == 0
    assert one(zeros, {"output": zeros + np.float32(0.5)}, scale=0.0).maximum == pytest.approx(0.5)
