"""Mixtures of Gaussians against scipy: densities, distribution and quantiles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from dropserve.errors import UsageError
from dropserve.uncertainty.mixtures import (
    mixture_log_likelihood,
    mixture_quantile,
    normal_cdf,
    normal_density,
)


@pytest.fixture
def mixture():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 6, 2)) * 3, rng.uniform(0.1, 4, (20, 6, 2)), rng.normal(size=(6, 2)) * 3


def test_the_normal_distribution_is_exact_to_1e_15():
    x = np.concatenate([np.linspace(-12, 12, 100_001), np.random.default_rng(0).normal(size=100_000)])
    assert np.abs(normal_cdf(x) - special.ndtr(x)).max() < 1e-15
    assert np.allclose(normal_density(x), stats.norm.pdf(x), rtol=1e-14)
    assert np.all(np.diff(normal_cdf(np.linspace(-9, 9, 500_001))) >= -2e-16)


def test_log_likelihood_is_logsumexp_over_samples(mixture):
    means, variances, y = mixture
    logs = stats.norm.logpdf(y, means, np.sqrt(variances))
    assert np.allclose(
        mixture_log_likelihood(means, variances, y), special.logsumexp(logs, axis=0) - np.log(20)
    )
    wrong = logs.mean(axis=0)  # summing samples before the exponential: a known mistake, always smaller
    assert np.all(mixture_log_likelihood(means, variances, y) > wrong)


def test_log_likelihood_far_away_does_not_underflow():
    assert mixture_log_likelihood(np.zeros((5, 1)), 1.0, [1e6])[0] == pytest.approx(-5e11, rel=1e-9)


def test_one_variance_for_all_and_one_for_each_target_broadcast(mixture):
    means, _, y = mixture
    both = mixture_log_likelihood(means, [0.5, 2.0], y)
    assert np.allclose(both[:, 1], mixture_log_likelihood(means[:, :, 1], 2.0, y[:, 1]))


@given(level=st.floats(0.001, 0.999), seed=st.integers(0, 1000))
def test_quantiles_invert_the_distribution(level, seed):
    rng = np.random.default_rng(seed)
    means, variances = rng.normal(size=(7, 3)) * 10 ** rng.uniform(-2, 3), rng.uniform(0.01, 4, (7, 3))
    found = mixture_quantile(means, variances, level)
    reached = stats.norm.cdf(found, means, np.sqrt(variances)).mean(axis=0)
    assert np.allclose(reached, level, atol=1e-9)


def test_the_quantile_of_one_gaussian_is_the_gaussians():
    found = mixture_quantile(np.full((4, 1), 3.0), 4.0, 0.975)
    assert found == pytest.approx(stats.norm.ppf(0.975, 3, 2), rel=1e-12)


@pytest.mark.parametrize(
    ("means", "variances", "y", "lesson"),
    [
        (np.zeros((5, 3)), 1.0, np.zeros((3, 1)), "the same axes"),
        (np.zeros((5, 3)), 0.0, np.zeros(3), "above 0"),
        (np.zeros((5, 3)), np.nan, np.zeros(3), "above 0"),
        (np.zeros((0, 3)), 1.0, np.zeros(3), "the same axes"),
    ],
)
def test_shapes_and_variances_that_do_not_fit_are_refused(means, variances, y, lesson):
    with pytest.raises(UsageError, match=lesson):
        mixture_log_likelihood(means, variances, y)


def test_levels_out_of_range_are_refused():
    with pytest.raises(UsageError, match="above 0 and below 1"):
        mixture_quantile(np.zeros((2, 1)), 1.0, 1.0)
