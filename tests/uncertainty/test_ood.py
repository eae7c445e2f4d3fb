"""Out-of-distribution scores against their definitions, thresholds against their rate of false alarms."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score, roc_curve

from dropserve.dropout.statistics import classification
from dropserve.errors import UsageError
from dropserve.uncertainty.distances import combined, fit_parts
from dropserve.uncertainty.ood import GRAPHS, SCORES, OodThreshold, OutOfDistribution, detection, scores


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(size=(30, 8, 4)) * 3


def test_scores_by_their_definitions(logits):
    probabilities = special.softmax(logits, -1)
    found = scores(classification(probabilities, scheme="iid", block=10), logits)
    mean = probabilities.mean(0)
    assert {*found, *GRAPHS} == set(SCORES)
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


def distances(rows, excess=0.0, distance=1.0):
    """A graph's table: excess, place, value, low, high, squared distance."""
    table = np.zeros((rows, 6))
    table[:, 0], table[:, 1], table[:, 2], table[:, 4] = excess, 1, 7, 2
    table[:, 5] = np.square(distance)
    return table


@pytest.mark.parametrize("rows", [19, 60, 400])
def test_the_combined_score_keeps_its_rate_of_false_alarms(rows):
    rng = np.random.default_rng(rows)
    draw = lambda count: distances(count, rng.exponential(size=count) - 2, rng.gamma(5, size=count))  # noqa: E731
    rates = []
    for _ in range(300):
        parts = fit_parts(draw(50), 50)
        found = OodThreshold.fit(combined(draw(rows), parts), score="auto", parts=parts)
        rates.append(found.flags(combined(draw(200), parts)).mean())
    exact = 1 - np.ceil((rows + 1) * 0.95) / (rows + 1)
    assert np.mean(rates) == pytest.approx(exact, abs=4 * np.std(rates) / np.sqrt(300))


def test_what_overflows_32_bits_is_far_away_and_the_value_is_named():
    table = distances(3, [0, 0.01, np.inf], [1, 9, np.inf])
    parts = fit_parts(distances(200, 0, np.linspace(0.5, 1.5, 200)), 50)
    ood = OodThreshold.fit(np.linspace(0, 1, 99), score="auto", parts=parts)
    rows = OutOfDistribution(ood, combined(table, parts), table, ("a", "column 'b'")).rows()
    assert [row["out_of_distribution"] for row in rows] == [False, True, True]
    assert rows[0]["out_of_distribution_reason"] is None
    assert str(rows[1]["out_of_distribution_reason"]).startswith("distance of its inputs")
    assert rows[2]["out_of_distribution_reason"] == "column 'b' is 7; training rows lie between 0 and 2"


def test_indecision_is_not_said_to_be_unfamiliarity():
    assert "indecision" in str(OodThreshold.fit(np.arange(99.0), score="predictive_entropy").meaning())
    assert OodThreshold.fit(np.arange(99.0), score="auto").meaning() is None


def test_the_share_of_usual_rows_that_is_flagged_is_told_with_its_spread():
    told = OodThreshold.fit(np.arange(95.0), score="energy").alarms()
    mean, deviation = stats.beta(4, 92).stats()
    high = float(mean + 2 * np.sqrt(deviation))
    assert told == (
        f"at most 5.0% of usual rows on average; 0.1% to {high:.1%} by the luck of the 95 calibration rows"
    )
