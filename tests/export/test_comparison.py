from __future__ import annotations

import json

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


def off_by(*shares: float) -> list:
    """One run whose row ``i`` is off by ``shares[i]`` of the scale 10."""
    changed = A.copy()
    for row, share in enumerate(shares):
        changed[row, 0] += np.float32(10 * share)
    return [one(A, {"output": changed})]


def test_the_worst_row_is_that_of_the_greatest_error_as_long_as_all_is_well() -> None:
    tally = Tally(tolerance=0.5)
    tally.add(off_by(0.1, 0.0), {"batch": 1})
    tally.add(off_by(0.0, 0.3), {"batch": 2})
    tally.add(off_by(0.2, 0.0), {"batch": 3})
    assert tally.problem is None
    assert (tally.worst["row"], tally.worst["batch"]) == (1, 2)
    assert tally.maximum == pytest.approx(0.3)


def test_after_the_first_problem_the_worst_row_stays_that_of_the_problem() -> None:
    tally = Tally(tolerance=0.05)
    tally.add(off_by(0.0, 0.1), {"batch": 1})
    tally.add(off_by(0.4, 0.0), {"batch": 2})
    assert (tally.worst["row"], tally.worst["batch"]) == (1, 1)
    assert "0.1 of its scale (batch 1)" in tally.detail
    assert tally.maximum == pytest.approx(0.4), "the figures still tell the greatest of all"


def test_an_error_at_the_tolerance_is_allowed() -> None:
    exact = one(A, {"output": with_value(A[2, 1] + 2.5)}, scale=10.0).maximum
    for tolerance, problem in ((exact, None), (np.nextafter(exact, 0), "difference")):
        tally = Tally(tolerance=float(tolerance))
        tally.add([one(A, {"output": with_value(A[2, 1] + 2.5)})], {})
        assert tally.problem == problem


def test_a_crash_that_came_first_stays_and_counts_as_a_run() -> None:
    tally = Tally(tolerance=1e-3)
    tally.crashed(ValueError("bad\n  shape"), {"batch": 1, "inputs": ""})
    tally.add(off_by(0.9), {"batch": 2})
    assert (tally.problem, tally.detail) == ("error", "ValueError: bad shape (batch 1)")
    assert tally.runs == 2


def test_figures_are_those_of_all_runs_and_hold_nothing_that_json_cannot() -> None:
    tally = Tally(tolerance=1.0)
    runs = [off_by(0.5, 0.1), off_by(0.2, 0.0), [one(A, {"output": with_value(np.nan)})]]
    for run in runs:
        tally.add(run, {})
    figures = json.loads(json.dumps(tally.figures(), allow_nan=False))
    assert figures["runs"] == 3
    assert figures["max"] == pytest.approx(0.5)
    assert figures["mean"] == pytest.approx(np.mean([0.6 / 12, 0.2 / 12, 0.0]))
    assert figures["p99"] == pytest.approx(max(run[0].percentile for run in runs))
    assert figures["worst"]["got"] == [6, "nan", 8]


def test_every_output_is_compared_in_the_order_of_the_reference() -> None:
    expected = {"b": A, "a": A}
    found = compare(expected, {"a": A + 1, "b": A, "more": A}, {"a": 10.0, "b": 10.0}, finite=True)
    assert [difference.output for difference in found] == ["b", "a"]
    assert [difference.maximum for difference in found] == [0, pytest.approx(0.1)]


def test_nothing_differs_in_an_output_without_numbers() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert one(empty, {"output": empty}) == one(empty, {"output": empty.copy()})
    assert one(empty, {"output": np.zeros((1, 3), np.float32)}).problem == "wrong shape"


def test_the_row_of_the_first_nan_is_told() -> None:
    changed = A.copy()
    changed[1, 2] = changed[3, 0] = np.nan
    difference = one(A, {"output": changed})
    assert "2 values are NaN or infinite, the first in row 1" in difference.detail
    assert difference.worst is not None
    assert difference.worst.row == 1


def test_at_most_32_numbers_of_a_row_are_kept() -> None:
    wide = np.arange(200, dtype=np.float32).reshape(2, 10, 10)
    difference = one(wide, {"output": wide + 1})
    assert difference.worst is not None
    assert difference.worst.expected == wide[0].reshape(-1)[:32].tolist()
