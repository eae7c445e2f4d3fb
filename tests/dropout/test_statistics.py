"""Statistics against scipy, closed forms and simulation."""

import numpy as np
import pytest
from scipy import special, stats

from dropserve.dropout.masks import keep_masks
from dropserve.dropout.statistics import (
    classification,
    entropy,
    half_width,
    regression,
    softmax,
    standard_error,
)
from dropserve.dropout.student import t_coverage, t_quantile
from dropserve.errors import UsageError


@pytest.fixture
def probabilities():
    return special.softmax(np.random.default_rng(0).normal(size=(50, 4, 3)) * 3, axis=-1)


def test_softmax_agrees_with_scipy_and_survives_large_logits():
    logits = np.array([[1e4, 0, -1e4], [1, 2, 3]], np.float32)
    assert np.allclose(softmax(logits), special.softmax(logits.astype(float), axis=-1), rtol=1e-14)


def test_classification_agrees_with_scipy(probabilities):
    result = classification(probabilities, scheme="iid", block=10)
    mean = probabilities.mean(axis=0)
    assert np.allclose(result.predictive_entropy, stats.entropy(mean, axis=-1))
    assert np.allclose(result.expected_entropy, stats.entropy(probabilities, axis=-1).mean(axis=0))
    assert np.allclose(result.mutual_information, result.predictive_entropy - result.expected_entropy)
    assert np.allclose(result.std, probabilities.std(axis=0, ddof=1))
    assert np.allclose(result.standard_error, stats.sem(probabilities, axis=0))
    votes = stats.mode(probabilities.argmax(-1), axis=0).count
    assert np.allclose(result.variation_ratio, 1 - votes / 50)


def test_balanced_divides_by_t_and_takes_its_error_from_block_means(probabilities):
    result = classification(probabilities, scheme="balanced", block=10)
    assert np.allclose(result.std, probabilities.std(axis=0))
    blocks = probabilities.reshape(5, 10, 4, 3).mean(axis=1)
    assert np.allclose(result.standard_error, stats.sem(blocks, axis=0))


@pytest.mark.parametrize(("samples", "known"), [(49, False), (50, True), (59, True)])
def test_no_standard_error_below_five_whole_blocks(samples, known):
    values = np.random.default_rng(0).normal(size=(samples, 2, 1))
    assert (regression(values, scheme="balanced", block=10).standard_error is not None) == known
    assert (half_width(values, scheme="balanced", block=10) is not None) == known


def test_identical_certain_samples_have_no_uncertainty_at_all():
    result = classification(np.tile([1.0, 0.0], (10, 3, 1)), scheme="balanced", block=10)
    for value in (result.std, result.predictive_entropy, result.mutual_information, result.variation_ratio):
        assert np.all(value == 0)


def test_a_small_spread_on_a_large_mean_is_not_lost():
    """E[x^2] - E[x]^2 in float32 gives NaN for 41 of 100 of these."""
    noise = np.random.default_rng(0).normal(size=(200, 50, 1))
    result = regression((1000 + 0.01 * noise).astype(np.float64), scheme="iid", block=10)
    assert np.allclose(result.std, 0.01 * noise.std(axis=0, ddof=1), rtol=1e-6)


def test_entropy_of_the_uniform_is_log_of_the_classes():
    assert np.allclose(entropy(np.full(7, 1 / 7)), np.log(7))


def test_first_order_errors_of_the_entropies_match_repeated_sampling():
    rng = np.random.default_rng(1)
    repeats = [
        classification(special.softmax(rng.normal([1, 0, 0], 1, (400, 1, 3)), -1), scheme="iid", block=1)
        for _ in range(400)
    ]
    for name in ("predictive_entropy", "mutual_information"):
        spread = np.std([getattr(r, name) for r in repeats])
        claimed = np.mean([getattr(r, f"{name}_error") for r in repeats])
        assert abs(claimed / spread - 1) < 0.15


def test_block_means_give_the_true_error_and_the_usual_formula_does_not():
    """A rectified sum of kept units: the linear part of it is nearly exact over a block."""
    weights = np.random.default_rng(0).normal(size=40)
    nonlinear = [
        np.maximum(keep_masks("s", 40, 0.5, 100, seed=seed, scheme="balanced") @ weights + 4, 0)
        for seed in range(600)
    ]
    truth = np.std([values.mean() for values in nonlinear])
    block = np.mean([standard_error(v, scheme="balanced", block=10) for v in nonlinear])
    usual = np.mean([standard_error(v, scheme="iid", block=10) for v in nonlinear])
    assert abs(block / truth - 1) < 0.1
    assert usual / truth > 1.5


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 50, 199, 1000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_t_quantiles_agree_with_scipy(df, level):
    assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)
    assert t_coverage(2.0, df) == pytest.approx(stats.t.cdf(2, df) - stats.t.cdf(-2, df), rel=1e-12)


def test_half_width_uses_the_degrees_of_freedom_of_the_blocks():
    """Blocks that lie evenly have no skewness, so the interval is Student's."""
    values = np.repeat([1.0, 2, 3, 4, 5, 6], 10)[:, None] * [1, -2]
    expected = stats.t.ppf(0.975, 5) * stats.sem(values.reshape(6, 10, 2).mean(axis=1), axis=0)
    assert np.allclose(half_width(values, scheme="balanced", block=10), expected, rtol=1e-5)
    expected = stats.t.ppf(0.995, 59) * stats.sem(values, axis=0)
    assert np.allclose(half_width(values, scheme="iid", block=10, level=0.99), expected)


@pytest.mark.parametrize("blocks", [5, 10, 20])
def test_intervals_from_skewed_block_means_cover_as_often_as_they_say(blocks):
    """Squares of normal numbers: a plain t-interval holds the mean 82 to 91% of the time."""
    values = np.random.default_rng(0).normal(size=(blocks, 20_000)) ** 2
    held = np.abs(values.mean(axis=0) - 1) <= half_width(values, scheme="balanced", block=1)
    plain = stats.t.ppf(0.975, blocks - 1) * stats.sem(values, axis=0)
    assert (np.abs(values.mean(axis=0) - 1) <= plain).mean() < 0.925
    assert held.mean() > 0.9
    normal = np.random.default_rng(0).normal(size=(blocks, 20_000))
    assert (np.abs(normal.mean(axis=0)) <= half_width(normal, scheme="balanced", block=1)).mean() > 0.95


def test_blocks_that_agree_leave_an_interval_of_no_width():
    assert np.all(half_width(np.ones((50, 3)), scheme="balanced", block=10) == 0)


@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 3), (0, 2, 3)])
def test_one_sample_or_a_lost_axis_is_refused(shape):
    with pytest.raises(UsageError, match="at least 2"):
        classification(np.ones(shape), scheme="iid", block=10)
    with pytest.raises(UsageError, match="at least 2"):
        regression(np.ones(shape), scheme="iid", block=10)


def test_levels_and_schemes_out_of_range_are_refused():
    with pytest.raises(UsageError, match="0 < level < 1"):
        t_quantile(1.0, 5)
    with pytest.raises(UsageError, match="balanced, iid"):
        regression(np.ones((5, 1, 1)), scheme="sobol", block=10)


@pytest.mark.parametrize("scheme", ["iid", "balanced"])
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_a_row_has_the_same_bits_alone_and_among_others(scheme, classes):
    values = np.random.default_rng(0).normal(size=(130, 9, classes))
    together = regression(values, scheme=scheme, block=10)
    alone = regression(values[:, 4:5], scheme=scheme, block=10)
    for name in ("mean", "std", "standard_error"):
        assert getattr(together, name)[4:5].tobytes() == getattr(alone, name).tobytes()
    shares = softmax(values)
    together = classification(shares, scheme=scheme, block=10)
    alone = classification(shares[:, 4:5], scheme=scheme, block=10)
    for name, value in vars(together).items():
        assert value[4:5].tobytes() == getattr(alone, name).tobytes(), name


def test_the_entropy_of_a_certain_answer_is_zero_without_a_sign() -> None:
    found = entropy(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert not np.signbit(found).any()
    assert (found == 0).all()
