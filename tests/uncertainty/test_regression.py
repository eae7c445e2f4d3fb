"""Noise, spread and intervals of regressors, against known noise and closed forms."""

import numpy as np
import pytest
from scipy import stats

from dropserve.errors import UsageError
from dropserve.uncertainty.mixtures import mixture_log_likelihood
from dropserve.uncertainty.regression import central_interval, fit_precision, split_head, spread


def test_tau_of_samples_that_agree_is_one_over_the_mean_squared_residual():
    """With no spread the mixture is one Gaussian, whose best precision has a closed form."""
    rng = np.random.default_rng(0)
    mean, y = rng.normal(size=(500, 2)) * 10, None
    y = mean + rng.normal(size=(500, 2)) * [0.01, 300]
    for d, found in enumerate(fit_precision(np.tile(mean, (4, 1, 1)), y)):
        residual = np.square(y[:, d] - mean[:, d]).mean()
        assert found.tau == pytest.approx(1 / residual, rel=1e-4)  # the row more has this residual too
        assert found.variance == pytest.approx(residual, rel=1e-4)
        expected = stats.norm.logpdf(y[:, d], mean[:, d], np.sqrt(residual)).mean()
        assert found.log_likelihood == pytest.approx(expected, rel=1e-9)
        assert found.end is None


def test_tau_does_not_count_the_spread_of_the_samples_twice():
    """Residuals hold noise and epistemic spread; the mixture already has the spread."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 3000, 1))  # epistemic deviation 1
    y = rng.normal(size=(3000, 1)) + 0.5 * rng.normal(size=(3000, 1))  # truth from it, and noise 0.5
    found = fit_precision(samples, y)[0]
    assert found.variance == pytest.approx(0.25, rel=0.25)
    assert found.variance < np.square(y - samples.mean(axis=0)).mean() / 3


def test_tau_is_no_worse_than_any_of_a_fine_grid_and_units_are_free():
    rng = np.random.default_rng(1)
    samples, y = rng.normal(size=(30, 80, 1)), rng.standard_t(2, size=(80, 1))
    found = fit_precision(samples, y)[0]
    grid = [mixture_log_likelihood(samples, 10**-e, y).mean() for e in np.linspace(-8, 8, 2000)]
    assert found.log_likelihood >= max(grid) - 1e-5  # one row of 81 is not theirs
    scaled = fit_precision(samples * 1e5 + 7e6, y * 1e5 + 7e6)[0]
    assert scaled.tau == pytest.approx(found.tau * 1e-10, rel=1e-3)


def test_tau_stays_inside_of_its_range_where_the_likelihood_has_no_top():
    samples = np.array([[[1.0]], [[5.0]]])  # one sample hits the target exactly
    found = fit_precision(samples, [[1.0]])[0]
    assert found.end is None
    assert 0.1 < found.variance < 10
    assert fit_precision(np.ones((3, 4, 1)), np.ones((4, 1)))[0].end is None  # a perfect fit


def test_rows_that_the_samples_explain_alone_leave_some_noise_for_the_next():
    """Each of 30 targets is one of the samples: the likeliest noise is none, and a new row is lost."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(10, 30, 1))
    found = fit_precision(samples, samples[0])[0]
    assert found.end is None
    new, y = rng.normal(size=(10, 2000, 1)), rng.normal(size=(2000, 1))
    plain = mixture_log_likelihood(new, 1.0, y).mean()
    assert mixture_log_likelihood(new, found.variance, y).mean() > plain - 2
    assert mixture_log_likelihood(new, 1e-8, y).mean() < -1000


def test_the_heteroscedastic_head_gives_variances_before_anything_is_averaged():
    outputs = np.array([[[1.0, np.log(0.01)]], [[3.0, np.log(4.0)]]])
    means, variances = split_head(outputs)
    assert np.allclose(means, [[1], [3]])
    assert np.allclose(variances, [[0.01], [4.0]])
    found = spread(means[..., None], variances[..., None], scheme="balanced", block=10)
    assert found.aleatoric == pytest.approx(np.sqrt((0.01 + 4) / 2))  # not exp of the mean log: 0.45
    with pytest.raises(UsageError, match="log variance"):
        split_head(np.zeros((5, 3)))


def test_total_is_the_variance_of_the_mixture():
    rng = np.random.default_rng(0)
    samples, variances = rng.normal(size=(50, 3, 2)), rng.uniform(0.5, 2, (50, 3, 2))
    found = spread(samples, variances, scheme="balanced", block=10)
    draws = samples[:, None] + np.sqrt(variances)[:, None] * rng.normal(size=(50, 20_000, 3, 2))
    assert np.allclose(found.total, draws.reshape(-1, 3, 2).std(axis=0), rtol=0.01)
    assert np.allclose(found.total**2, found.epistemic**2 + found.aleatoric**2)
    assert np.allclose(found.mean, samples.mean(axis=0))
    with pytest.raises(UsageError, match="not logs"):
        spread(samples, -variances, scheme="iid", block=10)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_central_intervals_hold_what_they_say_and_cut_equal_tails(level):
    rng = np.random.default_rng(0)
    samples, variance = rng.normal(size=(12, 4, 1)) * 5, 0.3
    low, high = central_interval(samples, variance, level)
    tail = (1 - level) / 2
    assert np.allclose(stats.norm.cdf(low, samples, np.sqrt(variance)).mean(axis=0), tail)
    assert np.allclose(stats.norm.sf(high, samples, np.sqrt(variance)).mean(axis=0), tail)
    with pytest.raises(UsageError, match=r"such as 0\.9"):
        central_interval(samples, variance, 90)


def test_samples_and_targets_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match=r"\[T, B, D\], \[B, D\]"):
        fit_precision(np.zeros((5, 3, 1)), np.zeros((4, 1)))
