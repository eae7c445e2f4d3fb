"""The graph of the score ``nearest``: by hand in numpy, in both formats, from a recipe to the endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dropserve.errors import ExportError, ServerError
from dropserve.export.archive import Stage
from dropserve.export.artefacts import example_batch
from dropserve.export.nearest import Features, Nearest, write_nearest
from dropserve.export.onnx import OnnxProgram
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.export.torchscript import ScriptProgram
from dropserve.manifest import VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.signature import TensorSpec
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train
from dropserve.uncertainty.record import Calibration

STAGES = packaged_stages()


class Small(nn.Module):
    """Three convolutions and two linear layers, with a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second, self.third = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3, stride=2)
        self.hidden, self.last = nn.Linear(5 * 2 * 2, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.third(torch.relu(self.second(x))))
        x = nn.functional.dropout(torch.relu(self.hidden(x.flatten(1))), 0.5, self.training)
        return self.last(x)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(model: Small, x: torch.Tensor) -> list[np.ndarray]:
    """What the second and the third convolution are given: mean and deviation of each channel."""
    with torch.no_grad():
        one = torch.relu(model.first(x))
        two = torch.relu(model.second(one))
    maps = [level.double().numpy().reshape(len(x), level.shape[1], -1) for level in (one, two)]
    return [unit(np.concatenate([m.mean(2), m.std(2)], 1)) for m in maps]


def test_the_score_is_one_minus_the_mean_cosine_to_the_nearest_row() -> None:
    torch.manual_seed(0)
    model, x, bank = Small().eval(), torch.randn(9, 1, 8, 8), torch.randn(30, 1, 8, 8)
    features = Features(model)
    with torch.no_grad():
        (found,) = Nearest(features, features(bank))(x)
        (own,) = Nearest(features, features(bank))(bank)
    levels = zip(by_hand(model, x), by_hand(model, bank), strict=True)
    cosine = np.mean([rows @ others.T for rows, others in levels], axis=0)
    np.testing.assert_allclose(found.numpy(), 1 - cosine.max(1), atol=1e-5)
    np.testing.assert_allclose(own.numpy(), 0, atol=1e-5)


def test_without_convolutions_it_is_what_linear_layers_after_the_first_are_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    x = torch.randn(4, 5)
    with torch.no_grad():
        found = Features(model.eval())(x).numpy()
        hidden = model[1](model[0](x))
        second = model[4](model[3](hidden))
    expected = np.concatenate([unit(hidden.numpy()), unit(second.numpy())], 1) / np.sqrt(2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Transposed(nn.Module):
    """A hidden layer whose rows lie on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x)[None].repeat(5, 1, 1))[0]


@pytest.mark.parametrize(("model", "why"), [(nn.ReLU(), "neither"), (Transposed(), "axis 0")])
def test_a_model_whose_layers_cannot_be_compared_is_refused(model: nn.Module, why: str) -> None:
    with pytest.raises(ExportError, match=rf"this model's cannot be: .*{why}.*Choose another score"):
        Features(model.eval())(torch.randn(3, 4))


def test_both_formats_give_the_eager_scores_for_any_number_of_rows(tmp_path: Path) -> None:
    torch.manual_seed(1)
    spec = TensorSpec(name="input", shape=(1, 8, 8))
    subject = Subject("small", Small().eval(), (spec,))
    bank = {"input": torch.randn(40, 1, 8, 8).numpy()}
    paths = write_nearest(subject, bank, example_batch(subject), ExportSettings(), tmp_path)
    assert set(paths) == {"nearest.onnx", "nearest.ts"}
    features = Features(subject.module)
    eager = Nearest(features, features(torch.from_numpy(bank["input"])))
    for rows in (1, 5, 33):
        x = torch.randn(rows, 1, 8, 8)
        with torch.no_grad():
            expected = eager(x)[0].numpy()
        assert np.allclose(
            OnnxProgram(paths["nearest.onnx"])({"input": x.numpy()})["nearest"], expected, atol=1e-5
        )
        script = ScriptProgram(paths["nearest.ts"], ["input"], ["nearest"])
        assert np.allclose(script({"input": x})["nearest"].numpy(), expected, atol=1e-5)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Stored[VersionManifest]:
    folder = tmp_path_factory.mktemp("nearest")
    content: dict[str, Any] = {
        "name": "digits",
        "task": "classification",
        "model": {
            "class": f"{STAGES}/training/models.py:DigitsCNN",
            "arguments": {"channels": 8, "dropout2d": 0.1, "dropout": 0.3},
        },
        "data": {"source": "digits", "scaling": "global"},
        "split": {"calibration": 0.15},
        "training": {"epochs": 6, "batch_size": 64},
        "uncertainty": {"ood_score": "nearest", "false_alarms": 100, "sets": "aps"},
        "optimiser": {"learning_rate": 0.005},
    }
    path, store = folder / "recipe.toml", Store(folder / "model_store")
    run, _ = train(prepare(RecipeFile(path, check_recipe(content, path))), store)
    with np.load(run.path("reference.npz")) as kept:
        assert len(kept["input"]) == 987  # all rows of training
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    return export_run(store, run, ExportSettings(), stage)


def ask(version: Stored[VersionManifest], x: np.ndarray, backend: Any = "onnx") -> dict[str, Any]:
    codec = Codec(version.manifest, monte_carlo=True)
    call = codec.decode(json.dumps({"instances": x.tolist()}).encode())
    (answer,) = Predictor(version, backend=backend).answer([call.query])
    assert not isinstance(answer, Exception), answer
    return json.loads(call.encode(answer).body)


def flags(document: dict[str, Any]) -> list[bool]:
    return [each["calibrated"]["out_of_distribution"] for each in document["predictions"]]


def test_the_endpoint_flags_what_is_no_digit_and_few_that_are(version: Stored[VersionManifest]) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits().data.astype(np.float32)
    record = Calibration.from_json(version.manifest.calibration or {})
    assert record.ood is not None
    assert record.sets is not None
    assert (record.ood.score, record.ood.false_alarms, record.sets.method) == ("nearest", 100, "aps")
    usual = ask(version, digits)
    assert usual["calibration"]["out_of_distribution"]["score"] == "nearest"
    assert np.mean(flags(usual)) < 0.15  # two thirds of these rows are those of the bank
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 16, (200, 64)).astype(np.float32)
    shuffled = digits[:200][:, rng.permutation(64)]
    assert np.mean(flags(ask(version, noise))) > 0.95
    assert np.mean(flags(ask(version, shuffled))) > 0.8


def test_scores_do_not_depend_on_batch_mates_or_backend(version: Stored[VersionManifest]) -> None:
    x = np.random.default_rng(1).uniform(0, 16, (7, 64)).astype(np.float32)
    together = [each["calibrated"] for each in ask(version, x)["predictions"]]
    alone = [ask(version, x[row : row + 1])["predictions"][0]["calibrated"] for row in range(7)]
    assert together == alone
    script = [each["calibrated"] for each in ask(version, x, "torchscript")["predictions"]]
    scores = [[each["out_of_distribution_score"] for each in rows] for rows in (together, script)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_a_row_beyond_all_measure_is_strange_and_harms_nobody(version: Stored[VersionManifest]) -> None:
    x = np.random.default_rng(1).uniform(0, 16, (2, 64)).astype(np.float32)
    x[1] *= 1e20  # its squares are infinite in 32 bits, its logits are not
    found = ask(version, x)["predictions"]
    assert found[0]["calibrated"] == ask(version, x[:1])["predictions"][0]["calibrated"]
    assert found[1]["calibrated"]["out_of_distribution"] is True


def test_a_version_without_its_graph_is_not_served(version: Stored[VersionManifest]) -> None:
    files = {name: record for name, record in version.manifest.files.items() if name != "nearest.onnx"}
    lacking = Stored(version.folder, version.manifest.model_copy(update={"files": files}))
    with pytest.raises(ServerError, match="has no graph"):
        Predictor(lacking)
