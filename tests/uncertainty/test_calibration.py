"""Temperature and variance scaling against scipy, closed forms and known miscalibration."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import softmax
from dropserve.errors import UsageError
from dropserve.signature import Site
from dropserve.uncertainty.calibration import Assumptions, Temperature, VarianceScaling
from dropserve.uncertainty.metrics import ece, nll

SITE = Site(name="drop", kind="dropout", p=0.5, shape=(4,), scale="drop_scale")


def draw(sharpness, rows=4000, seed=0):
    """Probabilities whose true temperature is ``sharpness``, and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 5)) * 2
    labels = (rng.random(rows)[:, None] > special.softmax(logits, 1).cumsum(1)[:, :-1]).sum(1)
    return special.softmax(sharpness * logits, axis=1), labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found_whether_answers_are_too_sure_or_too_unsure(sharpness):
    p, labels = draw(sharpness)
    found = Temperature.fit(p, labels)
    assert found.value == pytest.approx(sharpness, rel=0.06)
    assert np.allclose(found.probabilities(p), special.softmax(np.log(p) / found.value, 1))


def test_the_temperature_is_the_likeliest_and_makes_the_answers_calibrated():
    p, labels = draw(3.0)
    found = Temperature.fit(p, labels)
    expected = optimize.minimize_scalar(
        lambda t: nll(special.softmax(np.log(p) / t, 1), labels), bounds=(0.5, 10), method="bounded"
    )
    assert found.value == pytest.approx(expected.x, rel=1e-4)
    assert found.nll_after == pytest.approx(nll(found.probabilities(p), labels), rel=1e-9)
    assert found.nll_before == pytest.approx(nll(p, labels), rel=1e-9)
    assert found.nll_after < found.nll_before
    assert ece(found.probabilities(p), labels) < 0.03 < ece(p, labels)


def test_the_order_of_the_classes_stays():
    p, _ = draw(2.0, rows=50)
    for temperature in (0.05, 0.5, 20.0):
        found = Temperature(temperature, 0, 0).probabilities(p)
        assert np.array_equal(found.argmax(1), p.argmax(1))
        assert np.allclose(found.sum(1), 1)


def test_mean_votes_that_are_too_unsure_are_sharpened_which_tempered_samples_cannot_do():
    """Samples that are certain each, and disagree: dividing their logits changes nothing."""
    rng = np.random.default_rng(0)
    right = rng.random((50, 2000)) < 0.7  # each sample is right seven times of ten; together, always
    p = np.stack([right.mean(0), 1 - right.mean(0)], axis=1)
    found = Temperature.fit(p, np.zeros(2000, int))
    assert found.value < 0.3
    assert found.nll_after < 0.1 < found.nll_before


def test_a_class_of_probability_zero_costs_a_finite_likelihood():
    found = Temperature.fit([[1.0, 0.0], [0.5, 0.5]], np.array([1, 0]))
    assert found.nll_before == pytest.approx((708.396 + np.log(2)) / 2, rel=1e-5)
    assert np.isfinite(found.nll_after)


def test_it_never_makes_the_likelihood_worse_and_says_when_it_ran_into_an_end():
    same = Temperature.fit(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0]))
    assert (same.value, same.nll_after) == (1.0, same.nll_before)
    right = softmax(0.1 * np.eye(3))  # the colder, the better
    assert Temperature.fit(right, np.arange(3)).end == "low"
    assert Temperature.fit(softmax(-0.5 * np.eye(3)), np.arange(3)).end == "high"


def test_variance_scaling_has_its_closed_form_and_mends_deviations():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(5000, 2)), rng.uniform(0.5, 2, (5000, 2))
    y = mean + std * rng.normal(size=(5000, 2)) * [3.0, 0.25]
    found = VarianceScaling.fit(mean, std, y)
    assert np.allclose(found.factors, [3.0, 0.25], rtol=0.03)
    for d in (0, 1):
        best = optimize.minimize_scalar(
            lambda s, d=d: -stats.norm.logpdf(y[:, d], mean[:, d], s * std[:, d]).sum(),
            bounds=(0.01, 10),
            method="bounded",
        )
        assert found.factors[d] == pytest.approx(best.x, rel=1e-3)
    assert np.allclose(((y - mean) / found.std(std)).std(0), 1, atol=1e-3)
    with pytest.raises(UsageError, match="total ones"):
        VarianceScaling.fit(mean, 0 * std, y)


def test_assumptions_say_what_differs_and_leave_the_seed_free():
    assumed = Assumptions.of(Settings(), [SITE])
    assert assumed == Assumptions(50, "balanced", {"drop": 0.5})
    assert assumed.difference(Settings(seed=9), [SITE]) is None
    assert assumed.difference(Settings(rate=0.5), [SITE]) is None
    text = assumed.difference(Settings(samples=20, scheme="iid", rate=0.1), [SITE])
    for part in ("20 samples where calibration assumed 50", "scheme iid", "dropout rates"):
        assert part in text


def test_logits_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="expected 0 to 1"):
        Temperature.fit([[0.5, 0.5]], [3])
    with pytest.raises(UsageError, match="Logits need"):
        Temperature.fit(np.zeros((2, 3)), [1, 2])
