"""Tables, values with their noise, and images, from a recipe to an answer in both lower precisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dropserve.export.archive import EXAMPLE, Stage
from dropserve.export.pipeline import Report, export_run, load_subject
from dropserve.export.precision import Held
from dropserve.export.settings import ExportSettings
from dropserve.manifest import Precision, RunManifest, VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import RecipeFile, check_recipe, load_recipe
from dropserve.training.run import prepare, train

pytestmark = pytest.mark.slow

STAGES = packaged_stages()
QUICK: dict[str, Any] = {"formats": ("onnx",), "batch_sizes": (1, 3), "torch_export": "never"}
CONVOLUTIONS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(0.1), nn.Flatten(), nn.Linear(8 * 36, 24), nn.ReLU(),
            nn.Dropout(0.3), nn.Linear(24, 10),
        )
"""


def table(_folder: Path) -> RecipeFile:
    """Categories, some of them rare, and gaps."""
    return load_recipe(STAGES / "training/recipes/cafes.toml", {"training.epochs": 20})


def noisy(folder: Path) -> RecipeFile:
    """A regressor that gives a value and a log variance."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.5, 1.5, (1200, 2)).astype(np.float32)
    noise = 10 + 40 * (x[:, 0] > 0)
    y = 1000 + 100 * np.sin(2 * x[:, 0]) + 60 * x[:, 1] + noise * rng.normal(size=1200)
    np.savez(folder / "rows.npz", x=x, y=y)
    arguments = {"inputs": 2, "outputs": 2, "hidden": [32, 32], "dropout": 0.05}
    return recipe(folder, {
        "task": "regression",
        "model": {"class": f"{STAGES}/training/models.py:MLP", "arguments": arguments},
        "data": {"source": "npz", "file": "rows.npz"},
        "training": {"epochs": 15, "batch_size": 64, "noise": "heteroscedastic"},
        "optimiser": {"learning_rate": 0.005},
    })  # fmt: skip


def images(folder: Path) -> RecipeFile:
    """Files, a folder for each class."""
    digits: Any = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:600], digits.target, strict=False)):
        (folder / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / "files" / str(label) / f"{number}.png")
    (folder / "net.py").write_text(CONVOLUTIONS)
    return recipe(folder, {
        "task": "classification",
        "model": {"class": "net.py:Net"},
        "data": {"source": "images", "folder": "files", "size": [8, 8], "colour": "grey"},
        "training": {"epochs": 10, "batch_size": 32},
        "optimiser": {"learning_rate": 0.005},
    })  # fmt: skip


def recipe(folder: Path, content: dict[str, Any]) -> RecipeFile:
    path = folder / "recipe.toml"
    return RecipeFile(path, check_recipe({"name": "net", **content}, path))


@dataclass
class Trained:
    kind: str
    store: Store
    run: Stored[RunManifest]

    @cached_property
    def full(self) -> Stored[VersionManifest]:
        """In float32."""
        return self.export("fp32")

    def export(self, precision: Precision, report: Report | None = None) -> Stored[VersionManifest]:
        stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
        return export_run(self.store, self.run, ExportSettings(precision=precision, **QUICK), stage, report)


@pytest.fixture(scope="module", params=[table, noisy, images])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("kind")
    store = Store(folder / "model_store")
    run, _ = train(prepare(request.param(folder)), store)
    return Trained(request.param.__name__, store, run)


def answer(version: Stored[VersionManifest], *, monte_carlo: bool) -> dict[str, Any]:
    """What an endpoint says of the version's own example."""
    call = Codec(version.manifest, monte_carlo=monte_carlo).decode(version.path(EXAMPLE).read_bytes())
    (found,) = Predictor(version).answer([call.query])
    assert not isinstance(found, Exception), found
    (prediction,) = json.loads(call.encode(found).body)["predictions"]
    return prediction


def values(prediction: dict[str, Any]) -> np.ndarray:
    return np.array(prediction.get("value", list(prediction.get("probabilities", {}).values())))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_is_judged_published_and_answers_nearly_as_in_fp32(trained: Trained, precision: Precision) -> None:
    report = Report()
    version = trained.export(precision, report)
    judged = {check.name: check for check in version.manifest.checks if check.name.startswith("precision-")}
    assert {check.verdict for check in judged.values()} == {"passed"}
    figures = report.parity["precision-accuracy"]
    held = Held.of(load_subject(trained.run), target_of(trained.run))
    assert held.judging.target is not None
    module = load_subject(trained.run).module
    with torch.no_grad():
        eager = module(torch.from_numpy(held.judging.inputs["input"])).numpy()
    if trained.kind == "images":
        expected = float((eager.argmax(-1) == held.judging.target).mean())
    else:  # of a value with its noise, the value alone
        expected = float(np.sqrt(np.mean((eager[:, 0] - held.judging.target.reshape(-1)) ** 2.0)))
    assert figures["dropout_off_fp32"] == pytest.approx(expected, rel=1e-4)
    scale = 1.0 if trained.kind == "images" else float(np.ptp(eager[:, 0]))
    bound = {"fp16": 5e-3, "int8": 0.1}[precision] * scale
    for monte_carlo in (False, True):
        full, lower = (answer(each, monte_carlo=monte_carlo) for each in (trained.full, version))
        assert np.abs(values(full) - values(lower)).max() < bound
        assert full.keys() == lower.keys()
    assert version.manifest.calibration is not None
    assert version.manifest.calibration != trained.full.manifest.calibration


def target_of(run: Stored[RunManifest]) -> np.ndarray:
    with np.load(run.path("validation.npz")) as arrays:
        return arrays["target"]
