"""The finite-sample quantile of split conformal prediction, against fractions and the theory of coverage."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dropserve.errors import UsageError
from dropserve.uncertainty.quantiles import (
    Quantiles,
    coverage_theory,
    few_rows_note,
    pack,
    rank,
    unpack,
)


@given(count=st.integers(1, 3000), coverage=st.integers(1, 999))
def test_the_quantile_is_the_ceil_of_n_plus_one_times_the_coverage(count, coverage):
    scores = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    k = math.ceil((count + 1) * Fraction(coverage, 1000))  # exact
    assert rank(count, coverage) == k
    quantiles = Quantiles.of(scores)
    assert quantiles.at(coverage) == (k if k <= count else math.inf)
    assert len(quantiles.values) <= 999
    assert (quantiles.note(coverage) is None) == (k <= count)
    assert (coverage <= quantiles.largest_coverage) == (k <= count)


def test_floats_would_round_up_where_whole_numbers_do_not():
    assert rank(49, 140) == 7
    assert math.ceil((49 + 1) * 0.140) == 8  # the trap is real


def test_too_few_rows_are_said_with_the_number_that_would_do():
    quantiles = Quantiles.of([0.1, 0.2, 0.3])
    assert quantiles.largest_coverage == 750
    assert quantiles.at(750) == 0.3
    assert quantiles.at(751) == math.inf
    assert "at least 19 rows" in quantiles.note(950)
    assert Quantiles.of(np.arange(19.0)).note(950) is None
    assert Quantiles.of(np.arange(18.0)).note(950) is not None
    assert Quantiles.of([1.0]).largest_coverage == 500


def test_few_rows_are_said_with_the_coverage_that_bad_luck_gives():
    note = few_rows_note(45, 900)
    assert note.startswith("calibrated on 45 rows: asked for 0.9, sets and intervals may hold the truth for ")
    (low,) = (int(word.rstrip("%")) / 100 for word in note.split() if "%" in word)
    assert stats.beta(42, 4).cdf(low) == pytest.approx(0.03, abs=0.02)
    assert few_rows_note(200, 900) is None
    assert few_rows_note(5, 900) is None  # refused, which is said elsewhere


@given(st.lists(st.floats(allow_nan=False, width=64), max_size=20))
def test_packing_is_exact(values):
    assert unpack(pack(tuple(values))) == tuple(values)


def test_a_broken_text_is_refused():
    for text in ("not base64!", "AAAA", 5):
        with pytest.raises(ValueError, match="base64"):
            unpack(text)


@pytest.mark.parametrize("coverage", [0, 1000, 0.9, 90.0, True, -5, "900"])
def test_coverages_are_whole_parts_per_thousand(coverage):
    with pytest.raises(UsageError, match="parts per thousand"):
        Quantiles.of([1.0]).at(coverage)


def test_values_that_cannot_be_order_statistics_are_refused():
    for count, values in ((2, (2.0, 1.0)), (3, (1.0, 2.0)), (0, ()), (5000, (1.0,))):
        with pytest.raises(UsageError, match="rising order"):
            Quantiles(count, values)
    with pytest.raises(UsageError, match="finite"):
        Quantiles.of([np.nan])


@pytest.mark.parametrize(("n", "coverage", "m"), [(99, 900, 50), (270, 950, 300), (1000, 700, 20)])
def test_the_theory_is_the_beta_and_the_beta_binomial_distribution(n, coverage, m):
    k = math.ceil((n + 1) * Fraction(coverage, 1000))
    beta = stats.beta(k, n + 1 - k)
    assert coverage_theory(n, coverage) == pytest.approx((beta.mean(), beta.std()))
    counts = stats.betabinom(m, k, n + 1 - k)
    assert coverage_theory(n, coverage, m) == pytest.approx((counts.mean() / m, counts.std() / m))
    assert coverage_theory(5, 999) == (1.0, 0.0)


def test_random_splits_of_any_fixed_pool_follow_the_theory():
    rng = np.random.default_rng(0)
    pool = rng.pareto(0.5, 400)  # as far from uniform as it gets
    found = []
    for _ in range(4000):
        rng.shuffle(pool)
        found.append((pool[300:] <= Quantiles.of(pool[:300]).at(900)).mean())
    mean, deviation = coverage_theory(300, 900, 100)
    assert np.mean(found) == pytest.approx(mean, abs=4 * deviation / np.sqrt(4000))
    assert np.std(found) == pytest.approx(deviation, rel=0.05)
