"""From samples of held-out rows to calibrated answers, by way of the manifest."""

import json

import numpy as np
import pytest
from scipy import special

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import classification, softmax
from dropserve.errors import UsageError
from dropserve.signature import Site
from dropserve.uncertainty.answers import calibrated_classes, calibrated_values
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor
from dropserve.uncertainty.metrics import ece, nll
from dropserve.uncertainty.record import Calibration

SITES = [Site(name="drop", kind="dropout", p=0.5, shape=(4,), scale="drop_scale")]
SETTINGS = Settings(samples=20)


def stored(record):
    """The record as a server reads it."""
    return Calibration.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))


def classes(rows, seed=0):
    """An overconfident classifier: logits [20, rows, 4], labels and inputs."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 4)) * 2
    labels = (rng.random(rows)[:, None] > special.softmax(logits, 1).cumsum(1)[:, :-1]).sum(1)
    return 3 * (logits + 0.3 * rng.normal(size=(20, rows, 4))), labels, {"input": rng.normal(size=(rows, 2))}


def answer(record, logits, inputs, seed=0):
    statistics = classification(softmax(logits), scheme="balanced", block=10)
    return calibrated_classes(stored(record), logits, statistics, inputs, seed)


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_a_classifiers_answers_are_calibrated_covered_and_watched(method):
    record = calibrate_classifier(*classes(2000), settings=SETTINGS, sites=SITES, method=method)
    assert record.assumes.difference(Settings(samples=20, seed=3), SITES) is None
    logits, labels, inputs = classes(4000, 1)
    found = answer(record, logits, inputs)
    plain = softmax(logits).mean(0)
    assert ece(found.probabilities, labels) < 0.03 < ece(plain, labels)
    assert nll(found.probabilities, labels) < nll(plain, labels)
    for coverage in (800, 950):
        hit = found.sets(coverage)[np.arange(4000), labels].mean()
        assert hit == pytest.approx(coverage / 1000, abs=4 * np.sqrt(0.25 / 2000 + 0.25 / 4000))
    assert found.out_of_distribution.mean() == pytest.approx(0.05, abs=0.02)


def test_sets_of_aps_repeat_for_a_seed_and_move_with_it():
    record = calibrate_classifier(*classes(500), settings=SETTINGS, sites=SITES, method="aps")
    logits, _, inputs = classes(300, 1)
    one = answer(record, logits, inputs).sets(900)
    assert np.array_equal(one, answer(record, logits, inputs).sets(900))
    assert not np.array_equal(one, answer(record, logits, inputs, seed=1).sets(900))
    alone = answer(record, logits[:, 7:9], {"input": inputs["input"][7:9]})
    assert np.array_equal(alone.sets(900), one[7:9])


def numbers(rows, seed=0):
    """A regressor whose noise differs: samples [20, rows, 2] and targets."""
    rng = np.random.default_rng(seed)
    mean, doubt = rng.normal(size=(rows, 2)) * 10, rng.uniform(0.2, 3, (rows, 2))
    samples = mean + doubt * rng.normal(size=(20, rows, 2))
    return samples, mean + doubt * rng.normal(size=(rows, 2)) + rng.normal(size=(rows, 2)) * [0.5, 2]


@pytest.mark.parametrize("method", ["absolute", "scaled", "cqr"])
def test_a_regressors_answers_are_calibrated_and_covered(method):
    record = calibrate_regressor(*numbers(1500), settings=SETTINGS, sites=SITES, method=method)
    samples, y = numbers(3000, 1)
    found = calibrated_values(stored(record), samples, block=10)
    for coverage in (800, 950):
        low, high = found.intervals(coverage)
        hit = ((low <= y) & (y <= high)).mean(0)
        assert np.allclose(hit, coverage / 1000, atol=4 * np.sqrt(0.25 / 1500 + 0.25 / 3000))
    assert np.allclose(((y - samples.mean(0)) / found.total).std(0), 1, atol=0.06)
    assert np.allclose(found.aleatoric.std(0), 0)  # one noise for all rows
    assert np.all(found.epistemic < found.total * 1.5)


def test_few_rows_and_a_coverage_beyond_them_are_said():
    logits, labels, inputs = classes(45)
    found = answer(
        calibrate_classifier(logits, labels, inputs, settings=SETTINGS, sites=SITES), logits, inputs
    )
    assert found.sets(900) is not None
    assert "temperature was shrunk from" in found.notes(900)[0]
    assert "calibrated on 45 rows: asked for 0.9" in found.notes(900)[1]
    assert found.sets(990) is None
    assert found.notes(990)[1] == (
        "45 calibration rows support a coverage of at most 0.978, not 0.99; ask for less, or calibrate on "
        "at least 99 rows"
    )
    samples, y = numbers(45)
    values = calibrated_values(
        stored(calibrate_regressor(samples, y, settings=SETTINGS, sites=SITES)), samples, block=10
    )
    assert values.intervals(990) is None
    assert any("support a coverage of at most 0.978" in note for note in values.notes(990))


def test_a_calibration_of_the_other_task_is_refused():
    logits, labels, inputs = classes(50)
    samples, y = numbers(50)
    classifier = calibrate_classifier(logits, labels, inputs, settings=SETTINGS, sites=SITES)
    regressor = calibrate_regressor(samples, y, settings=SETTINGS, sites=SITES)
    with pytest.raises(UsageError, match="not a classifier's"):
        answer(regressor, logits, inputs)
    with pytest.raises(UsageError, match="not a regressor's"):
        calibrated_values(classifier, samples, block=10)
