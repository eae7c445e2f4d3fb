"""Prediction intervals against MAPIE and the theory of coverage."""

import numpy as np
import pytest
from mapie.conformity_scores.bounds import StdConformityScore
from mapie.regression import ConformalizedQuantileRegressor, SplitConformalRegressor
from sklearn.base import BaseEstimator, RegressorMixin

from dropserve.errors import UsageError
from dropserve.uncertainty.intervals import INTERVAL_METHODS, ConformalRegressor
from dropserve.uncertainty.quantiles import coverage_theory


def draw(rows, seed):
    """Columns: mean, standard deviation; targets with heavier noise than predicted."""
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=rows) * 10, rng.uniform(0.2, 3, rows)
    return np.stack([mean, std], axis=1), mean + 1.5 * std * rng.standard_t(4, rows)


class Given(RegressorMixin, BaseEstimator):
    """An estimator whose features are its predictions: column ``a`` plus ``times`` column ``b``."""

    def __init__(self, times=0.0):
        self.times = times

    def fit(self, _x, _y):
        self.fitted_ = True
        return self

    def predict(self, x, return_std=False):
        value = x[:, 0] + self.times * x[:, 1]
        return (value, x[:, 1]) if return_std else value


def pair(x, method):
    if method == "cqr":
        return x[:, :1] - x[:, 1:], x[:, :1] + x[:, 1:]
    return x[:, :1], x[:, 1:]


@pytest.mark.parametrize(("method", "score"), [("absolute", "absolute"), ("scaled", StdConformityScore())])
def test_residual_intervals_are_those_of_mapie(method, score):
    (x, y), (new, _) = draw(333, 0), draw(200, 1)
    oracle = SplitConformalRegressor(
        Given().fit(None, None), confidence_level=[0.8, 0.9, 0.95], conformity_score=score
    )
    _, expected = oracle.conformalize(x, y).predict_interval(new)
    mine = ConformalRegressor.fit(*pair(x, method), y[:, None], method=method)
    for i, coverage in enumerate((800, 900, 950)):
        low, high = mine.intervals(*pair(new, method), coverage)
        assert np.allclose(high[:, 0], expected[:, 1, i], atol=1e-9)
        if method == "absolute":
            assert np.allclose(low[:, 0], expected[:, 0, i], atol=1e-9)
        else:  # MAPIE 1.6 takes the lower end from the next smaller score, short of the guarantee
            assert np.all(low[:, 0] < expected[:, 0, i])
            assert np.allclose(low, 2 * new[:, :1] - high)


@pytest.mark.parametrize("method", INTERVAL_METHODS)
@pytest.mark.parametrize("kind", ["rounded", "cauchy"])
def test_coverage_holds_with_few_rows_ties_and_heavy_tails(kind, method):
    """Over 400 draws of 20 rows."""
    rng, shares = np.random.default_rng(4), []
    for _ in range(400):
        x = np.stack([rng.normal(size=80) * 3, rng.uniform(0, 2, 80)], axis=1)
        y = x[:, :1] + (rng.normal(size=(80, 1)) if kind == "rounded" else rng.standard_cauchy((80, 1)))
        if kind == "rounded":
            x, y = np.round(x), np.round(y)
        fitted = ConformalRegressor.fit(*pair(x[:20], method), y[:20], method=method)
        low, high = fitted.intervals(*pair(x[20:], method), 900)
        shares.append(((low <= y[20:]) & (y[20:] <= high)).mean())
    assert np.mean(shares) > 0.9 - 4 * np.std(shares) / 20


def test_quantile_intervals_are_those_of_mapie():
    (x, y), (new, _) = draw(333, 0), draw(200, 1)
    models = [Given(times).fit(None, None) for times in (-1.0, 1.0, 0.0)]
    oracle = ConformalizedQuantileRegressor(models, confidence_level=0.9, prefit=True)
    _, expected = oracle.conformalize(x, y).predict_interval(new, symmetric_correction=True)
    low, high = ConformalRegressor.fit(*pair(x, "cqr"), y[:, None], method="cqr").intervals(
        *pair(new, "cqr"), 900
    )
    assert np.allclose(low[:, 0], expected[:, 0, 0], atol=1e-9)
    assert np.allclose(high[:, 0], expected[:, 1, 0], atol=1e-9)


@pytest.mark.parametrize("method", INTERVAL_METHODS)
@pytest.mark.parametrize("coverage", [500, 900])
def test_coverage_is_within_what_theory_predicts(method, coverage):
    x, y = draw(800, 0)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        order = rng.permutation(800)
        a, b = order[:400], order[400:]
        fitted = ConformalRegressor.fit(*pair(x[a], method), y[a, None], method=method)
        low, high = fitted.intervals(*pair(x[b], method), coverage)
        found.append(((low[:, 0] <= y[b]) & (y[b] <= high[:, 0])).mean())
    mean, deviation = coverage_theory(400, coverage, 400)
    assert abs(np.mean(found) - mean) < 4 * deviation / np.sqrt(200)


def test_scaled_intervals_follow_the_doubt_and_absolute_ones_do_not():
    x, y = draw(500, 0)
    for method, same in (("absolute", True), ("scaled", False)):
        low, high = ConformalRegressor.fit(*pair(x, method), y[:, None], method=method).intervals(
            *pair(x, method), 900
        )
        width = (high - low)[:, 0]
        assert np.allclose(width, width[0]) == same
        assert np.allclose(width / x[:, 1], width[0] / x[0, 1]) != same


def test_a_band_that_shrinks_beyond_its_width_is_its_middle():
    lower, upper = np.full((99, 1), -10.0), np.full((99, 1), 10.0)
    fitted = ConformalRegressor.fit(lower, upper, np.zeros((99, 1)), method="cqr")
    low, high = fitted.intervals(np.array([[-1.0]]), np.array([[3.0]]), 900)
    assert (low[0, 0], high[0, 0]) == (1, 1)


def test_each_target_has_its_own_scores():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(200, 2)) * [1, 100]
    fitted = ConformalRegressor.fit(np.zeros((200, 2)), np.ones((200, 2)), y)
    low, high = fitted.intervals(np.zeros((1, 2)), np.ones((1, 2)), 900)
    assert np.allclose((high - low)[0] / [1, 100], 3.3, atol=0.7)
    assert fitted.note(999) is not None
    assert np.isinf(fitted.intervals(np.zeros((1, 2)), np.ones((1, 2)), 999)[1]).all()


def test_what_does_not_fit_is_refused():
    one = np.ones((20, 1))
    for first, second, y, method, lesson in (
        (one, one, one, "jackknife", "absolute, scaled, cqr"),
        (one, -one, one, "scaled", "none below 0"),
        (one, one - 2, one, "cqr", "lower, then upper"),
        (one, one[:3], one, "scaled", "one shape"),
        (one, one, one[:3], "scaled", "as the predictions"),
    ):
        with pytest.raises(UsageError, match=lesson):
            ConformalRegressor.fit(first, second, y, method=method)
    with pytest.raises(UsageError, match=r"expected \[B, 1\]"):
        ConformalRegressor.fit(one, one, one).intervals(np.ones((3, 2)), np.ones((3, 2)), 900)
