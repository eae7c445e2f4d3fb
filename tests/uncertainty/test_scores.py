"""All measures at once against other people's, and calibration that no row decides for itself."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from dropserve.uncertainty.calibration import Temperature
from dropserve.uncertainty.scores import Scores, calibrated_by_others


def draw(rows=420):
    """Answers that are too sure; every bin of equal mass gets 28 of the rows."""
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(rows, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits / 2, axis=1)])
    return softmax(logits, axis=1), labels


def test_scores_are_those_of_scikit_learn():
    probabilities, labels = draw()
    found = Scores.of(probabilities, labels)
    assert found.accuracy == oracle.accuracy_score(labels, probabilities.argmax(1))
    assert found.nll == pytest.approx(oracle.log_loss(labels, probabilities))
    assert found.brier == pytest.approx(oracle.brier_score_loss(labels, probabilities, scale_by_half=False))
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    share, mean = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    assert found.ece_mass == pytest.approx(np.abs(share - mean).mean())
    share, mean = calibration_curve(right, confidence, n_bins=15)
    rows = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    assert found.ece == pytest.approx(np.average(np.abs(share - mean), weights=rows[rows > 0]))
    assert found.ece != found.ece_mass


def test_a_row_is_calibrated_by_others_alone():
    probabilities, labels = draw()
    usual = calibrated_by_others(probabilities, labels)
    assert Scores.of(usual, labels).nll < Scores.of(probabilities, labels).nll
    for row in (0, 7, 100):
        wrong = labels.copy()
        wrong[row] = probabilities[row].argmin()
        other = calibrated_by_others(probabilities, wrong)
        assert np.array_equal(other[row], usual[row]), "its own label decides nothing about it"
        assert (other != usual).any(axis=1).sum() > 300, "of other rows it decides a little"
    everybody = Temperature.fit(probabilities, labels).probabilities(probabilities)
    assert np.abs(usual - everybody).max() < 0.05


def test_probabilities_that_are_served_unchanged_are_judged_unchanged() -> None:
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(30, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([generator.choice(3, p=row) for row in probabilities])
    assert Temperature.fit(probabilities, truth).value == 1
    assert np.array_equal(calibrated_by_others(probabilities, truth), probabilities)
