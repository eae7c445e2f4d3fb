"""Calibration of an export, against an eager loop over the same masks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import draw
from dropserve.export import calibrate as module
from dropserve.export.archive import Stage
from dropserve.export.artefacts import Artefacts
from dropserve.export.calibrate import ask_test_rows, calibrate
from dropserve.export.calibrate import held_out as calibration_rows
from dropserve.export.pipeline import Report, export_run
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import RunManifest, SourceRecord
from dropserve.model import load_class
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.signature import Signature, TensorSpec
from dropserve.store import Store, Stored
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor
from dropserve.uncertainty.metrics import nll
from dropserve.uncertainty.quantiles import coverage_theory
from dropserve.uncertainty.record import Calibration

Built = tuple[Subject, Artefacts]
Run = Callable[..., Stored[RunManifest]]


@pytest.fixture
def run(tmp_path: Path, built_mlp: Built) -> Run:
    def make(
        task: str = "classification",
        calibration: dict[str, Any] | None = None,
        tested: dict[str, Any] | None = None,
        **held: Any,
    ) -> Stored[RunManifest]:
        store = Store(tmp_path / "model_store")
        with store.staging("mlp", RunManifest) as staging:
            if held:
                np.savez(staging.folder / "validation.npz", **held)
            if calibration:
                np.savez(staging.folder / "calibration.npz", **calibration)
            if tested:
                np.savez(staging.folder / "test.npz", **tested)
            return store.publish(
                staging,
                RunManifest(
                    name="mlp",
                    id=staging.id,
                    task=task,  # type: ignore[arg-type]  # one of the three
                    signature=built_mlp[1].signature,
                    source=SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py"),
                ),
            )

    return make


def held_out(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 8)).astype(np.float32), rng.integers(0, 3, rows)


def eager_samples(artefacts: Artefacts, x: np.ndarray) -> np.ndarray:
    """[50, B, 3] from the eager masked program, one sample after the other."""
    program = artefacts.program
    assert program is not None
    masks = draw(artefacts.sites, 50, seed=0)
    samples = []
    for t in range(50):
        one = [torch.from_numpy(masks[name][t : t + 1].repeat(len(x), 0)) for name in program.mask_names]
        with torch.no_grad():
            samples.append(program(torch.from_numpy(x), *one)[0].numpy())
    return np.stack(samples).astype(np.float64)


def test_a_classifier_is_calibrated_on_its_held_out_rows(run: Run, built_mlp: Built) -> None:
    x, y = held_out()
    content, line = calibrate(run(input=x, target=y), built_mlp[1])
    assert content is not None
    found = Calibration.from_json(content)
    sites = built_mlp[1].sites
    expected = calibrate_classifier(
        eager_samples(built_mlp[1], x), y, {"input": x}, settings=Settings(), sites=sites
    )
    assert found.temperature is not None
    assert expected.temperature is not None
    assert found.temperature.value == pytest.approx(expected.temperature.value, rel=1e-3)
    assert found.sets is not None
    assert expected.sets is not None
    assert np.allclose(found.sets.quantiles.values, expected.sets.quantiles.values, rtol=1e-4)
    assert found.assumes.difference(Settings(seed=3), sites) is None
    assert (found.rows, found.sets.method) == (300, "lac")
    assert f"calibrated on 300 held-out rows: temperature {found.temperature.value:.3f}" in line


def test_test_rows_are_asked_for_samples_and_calibrate_nothing(run: Run, built_mlp: Built) -> None:
    x, y = held_out(30)
    answers = {"output": np.zeros((30, 3)), "target": y}
    asked = ask_test_rows(run(tested={"input": x[:20], **answers}), built_mlp[1])
    assert asked is not None
    assert asked.samples is not None
    held = calibration_rows(run(input=x[:20], target=y[:20]), built_mlp[1])
    assert not isinstance(held, str)
    np.testing.assert_array_equal(asked.samples, held.samples)
    np.testing.assert_array_equal(asked.target, y[:20])
    assert ask_test_rows(run(tested=answers), built_mlp[1]) is None  # a run of before kept no inputs
    assert calibrate(run(tested={"input": x, **answers}), built_mlp[1])[0] is None


def test_rows_set_aside_calibrate_and_those_that_chose_the_epoch_do_not(run: Run, built_mlp: Built) -> None:
    x, y = held_out()
    with_both = run(input=np.zeros((9, 8)), target=np.zeros(9, int), calibration={"input": x, "target": y})
    content, line = calibrate(with_both, built_mlp[1])
    assert content == calibrate(run(input=x, target=y), built_mlp[1])[0]
    assert line.startswith("calibrated on 300 held-out rows set aside for it: ")


def test_a_regressor_is_calibrated_target_by_target(run: Run, built_mlp: Built) -> None:
    x, _ = held_out()
    samples = eager_samples(built_mlp[1], x)
    y = samples.mean(0) + np.random.default_rng(1).normal(size=(300, 3)) * [0.1, 1, 10]
    content, line = calibrate(run("regression", input=x, target=y), built_mlp[1])
    found = Calibration.from_json(content or {})
    expected = calibrate_regressor(samples, y, settings=Settings(), sites=built_mlp[1].sites)
    assert [p.tau for p in found.precision] == pytest.approx([p.tau for p in expected.precision], rel=1e-3)
    assert "standard deviation of the noise" in line


def test_at_most_so_many_rows_are_sampled(
    run: Run, built_mlp: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 40)
    x, y = held_out()
    content, _ = calibrate(run(input=x, target=y), built_mlp[1])
    assert Calibration.from_json(content or {}).rows == 40


@pytest.mark.parametrize(
    ("task", "held", "reason"),
    [
        ("classification", {}, "no held-out rows"),
        ("raw", {"input": np.zeros((4, 8)), "target": np.zeros(4)}, "classifiers and regressors"),
        ("classification", {"input": np.zeros((4, 8))}, "lacks target"),
        ("classification", {"x": np.zeros((4, 8)), "target": np.zeros(4, int)}, "lacks input"),
        ("classification", {"input": np.zeros((4, 8)), "target": np.full(4, 7)}, "expected 0 to 2"),
        ("classification", {"input": np.full((4, 8), np.nan), "target": np.zeros(4, int)}, "finite"),
        ("regression", {"input": np.zeros((4, 8)), "target": np.zeros(4)}, "expected"),
    ],
)
def test_what_cannot_be_calibrated_is_said_and_stops_nothing(
    run: Run, built_mlp: Built, task: str, held: dict[str, Any], reason: str
) -> None:
    content, line = calibrate(run(task, **held), built_mlp[1])
    assert content is None
    assert line.startswith("not calibrated: ")
    assert reason in line


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x):
        return self.last(nn.functional.dropout(torch.relu(self.first(x)), 0.5, self.training))
"""


def test_an_exported_version_answers_with_the_coverage_it_was_asked_for(tmp_path: Path) -> None:
    """From a run's held-out rows to the endpoint's sets, by way of manifest and archive."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1400, 6)).astype(np.float32)
    store, file = Store(tmp_path / "model_store"), tmp_path / "net.py"
    file.write_text(NET)
    loaded = load_class(f"{file}:Net")
    torch.manual_seed(0)
    net = loaded.build({})
    with torch.no_grad():
        chances = torch.softmax(4 * net.eval()(torch.from_numpy(x)), 1).numpy().astype(float)
    y = (rng.random(1400)[:, None] > chances.cumsum(1)[:, :-1]).sum(1)
    with store.staging("net", RunManifest) as staging:
        (staging.folder / "source").mkdir()
        (staging.folder / "source/net.py").write_text(NET)
        save_file(net.state_dict(), staging.folder / "weights.safetensors")
        np.savez(staging.folder / "validation.npz", input=x[:400], target=y[:400])
        run = store.publish(
            staging,
            RunManifest(
                name="net",
                id=staging.id,
                task="classification",
                labels=("a", "b", "c"),
                signature=Signature(inputs=(TensorSpec(name="input", shape=(6,)),), outputs=()),
                source=SourceRecord(spec=loaded.spec, sha256=loaded.sha256, copy_file="source/net.py"),
            ),
        )
    stages = packaged_stages() / "serving"
    stage = Stage(stages / "handler.py", stages / "model-config.yaml")
    report = Report()
    version = export_run(store, run, ExportSettings(formats=("onnx",)), stage, report)
    assert any(note.startswith("calibrated on 400 held-out rows") for note in report.notes)
    with zipfile.ZipFile(version.path("net-mc.mar")) as archive:
        carried = json.loads(archive.read("manifest.json"))["calibration"]
    assert carried == version.manifest.calibration == store.version("net").manifest.calibration
    codec = Codec(version.manifest, monte_carlo=True)
    body = json.dumps({"instances": x[400:].tolist(), "parameters": {"mc_coverage": 800}}).encode()
    call = codec.decode(body)
    (answer,) = Predictor(version).answer([call.query])
    assert not isinstance(answer, Exception)
    predictions = json.loads(call.encode(answer).body)["predictions"]
    sets = [prediction["calibrated"]["prediction_set"] for prediction in predictions]
    hit = np.mean(["abc"[label] in found for label, found in zip(y[400:], sets, strict=True)])
    mean, deviation = coverage_theory(400, 800, 1000)
    assert abs(hit - mean) < 4 * deviation
    p = np.array([list(prediction["calibrated"]["probabilities"].values()) for prediction in predictions])
    before = np.array([list(prediction["probabilities"].values()) for prediction in predictions])
    assert nll(p, y[400:]) < nll(before, y[400:])
