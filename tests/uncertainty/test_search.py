"""The one-dimensional search against functions whose tops are known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropserve.errors import UsageError
from dropserve.uncertainty.search import maximise


@given(top=st.floats(-5.9, 5.9), width=st.floats(0.05, 3))
def test_it_finds_the_top_of_any_hill_on_the_logarithmic_scale(top, width):
    best = maximise(lambda x: -(((math.log10(x) - top) / width) ** 2), 1e-6, 1e6)
    assert math.log10(best.at) == pytest.approx(top, abs=1e-5)
    assert best.end is None


@pytest.mark.parametrize(("slope", "end", "at"), [(1, "high", 1e6), (-1, "low", 1e-6)])
def test_an_end_that_is_reached_is_said(slope, end, at):
    best = maximise(lambda x: slope * math.log(x), 1e-6, 1e6)
    assert best.end == end
    assert best.at == pytest.approx(at, rel=1e-5)


def test_the_higher_of_two_hills_wins_and_holes_are_skipped():
    def two(x):
        u = math.log10(x)
        return math.nan if abs(u) < 0.5 else math.exp(-((u + 3) ** 2)) + 2 * math.exp(-((u - 3) ** 2))

    best = maximise(two, 1e-6, 1e6)
    assert math.log10(best.at) == pytest.approx(3, abs=1e-4)
    assert best.value == pytest.approx(2, abs=1e-6)


def test_a_function_that_is_finite_nowhere_and_an_empty_range_are_refused():
    with pytest.raises(UsageError, match="finite nowhere"):
        maximise(lambda _: math.nan, 1, 10)
    with pytest.raises(UsageError, match="0 < low < high"):
        maximise(lambda x: x, 0, 1)
