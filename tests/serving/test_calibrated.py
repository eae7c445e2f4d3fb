"""Calibrated fields of Monte Carlo answers: as the library says, or null with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.markup import escape

from dropserve.cli import predict
from dropserve.client.results import read_answer
from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import draw
from dropserve.dropout.statistics import classification, softmax
from dropserve.errors import CorruptStoreError, RequestError
from dropserve.manifest import VersionManifest
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.signature import TensorSpec
from dropserve.store import Store, Stored
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor

Version = Stored[VersionManifest]
Publish = Callable[..., Version]
LABELS = ("a", "b", "c", "d")


def rows(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def sampled(net: Any, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """The network in numpy under the masks of a seed [50, B, outputs]."""
    return np.stack([net(x, mask) for mask in draw([net.site], 50, seed=seed)["drop.scale"]]).astype(float)


def graphs(net: Any) -> dict[str, bytes]:
    return {f"{part}.onnx": net.onnx(part) for part in ("model", "trunk", "head")}


@pytest.fixture(scope="module")
def calibration(mlp: Any) -> dict[str, Any]:
    x = rows(400, 2)
    labels = np.random.default_rng(3).integers(0, 4, 400)
    record = calibrate_classifier(
        sampled(mlp, x), labels, {"input": x}, settings=Settings(), sites=[mlp.site], method="aps"
    )
    return record.to_json()


@pytest.fixture(scope="module")
def version(
    tmp_path_factory: pytest.TempPathFactory, publish_version: Publish, mlp: Any, calibration: dict[str, Any]
) -> Version:
    store = Store(tmp_path_factory.mktemp("calibrated") / "model_store")
    published = publish_version(
        store, "mlp", graphs(mlp), labels=LABELS, sites=(mlp.site,), calibration=calibration
    )
    return store.version("mlp", published.manifest.version)  # as a server reads it, from the file


def ask(version: Version, x: np.ndarray, **parameters: Any) -> dict[str, Any]:
    codec = Codec(version.manifest, monte_carlo=True)
    call = codec.decode(json.dumps({"instances": x.tolist(), "parameters": parameters}).encode())
    (answer,) = Predictor(version).answer([call.query])
    assert not isinstance(answer, Exception), answer
    return json.loads(call.encode(answer).body)


def test_calibrated_fields_are_what_the_record_says(version: Version, mlp: Any) -> None:
    from dropserve.uncertainty.answers import calibrated_classes
    from dropserve.uncertainty.record import Calibration

    x = rows(30)
    document = ask(version, x, mc_coverage=700, mc_seed=5)
    assert document["parameters"]["mc_coverage"] == 0.7
    logits = sampled(mlp, x, seed=5)
    statistics = classification(softmax(logits), scheme="balanced", block=10)
    record = Calibration.from_json(version.manifest.calibration or {})
    expected = calibrated_classes(record, logits, statistics, {"input": x}, 5)
    found = [prediction["calibrated"] for prediction in document["predictions"]]
    sets = [{LABELS[k] for k in np.flatnonzero(row)} for row in expected.sets(700)]
    assert [set(f["prediction_set"]) for f in found] == sets
    assert len({frozenset(s) for s in sets}) > 3, "the sets must differ for this to say anything"
    p = np.array([list(f["probabilities"].values()) for f in found])
    np.testing.assert_allclose(p, expected.probabilities, rtol=1e-4)
    flags = [f["out_of_distribution"] for f in found]
    assert flags == expected.out_of_distribution.tolist()
    scores = [f["out_of_distribution_score"] for f in found]
    np.testing.assert_allclose(scores, expected.strangeness, rtol=1e-4)
    assert record.ood is not None
    ood = {"score": "predictive_entropy", "threshold": record.ood.threshold}
    notes = [record.ood.meaning()]
    assert document["calibration"] == {"reason": None, "notes": notes, "out_of_distribution": ood}


def test_a_set_lists_its_labels_from_the_most_probable_down_and_coverage_adds_to_it(version: Version) -> None:
    x = rows(20)
    before: list[set[str]] = [set() for _ in x]
    for coverage in (300, 900, 990):
        for row, prediction in enumerate(ask(version, x, mc_coverage=coverage)["predictions"]):
            found = prediction["calibrated"]
            assert found["prediction_set"][0] == prediction["label"]
            chances = [found["probabilities"][label] for label in found["prediction_set"]]
            assert chances == sorted(chances, reverse=True)
            assert before[row] <= set(found["prediction_set"])
            before[row] = set(found["prediction_set"])


def test_the_same_row_gets_the_same_set_alone_and_in_company(version: Version) -> None:
    x = rows(9)
    codec, predictor = Codec(version.manifest, monte_carlo=True), Predictor(version)
    bodies = [{"instances": x[:1].tolist()}, {"instances": x.tolist(), "parameters": {"mc_coverage": 600}}]
    calls = [codec.decode(json.dumps(body).encode()) for body in bodies]
    together = predictor.answer([call.query for call in calls])
    for call, mixed in zip(calls, together, strict=True):
        (alone,) = predictor.answer([call.query])
        assert not isinstance(mixed, Exception)
        assert not isinstance(alone, Exception)
        assert call.encode(mixed).body == call.encode(alone).body


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"mc_samples": 20}, "20 samples where calibration assumed 50"),
        ({"mc_scheme": "iid"}, "scheme iid where calibration assumed balanced"),
    ],
)
def test_other_settings_get_null_and_the_reason(
    version: Version, parameters: dict[str, Any], reason: str
) -> None:
    document = ask(version, rows(2), **parameters)
    assert [p["calibrated"] for p in document["predictions"]] == [None, None]
    assert document["calibration"] == {"reason": reason}
    assert document["predictions"][0]["uncertainty"], "what needs no calibration is still there"


def test_a_version_without_calibration_says_so(mlp_version: Version) -> None:
    document = ask(mlp_version, rows(1))
    assert document["predictions"][0]["calibrated"] is None
    assert "without held-out rows" in document["calibration"]["reason"]


def test_a_coverage_beyond_the_calibration_rows_is_refused_with_a_note(version: Version) -> None:
    document = ask(version, rows(2), mc_coverage=999)
    assert [p["calibrated"]["prediction_set"] for p in document["predictions"]] == [None, None]
    assert document["predictions"][0]["calibrated"]["probabilities"], "the rest of the answer is there"
    note, *_ = document["calibration"]["notes"]
    assert note == (
        "400 calibration rows support a coverage of at most 0.997, not 0.999; ask for less, or calibrate on "
        "at least 999 rows"
    )
    answer = read_answer(document)
    assert predict._guaranteed(answer[0], answer)[0] == "99.9% prediction set: none, too few calibration rows"


def test_in_v2_the_tensor_is_left_out_and_the_note_is_a_parameter(version: Version) -> None:
    codec = Codec(version.manifest, monte_carlo=True)
    for coverage, there in ((900, True), (999, False)):
        document = {
            "inputs": [{"name": "input", "shape": [1, 6], "datatype": "FP32", "data": rows(1)[0].tolist()}],
            "parameters": {"mc_coverage": coverage},
        }
        call = codec.decode(json.dumps(document).encode())
        (answer,) = Predictor(version).answer([call.query])
        assert not isinstance(answer, Exception), answer
        found = json.loads(call.encode(answer).body)
        assert ("prediction_set" in {output["name"] for output in found["outputs"]}) == there
        assert ("calibration_notes" in found["parameters"]) != there


@pytest.mark.parametrize(
    ("asked", "used"),
    [(0.9, 0.9), (900, 0.9), (900.0, 0.9), (0.995, 0.995), (0.9973, 0.998), (1e-9, 0.001), (101, 0.101)]
    + [(float(np.float32(n / 1000)), n / 1000) for n in (1, 290, 570, 900, 998)],
)
def test_coverage_is_a_fraction_or_whole_thousandths_and_echoed_as_a_fraction(
    version: Version, asked: float, used: float
) -> None:
    document = ask(version, rows(4), mc_coverage=asked)
    assert document["parameters"]["mc_coverage"] == used
    assert document == ask(version, rows(4), mc_coverage=used)


@pytest.mark.parametrize("value", [0, 1, 90, 99.0, 100, 1000, 0.0, 1.0, 0.9995, -0.1, 2.5, "0.9", True, None])
def test_what_is_no_coverage_is_refused(version: Version, value: object) -> None:
    with pytest.raises(RequestError, match=r"mc_coverage is .*expected a fraction above 0, at most 0.999"):
        ask(version, rows(1), mc_coverage=value)


def test_a_row_that_overflows_is_refused_and_its_batch_mate_is_calibrated(version: Version) -> None:
    codec, predictor = Codec(version.manifest, monte_carlo=True), Predictor(version)
    bad, good = np.full((1, 6), 3e38, np.float32) * [1, 1, -1, 1, -1, 1], rows(1)
    calls = [codec.decode(json.dumps({"instances": x.tolist()}).encode()) for x in (bad, good)]
    refused, answer = predictor.answer([call.query for call in calls])
    assert isinstance(refused, RequestError)
    assert not isinstance(answer, Exception)
    assert calls[1].encode(answer).body == calls[1].encode(predictor.answer([calls[1].query])[0]).body  # type: ignore[arg-type]
    assert answer.calibrated is not None


def test_the_client_and_the_command_read_them(version: Version) -> None:
    answer = read_answer(ask(version, rows(30), mc_coverage=600))
    assert answer.calibration["reason"] is None
    lines = [predict._guaranteed(prediction, answer) for prediction in answer]
    for prediction, told in zip(answer, lines, strict=True):
        assert prediction.calibrated is not None
        labels = ", ".join(prediction.calibrated["prediction_set"])
        assert told[0] == f"60% prediction set: [bold]{{{labels}}}[/]"
        assert len(told) - 1 == prediction.calibrated["out_of_distribution"]
        why = prediction.calibrated["out_of_distribution_reason"]
        assert told[1:] == ([f"[yellow]out of distribution[/]: {why}"] if why else [])
    assert len({told[0] for told in lines}) > 3
    plain = read_answer(ask(version, rows(1), mc_samples=20))
    assert plain[0].calibrated is None
    assert predict._guaranteed(plain[0], plain) == []
    (note,) = predict._notes(plain)
    assert note.startswith("not calibrated, so there is no set")
    assert note.endswith(plain.calibration["reason"])


@pytest.mark.parametrize("targets", [1, 2])
def test_a_regressor_gets_deviations_and_an_interval(
    publish_version: Publish, tmp_path: Any, mlp: Any, targets: int
) -> None:
    net = type(mlp).draw(6, 16, targets, seed=5)
    x = rows(300, 2)
    y = sampled(net, x).mean(0) + np.random.default_rng(0).normal(size=(300, targets))
    record = calibrate_regressor(sampled(net, x), y, settings=Settings(), sites=[net.site])
    version = publish_version(
        Store(tmp_path),
        "price",
        graphs(net),
        task="regression",
        outputs=(TensorSpec(name="output", shape=(targets,)),),
        sites=(net.site,),
        calibration=record.to_json(),
    )
    found = ask(version, rows(3), mc_coverage=800)["predictions"]
    assert record.intervals is not None
    samples = sampled(net, rows(3))
    noise = np.array([p.variance for p in record.precision])
    total = np.hypot(samples.std(0), np.sqrt(noise))
    low, high = record.intervals.intervals(samples.mean(0), total, 800)
    for row, prediction in enumerate(found):
        c = prediction["calibrated"]
        assert np.allclose(c["interval"], [np.squeeze(low[row]), np.squeeze(high[row])], rtol=1e-4)
        assert np.allclose(c["epistemic"], np.squeeze(samples.std(0)[row]), rtol=1e-4)
        assert np.allclose(np.square(c["aleatoric"]), np.squeeze(noise), rtol=1e-6)
    answer = read_answer(ask(version, rows(1), mc_coverage=800))
    assert predict._guaranteed(answer[0], answer)[0].startswith("80% prediction interval: [bold]")
    everything = ask(version, rows(1), mc_coverage=999)
    assert everything["predictions"][0]["calibrated"]["interval"] is None
    assert everything["calibration"]["notes"]
    unbounded = read_answer(everything)
    assert predict._guaranteed(unbounded[0], unbounded) == [
        "99.9% prediction interval: none, too few calibration rows"
    ]
    assert "calibration rows" in predict._notes(unbounded)[0]


def test_the_command_says_the_reason_of_a_flag_or_the_score_of_an_older_server() -> None:
    def told(**found: Any) -> str:
        row = {"calibrated": {"prediction_set": ["a", "b"], "out_of_distribution": True, **found}}
        rule = {"score": "energy", "threshold": 2.5}
        document = {"predictions": [row], "parameters": {"mc_coverage": 0.9}}
        answer = read_answer(document | {"calibration": {"reason": None, "out_of_distribution": rule}})
        first, line = predict._guaranteed(answer[0], answer)
        assert first == "90% prediction set: [bold]{a, b}[/]"
        return line

    assert told(out_of_distribution_score=3.0).endswith("calibrated on (energy 3, threshold 2.5)")
    why = "column '[b]age' is 500; training rows lie between 18 and 89"
    assert told(out_of_distribution_reason=why).endswith(": " + escape(why))
    assert told().endswith("unlike the rows that it was calibrated on")


def test_a_calibration_from_the_future_is_refused_on_loading(
    publish_version: Publish, tmp_path: Any, mlp: Any
) -> None:
    version = publish_version(
        Store(tmp_path), "mlp", graphs(mlp), sites=(mlp.site,), calibration={"format": 99}
    )
    with pytest.raises(CorruptStoreError, match="Upgrade dropserve"):
        Predictor(version)
