"""Measures of class probabilities against scikit-learn, torchmetrics and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from dropserve.errors import UsageError
from dropserve.uncertainty.metrics import accuracy, brier, ece, nll, reliability, rmse


def draw(seed=0, rows=400, classes=5, sharpness=2.0):
    rng = np.random.default_rng(seed)
    probabilities = softmax(rng.normal(size=(rows, classes)) * sharpness, axis=1)
    labels = np.array([rng.choice(classes, p=p) for p in softmax(np.log(probabilities) / 2, axis=1)])
    return probabilities, labels


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60), classes=st.integers(2, 7))
def test_accuracy_and_proper_scores_agree_with_scikit_learn(seed, rows, classes):
    probabilities, labels = draw(seed, rows, classes)
    names = np.arange(classes)
    assert accuracy(probabilities, labels) == oracle.accuracy_score(labels, probabilities.argmax(1))
    assert nll(probabilities, labels) == pytest.approx(oracle.log_loss(labels, probabilities, labels=names))
    assert brier(probabilities, labels) == pytest.approx(
        oracle.brier_score_loss(labels, probabilities, labels=names, scale_by_half=False)
    )


def test_a_sure_mistake_costs_a_finite_likelihood_and_the_whole_brier_score():
    assert nll([[1.0, 0.0]], [1]) == pytest.approx(708.396, abs=1e-3)
    assert brier([[1.0, 0.0]], [1]) == 2
    assert (nll([[1.0, 0.0]], [0]), brier([[1.0, 0.0]], [0])) == (0, 0)


@pytest.mark.parametrize(("equal", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_reliability_curves_agree_with_scikit_learn(equal, strategy, bins):
    probabilities, labels = draw(rows=420)  # every bin count divides it: no row lies on an edge
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    curve = reliability(confidence, correct, bins=bins, equal=equal)
    share, mean = calibration_curve(correct, confidence, n_bins=bins, strategy=strategy)
    assert np.allclose(curve.accuracy, share)
    assert np.allclose(curve.confidence, mean)
    assert curve.count.sum() == len(labels)


def test_expected_calibration_error_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, labels = draw()
    expected = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=5, n_bins=15, norm="l1"
    )
    assert ece(probabilities, labels) == pytest.approx(float(expected), abs=1e-6)


def test_bins_of_equal_mass_hold_equally_many_rows():
    probabilities, labels = draw(rows=300)
    count = reliability(probabilities.max(1), labels == 0, bins=10, equal="mass").count
    assert count.tolist() == [30] * 10


def test_equal_confidences_share_a_bin_so_the_order_of_rows_is_nothing():
    confidence = np.repeat([0.5, 0.9], [3, 97])
    correct = np.arange(100) % 3 == 0
    order = np.random.default_rng(0).permutation(100)
    for equal in ("width", "mass"):
        one = reliability(confidence, correct, equal=equal)
        other = reliability(confidence[order], correct[order], equal=equal)
        assert one.count.tolist() == [3, 97]
        assert np.allclose([one.accuracy, one.confidence], [other.accuracy, other.confidence])
        assert one.ece == pytest.approx(0.03 * abs(0.5 - 1 / 3) + 0.97 * abs(0.9 - 33 / 97))


def test_the_error_of_calibrated_confidence_vanishes_and_of_overconfidence_does_not():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 200_000)
    assert reliability(confidence, rng.random(200_000) < confidence).ece < 0.005
    assert reliability(confidence, rng.random(200_000) < confidence - 0.1).ece == pytest.approx(0.1, abs=0.01)


def test_rmse_agrees_with_scikit_learn_and_refuses_to_broadcast():
    rng = np.random.default_rng(0)
    made, wanted = rng.normal(size=(2, 50, 3))
    assert rmse(made, wanted) == pytest.approx(
        np.sqrt(oracle.mean_squared_error(wanted.ravel(), made.ravel()))
    )
    with pytest.raises(UsageError, match="expected one shape"):
        rmse(made[:, :1], wanted[:, 0])


@pytest.mark.parametrize(
    ("probabilities", "labels", "lesson"),
    [
        ([[2.0, -1.0]], [0], "Logits need"),
        ([[0.5, 0.4]], [0], "sums to 0.9"),
        ([[0.5, np.nan]], [0], "finite"),
        ([[0.5, 0.5]], [2], "expected 0 to 1"),
        ([[0.5, 0.5]], [-1], "expected 0 to 1"),
        ([[0.5, 0.5]], [0.0], "whole numbers"),
        ([[0.5, 0.5]], [0, 1], r"whole numbers \[1\]"),
        (np.empty((0, 2)), [], "none of them 0"),
        ([0.5, 0.5], [0], r"expected \[B, C\]"),
    ],
)
def test_what_is_not_a_probability_or_a_label_is_refused(probabilities, labels, lesson):
    for measure in (accuracy, nll, brier, ece):
        with pytest.raises(UsageError, match=lesson):
            measure(probabilities, np.array(labels))


def test_confidences_out_of_range_and_no_bins_are_refused():
    for confidence, correct, bins in (([1.5], [1], 5), ([0.5], [1, 0], 5), ([0.5], [1], 0)):
        with pytest.raises(UsageError, match="at least 1 bin"):
            reliability(confidence, correct, bins=bins)
