"""Temperature and variance scaling against scipy, closed forms and known miscalibration."""

import numpy as np
import pytest
from scipy import optimize, special, stats

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import softmax
from dropserve.errors import UsageError
from dropserve.signature import Site
from dropserve.uncertainty.calibration import (
    FURTHEST,
    HIGHEST,
    LOWEST,
    PRIOR,
    TRUST,
    Assumptions,
    Temperature,
    VarianceScaling,
    shrinkage_note,
)
from dropserve.uncertainty.folds import folds
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


def test_with_many_rows_the_temperature_is_the_likeliest_and_makes_the_answers_calibrated():
    p, labels = draw(3.0)
    found = Temperature.fit(p, labels)
    expected = optimize.minimize_scalar(
        lambda t: nll(special.softmax(np.log(p) / t, 1), labels), bounds=(0.5, 10), method="bounded"
    )
    assert found.value == pytest.approx(expected.x, rel=0.03)
    assert found.likeliest == pytest.approx(expected.x, rel=3e-3)  # between points of the grid
    assert found.nll_after == pytest.approx(nll(found.probabilities(p), labels), abs=2e-3)
    assert found.nll_before == pytest.approx(nll(p, labels), rel=1e-9)
    assert found.nll_after < found.nll_before
    assert ece(found.probabilities(p), labels) < 0.03 < ece(p, labels)
    assert found.note(4000) is None


def one_more(p, t):
    """Log-likelihood of the mean row on which the model expects to err."""
    wrong = p * (np.arange(p.shape[1]) != p.argmax(1)[:, None])
    return (wrong / wrong.sum() * special.log_softmax(np.log(p) / t, axis=1)).sum()


def test_the_temperature_is_the_mode_of_the_posterior():
    p, labels = draw(3.0, rows=60)
    found = Temperature.fit(p, labels)
    expected = optimize.minimize_scalar(
        lambda x: (
            60 * nll(special.softmax(np.log(p) / np.exp(x), 1), labels)
            - stats.t.logpdf(x / PRIOR, 3)
            - one_more(p, np.exp(x))
        ),
        bounds=(-2, 2),
        method="bounded",
    )
    assert found.value == pytest.approx(np.exp(expected.x), rel=1e-3)
    assert 1 < found.value < found.likeliest
    words = (
        f"calibrated on 60 rows: the temperature was shrunk from {found.likeliest:.3g} to {found.value:.3g}"
    )
    assert found.note(60) == f"{words} towards 1"


def test_the_loss_after_calibration_is_cross_validated():
    p, labels = draw(3.0, rows=80)
    found = Temperature.fit(p, labels)
    losses = []
    for others, judged in folds(80):
        best = optimize.minimize_scalar(
            lambda x, o=others: (
                len(o) * nll(special.softmax(np.log(p[o]) / np.exp(x), 1), labels[o])
                - stats.t.logpdf(x / PRIOR, 3)
                - one_more(p[o], np.exp(x))
            ),
            bounds=(-2, 2),
            method="bounded",
        )
        losses += [nll(special.softmax(np.log(p[[j]]) / np.exp(best.x), 1), labels[[j]]) for j in judged]
    assert found.nll_after == pytest.approx(np.mean(losses), abs=2e-3)


def too_unsure(rows, seed=0):
    """Monte Carlo answers at twice the temperature of the plain ones, which are right; and no error."""
    rng = np.random.default_rng(seed)
    plain = softmax(6 * np.eye(3)[rng.integers(0, 3, rows)] + rng.normal(size=(rows, 3)))
    return softmax(np.log(plain) / 2), plain, plain.argmax(1)


def test_without_an_error_the_plain_answers_say_how_far_few_rows_may_go():
    mean, plain, labels = too_unsure(45)
    alone, found = Temperature.fit(mean, labels), Temperature.fit(mean, labels, plain)
    assert found.value == pytest.approx(0.5**TRUST, rel=0.1)
    assert found.value < alone.value - 0.1
    assert "was shrunk from 0.02 to" in found.note(45)
    certain = Temperature.fit(mean, labels, np.eye(3)[labels])  # believed up to a factor
    assert certain.value > 0.9 * FURTHEST**-TRUST


def test_many_rows_outweigh_the_plain_answers_and_so_do_a_few_errors():
    p, labels = draw(1.0, rows=4000)
    sharp = softmax(2 * np.log(p))
    assert Temperature.fit(p, labels, sharp).value == pytest.approx(1, abs=0.05)
    p, labels = draw(1.0, rows=60)
    few = Temperature.fit(p, labels, softmax(2 * np.log(p)))
    assert few.value == pytest.approx(1, abs=0.15)
    with pytest.raises(UsageError, match=r"plain \[60, 6\]: expected \[60, 5\]"):
        Temperature.fit(p, labels, np.full((60, 6), 1 / 6))


def test_a_temperature_beyond_the_likeliest_is_said_so():
    note = shrinkage_note("the temperature", 0.7, 0.9, 45)
    assert note == (
        "calibrated on 45 rows: the temperature is 0.7 and not the likeliest (0.9), as so few rows count "
        "only in part"
    )


@pytest.mark.parametrize("rows", [27, 45, 200])
def test_rows_without_an_error_do_not_make_the_temperature_as_cold_as_it_can_be(rows):
    rng = np.random.default_rng(0)
    p = softmax(np.eye(3)[rng.integers(0, 3, rows)] * rng.uniform(1, 6, (rows, 1)))
    found = Temperature.fit(p, p.argmax(1))
    assert found.likeliest == pytest.approx(0.02)  # the end of the range
    assert 0.4 < found.value <= 1
    assert found.probabilities(p).min() > 1e-8


def test_well_calibrated_answers_and_too_few_rows_are_left_alone_and_both_are_said():
    p, labels = draw(1.0, rows=100, seed=4)
    found = Temperature.fit(p, labels)
    assert (found.value, found.nll_after) == (1.0, found.nll_before)
    assert "100 rows" in found.note(100)
    p, labels = draw(3.0, rows=15)
    found = Temperature.fit(p, labels)
    assert found.value == 1
    assert "calibrated on 15 rows: too few to show that the temperature should be other than 1" in found.note(
        15
    )


def test_a_temperature_from_the_end_of_an_older_range_is_said():
    old = Temperature(0.02, 0.05, 0.01, "low")
    assert "export the model again" in old.note(27)
    assert Temperature(0.5, 0.2, 0.1).note(4000) is None


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


def test_it_never_makes_the_likelihood_worse_and_publishes_no_end_of_the_range():
    same = Temperature.fit(np.full((40, 3), 1 / 3), np.arange(40) % 3)
    assert (same.value, same.nll_after) == (1.0, same.nll_before)
    for size in (0.001, 0.1, 10):
        sure = softmax(np.tile(size * np.eye(3), (1000, 1)))  # the colder, the better
        found = Temperature.fit(sure, np.arange(3000) % 3)
        assert found.likeliest == pytest.approx(LOWEST)
        assert LOWEST < found.value <= 1
        assert found.end is None
    wrong = Temperature.fit(softmax(np.tile(-50 * np.eye(3), (1000, 1))), np.arange(3000) % 3)
    assert wrong.value < HIGHEST


def test_variance_scaling_has_its_closed_form_and_mends_deviations():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(5000, 2)), rng.uniform(0.5, 2, (5000, 2))
    y = mean + std * rng.normal(size=(5000, 2)) * [3.0, 0.25]
    found = VarianceScaling.fit(mean, std, y)
    assert np.allclose(found.factors, [3.0, 0.25], rtol=0.04)
    for d in (0, 1):
        best = optimize.minimize_scalar(
            lambda s, d=d: -stats.norm.logpdf(y[:, d], mean[:, d], s * std[:, d]).sum(),
            bounds=(0.01, 10),
            method="bounded",
        )
        assert found.factors[d] == pytest.approx(best.x, rel=0.02)
    assert np.allclose(((y - mean) / found.std(std)).std(0), 1, atol=0.02)
    with pytest.raises(UsageError, match="total ones"):
        VarianceScaling.fit(mean, 0 * std, y)


def test_the_factor_is_the_mode_of_the_posterior():
    """One row more, three deviations away, and Student's t prior."""
    z = np.random.default_rng(0).normal(size=300) * 0.5
    found = VarianceScaling.fit(0 * z[:, None], np.ones((300, 1)), z[:, None])
    expected = optimize.minimize_scalar(
        lambda x: -stats.norm.logpdf(np.append(z, 3.0), scale=np.exp(x)).sum() - stats.t.logpdf(x / PRIOR, 3),
        bounds=(-2, 2),
        method="bounded",
    )
    assert found.factors[0] == pytest.approx(np.exp(expected.x), rel=1e-3)
    assert found.likeliest[0] < found.factors[0] < 1


def test_a_factor_from_few_rows_is_shrunk_or_left_and_said():
    rng = np.random.default_rng(0)
    std = np.ones((30, 2))
    y = rng.normal(size=(30, 2)) * [1.0, 1.6]
    found = VarianceScaling.fit(0 * y, std, y)
    assert found.likeliest == pytest.approx(np.sqrt(np.square(y).mean(0)))
    assert found.factors[0] == 1
    assert 1.1 < found.factors[1] < found.likeliest[1]
    notes = found.notes(30)
    assert "target 0" in notes[0]
    assert (
        f"target 1 was shrunk from {found.likeliest[1]:.3g} to {found.factors[1]:.3g} towards 1" in notes[1]
    )
    assert VarianceScaling((2.0,)).notes(4000) == []


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
