"""Out-of-distribution scores against their definitions, thresholds against their rate of false alarms."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score, roc_curve

from dropserve.dropout.statistics import classification
from dropserve.errors import UsageError
from dropserve.uncertainty.ood import NEAREST, SCORES, OodThreshold, detection, scores


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(30, 8, 4)) * 3


def test_scores_by_their_definitions(logits):
    probabilities = special.softmax(logits, -1)
    found = scores(classification(probabilities, scheme="iid", block=10), logits)
    mean = probabilities.mean(0)
    assert {*found, NEAREST} == set(SCORES)
    assert np.allclose(found["max_probability"], 1 - mean.max(1))
    assert np.allclose(found["predictive_entropy"], stats.entropy(mean, axis=1))
    expected = stats.entropy(mean, axis=1) - stats.entropy(probabilities, axis=-1).mean(0)
    assert np.allclose(found["mutual_information"], expected)
    assert np.allclose(found["energy"], -special.logsumexp(logits, -1).mean(0))
    assert "energy" not in scores(classification(probabilities, scheme="iid", block=10))


def test_detection_agrees_with_scikit_learn_rows_in_distribution_being_the_positives():
    rng = np.random.default_rng(0)
    usual, strange = rng.normal(size=500).round(1), rng.normal(1.5, 1, 400).round(1)
    found = detection(usual, strange)
    truth = np.repeat([0, 1], [500, 400])
    assert found.auroc == pytest.approx(roc_auc_score(truth, np.concatenate([usual, strange])))
    false, true, _ = roc_curve(1 - truth, -np.concatenate([usual, strange]), drop_intermediate=False)
    assert found.fpr95 == false[np.argmax(true >= 0.95)]
    assert detection([0, 1], [2, 3]).fpr95 == 0


@pytest.mark.parametrize("rows", [19, 60, 2000])
def test_false_alarms_are_never_above_the_stated_rate_on_average(rows):
    rng = np.random.default_rng(rows)
    rates = [
        OodThreshold.fit(rng.exponential(size=rows), score="energy").flags(rng.exponential(size=400)).mean()
        for _ in range(600)
    ]
    exact = 1 - np.ceil((rows + 1) * 0.95) / (rows + 1)
    assert np.mean(rates) == pytest.approx(exact, abs=4 * np.std(rates) / np.sqrt(600))
    assert exact <= 0.05 + 1e-12


def test_too_few_rows_flag_nothing_and_say_so():
    found = OodThreshold.fit(np.arange(18.0), score="energy")
    assert found.threshold is None
    assert not found.flags([1e9]).any()
    assert "at least 19" in found.note()
    assert OodThreshold.fit(np.arange(19.0), score="energy").note() is None


def test_unknown_scores_and_rates_are_refused():
    with pytest.raises(UsageError, match="mutual_information"):
        OodThreshold.fit([1.0], score="vibes")
    with pytest.raises(UsageError, match="parts per thousand"):
        OodThreshold.fit([1.0], score="energy", false_alarms=0)
