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


def draw(sharpness, samples=1, rows=4000, noise=0.0, seed=0):
    """Logits whose true temperature is ``sharpness``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 5)) * 2
    labels = (rng.random(rows)[:, None] > special.softmax(logits, 1).cumsum(1)[:, :-1]).sum(1)
    return sharpness * (logits + noise * rng.normal(size=(samples, rows, 5))), labels


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(sharpness):
    logits, labels = draw(sharpness)
    assert Temperature.fit(logits, labels).value == pytest.approx(sharpness, rel=0.06)


def test_the_temperature_is_the_likeliest_and_makes_the_answers_calibrated():
    logits, labels = draw(3.0, samples=20, noise=0.7)
    found = Temperature.fit(logits, labels)
    expected = optimize.minimize_scalar(
        lambda t: nll(special.softmax(logits / t, -1).mean(0), labels), bounds=(0.5, 10), method="bounded"
    )
    assert found.value == pytest.approx(expected.x, rel=1e-3)
    assert found.nll_after == pytest.approx(nll(found.probabilities(logits), labels), rel=1e-9)
    assert found.nll_before == pytest.approx(nll(softmax(logits).mean(0), labels), rel=1e-9)
    assert found.nll_after < found.nll_before
    assert ece(found.probabilities(logits), labels) < 0.03 < ece(softmax(logits).mean(0), labels)


def test_temperature_acts_on_every_sample_and_not_on_their_mean():
    logits, _ = draw(2.0, samples=20, noise=2.0, rows=50)
    found = Temperature(2.0, 0, 0).probabilities(logits)
    assert np.allclose(found, special.softmax(logits / 2, -1).mean(0))
    assert not np.allclose(found, special.softmax(logits.mean(0) / 2, -1), atol=0.01)
    assert np.allclose(found.sum(1), 1)


def test_the_likelihood_survives_where_probabilities_underflow():
    logits = np.array([[[0.0, -2000.0]], [[0.0, -3000.0]]])
    assert Temperature.fit(logits, np.array([1])).nll_before == pytest.approx(2000 + np.log(2))


def test_it_never_makes_the_likelihood_worse_and_says_when_it_ran_into_an_end():
    logits = np.zeros((1, 4, 3))
    same = Temperature.fit(logits, np.array([0, 1, 2, 0]))
    assert (same.value, same.nll_after) == (1.0, same.nll_before)
    right = 0.1 * np.eye(3)[None]  # the colder, the better
    assert Temperature.fit(right, np.arange(3)).end == "low"
    assert Temperature.fit(-5 * right, np.arange(3)).end == "high"


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


def test_labels_that_do_not_fit_the_logits_are_refused():
    with pytest.raises(UsageError, match="expected 0 to 2"):
        Temperature.fit(np.zeros((2, 1, 3)), [3])
    with pytest.raises(UsageError, match=r"\[T, B, C\]"):
        Temperature.fit(np.zeros((2, 3)), [1, 2])
