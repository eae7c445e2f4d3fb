"""The record of a calibration through the manifest and back."""

import dataclasses
import json

import numpy as np
import pytest

from dropserve.dropout.engine import Settings
from dropserve.errors import CorruptStoreError
from dropserve.signature import Site
from dropserve.uncertainty.calibration import Assumptions, Temperature, VarianceScaling
from dropserve.uncertainty.conformal import ConformalClassifier
from dropserve.uncertainty.intervals import ConformalRegressor
from dropserve.uncertainty.ood import OodThreshold
from dropserve.uncertainty.record import Calibration
from dropserve.uncertainty.regression import fit_precision
from dropserve.uncertainty.scores import Scores, calibrated_by_others

ASSUMES = Assumptions.of(
    Settings(), [Site(name="drop", kind="dropout", p=0.3, shape=(4,), scale="drop_scale")]
)


def classifier(rows):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, rows, 3)), rng.integers(0, 3, rows)
    p = np.exp(logits).mean(0)
    p /= p.sum(1, keepdims=True)
    sets = ConformalClassifier.fit(p, labels, method="raps", uniforms=rng.random(rows))
    ood = OodThreshold.fit(p.max(1), score="max_probability", false_alarms=10)
    before, after = (Scores.of(each, labels) for each in (p, calibrated_by_others(p, labels)))
    found = Calibration(ASSUMES, rows, Temperature.fit(p, labels), sets, ood, before=before, after=after)
    return found, p


def regressor():
    rng = np.random.default_rng(0)
    samples, y = rng.normal(size=(5, 40, 2)), rng.normal(size=(40, 2))
    return Calibration(
        ASSUMES,
        40,
        precision=fit_precision(samples, y),
        scaling=VarianceScaling.fit(samples.mean(0), samples.std(0), y),
        intervals=ConformalRegressor.fit(samples.mean(0), samples.std(0), y),
    )


@pytest.mark.parametrize("rows", [30, 5000])
def test_a_classifiers_record_comes_back_exactly_and_stays_small(rows):
    record, p = classifier(rows)
    text = json.dumps(record.to_json(), allow_nan=False)
    assert Calibration.from_json(json.loads(text)) == record
    assert len(text) < 13_000
    u = np.linspace(0, 1, rows)
    assert np.array_equal(
        Calibration.from_json(json.loads(text)).sets.sets(p, 873, u), record.sets.sets(p, 873, u)
    )


def test_a_regressors_record_comes_back_exactly():
    record = regressor()
    assert Calibration.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_records_from_before_scores_were_kept_are_read():
    record = classifier(30)[0]
    content = {k: v for k, v in record.to_json().items() if k not in {"before", "after"}}
    assert Calibration.from_json(content) == dataclasses.replace(record, before=None, after=None)


OLD = {
    "assumes": {"samples": 50, "scheme": "balanced", "rates": {"drop": 0.3}},
    "rows": 3,
    "temperature": {"value": 0.02, "nll_before": 0.05, "nll_after": 0.01, "end": "low"},
    "sets": {
        "method": "lac",
        "quantiles": {"count": 3, "values": [0.1, 0.2, 0.3]},
        "penalty": 0.0,
        "free_ranks": 0,
    },
    "ood": {"score": "predictive_entropy", "threshold": None, "false_alarms": 50, "rows": 3},
    "precision": [],
    "scaling": None,
    "intervals": None,
    "band": None,
    "before": None,
    "after": None,
    "format": 1,
}


def test_a_record_from_before_shrinkage_and_class_conditional_sets_is_read():
    found = Calibration.from_json(OLD)
    assert found.temperature == Temperature(0.02, 0.05, 0.01, "low")
    assert found.sets.classes == ()
    assert found.sets.sets([[0.85, 0.15]], 500).tolist() == [[True, False]]
    assert "export the model again" in found.notes()[0]
    scaling = {"factors": [2.0]}
    old = OLD | {"temperature": None, "sets": None, "ood": None, "scaling": scaling}
    assert Calibration.from_json(old).scaling == VarianceScaling((2.0,))


def test_class_conditional_sets_come_back_exactly():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(4), 50), rng.integers(0, 3, 50)
    record = dataclasses.replace(
        classifier(30)[0], sets=ConformalClassifier.fit(p, y, class_conditional=True)
    )
    assert record.sets.classes[3] is None
    assert Calibration.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_it_stands_in_a_version_manifest():
    from dropserve.manifest import VersionManifest

    field = VersionManifest.model_fields["calibration"]
    from pydantic import TypeAdapter

    content = regressor().to_json()
    assert TypeAdapter(field.annotation).validate_python(content) == content


@pytest.mark.parametrize(
    ("change", "lesson"),
    [
        ({"format": 2}, "Upgrade dropserve"),
        ({"rows": "many"}, "rows"),
        ({"assumes": {}}, "samples"),
        ({"sets": {"method": "lac", "quantiles": {"count": 3, "values": "AAAA"}}}, "base64"),
        ({"sets": {"method": "lac", "quantiles": {"count": 3, "values": [3, 2, 1]}}}, "rising order"),
        ({"sets": {"method": "magic", "quantiles": {"count": 1, "values": [1]}}}, "lac"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_with_the_way_out(change, lesson):
    content = classifier(30)[0].to_json() | change
    with pytest.raises(CorruptStoreError, match=lesson) as caught:
        Calibration.from_json(content)
    assert "again" in str(caught.value)
