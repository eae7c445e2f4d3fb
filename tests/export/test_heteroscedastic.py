"""A regressor that says how noisy each row is: from its recipe to the endpoint's answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dropserve.dropout.masks import draw
from dropserve.dropout.program import masked_program
from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.manifest import VersionManifest
from dropserve.model import build_served
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train
from dropserve.uncertainty.mixtures import mixture_log_likelihood
from dropserve.uncertainty.quantiles import coverage_theory
from dropserve.uncertainty.record import Calibration

STAGES = packaged_stages()


def noise_of(x: np.ndarray) -> np.ndarray:
    """The true deviation: 0.2 on the left, 2 on the right, in units of 50."""
    return 50 * (0.2 + 1.8 / (1 + np.exp(-4 * x[:, 0])))


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.5, 1.5, (count, 2)).astype(np.float32)
    mean = 1000 + 100 * np.sin(2 * x[:, 0]) + 60 * x[:, 1]
    return x, (mean + noise_of(x) * rng.normal(size=count)).astype(np.float32)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Stored[VersionManifest]]:
    folder = tmp_path_factory.mktemp("noisy")
    x, y = rows(3000, 0)
    np.savez(folder / "noisy.npz", x=x, y=y)
    content: dict[str, Any] = {
        "name": "noisy",
        "task": "regression",
        "model": {
            "class": f"{STAGES}/training/models.py:MLP",
            "arguments": {"inputs": 2, "outputs": 2, "hidden": [32, 32], "dropout": 0.05},
        },
        "data": {"source": "npz", "file": "noisy.npz"},
        "split": {"calibration": 0.2},
        "training": {"epochs": 30, "batch_size": 64, "noise": "heteroscedastic", "device": "cpu"},
        "optimiser": {"learning_rate": 0.005, "schedule": "cosine"},
    }
    path, store = folder / "recipe.toml", Store(folder / "model_store")
    run, _ = train(prepare(RecipeFile(path, check_recipe(content, path))), store)
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    return store, export_run(store, run, ExportSettings(formats=("onnx",)), stage)


def ask(version: Stored[VersionManifest], x: np.ndarray, *, mc: bool, **parameters: Any) -> dict[str, Any]:
    codec = Codec(version.manifest, monte_carlo=mc)
    document = {"instances": x.tolist()} | ({"parameters": parameters} if parameters else {})
    call = codec.decode(json.dumps(document).encode())
    (answer,) = Predictor(version).answer([call.query])
    assert not isinstance(answer, Exception), answer
    return json.loads(call.encode(answer).body)


def column(document: dict[str, Any], *keys: str) -> np.ndarray:
    found: Any = document["predictions"]
    for key in keys:
        found = [each[key] for each in found]
    return np.array(found)


def samples(store: Store, version: Stored[VersionManifest], x: np.ndarray) -> np.ndarray:
    """[50, B, 2] from the eager model under the endpoint's masks, one sample after the other."""
    served = build_served(store.run("noisy"))
    program = masked_program(served, version.manifest.signature.inputs)
    masks = draw(program.sites, 50, seed=0)
    with torch.no_grad():
        made = [
            program(torch.from_numpy(x), *(torch.from_numpy(masks[n][t : t + 1].repeat(len(x), 0)) for n in
                                           program.mask_names))[0].numpy() for t in range(50)
        ]  # fmt: skip
    return np.stack(made).astype(float)


def test_the_plain_endpoint_answers_with_value_and_noise(
    version: tuple[Store, Stored[VersionManifest]],
) -> None:
    store, published = version
    x, _ = rows(200, 1)
    document = ask(published, x, mc=False)
    with torch.no_grad():
        eager = build_served(store.run("noisy"))(torch.from_numpy(x)).double().numpy()
    np.testing.assert_allclose(column(document, "value"), eager[:, 0], rtol=1e-5)
    np.testing.assert_allclose(column(document, "standard_deviation"), np.exp(eager[:, 1] / 2), rtol=1e-5)
    # learned from 2,000 rows, in the unit of the target
    ratio = column(document, "standard_deviation") / noise_of(x)
    assert 0.8 < np.median(ratio) < 1.25
    assert np.corrcoef(np.log(column(document, "standard_deviation")), np.log(noise_of(x)))[0, 1] > 0.9


def test_the_monte_carlo_endpoint_keeps_noise_and_disagreement_apart(
    version: tuple[Store, Stored[VersionManifest]],
) -> None:
    store, published = version
    x, _ = rows(50, 2)
    expected = samples(store, published, x)
    document = ask(published, x, mc=True)
    np.testing.assert_allclose(column(document, "value"), expected[..., 0].mean(0), rtol=1e-5)
    epistemic, variance = expected[..., 0].std(0), np.exp(expected[..., 1]).mean(0)
    doubt = {
        key: column(document, "uncertainty", key) for key in ("standard_deviation", "aleatoric", "total")
    }
    np.testing.assert_allclose(doubt["standard_deviation"], epistemic, rtol=1e-3)
    np.testing.assert_allclose(doubt["aleatoric"], np.sqrt(variance), rtol=1e-4)
    np.testing.assert_allclose(doubt["total"], np.sqrt(epistemic**2 + variance), rtol=1e-4)
    record = Calibration.from_json(published.manifest.calibration or {})
    assert record.precision == ()
    assert record.rows == 600
    assert record.scaling is not None
    total = column(document, "calibrated", "standard_deviation")
    np.testing.assert_allclose(total, doubt["total"] * record.scaling.factors[0], rtol=1e-6)
    np.testing.assert_allclose(column(document, "calibrated", "aleatoric"), doubt["aleatoric"], rtol=1e-9)
    early = ask(published, x, mc=True, mc_samples=300, mc_tolerance=900)
    assert set(column(early, "uncertainty", "samples")) == {100}  # five blocks of 20
    as_many = ask(published, x, mc=True, mc_samples=100)
    for key in ("aleatoric", "total"):
        np.testing.assert_allclose(column(early, "uncertainty", key), column(as_many, "uncertainty", key))


def test_its_intervals_cover_and_its_likelihood_beats_one_noise_for_all(
    version: tuple[Store, Stored[VersionManifest]],
) -> None:
    store, published = version
    x, y = rows(3000, 3)
    document = ask(published, x, mc=True, mc_coverage=900)
    low, high = column(document, "calibrated", "interval").T
    mean, deviation = coverage_theory(600, 900, 3000)
    assert abs(((low <= y) & (y <= high)).mean() - mean) < 4 * deviation
    left, right = x[:, 0] < -0.8, x[:, 0] > 0.8
    assert (high - low)[right].mean() > 4 * (high - low)[left].mean()  # the noise differs by about 8
    found = samples(store, published, x)
    own = mixture_log_likelihood(found[..., 0], np.exp(found[..., 1]), y).mean()
    shared = max(mixture_log_likelihood(found[..., 0], v, y).mean() for v in np.geomspace(1e1, 1e5, 60))
    truth = mixture_log_likelihood((y * 0 + 1000 + 100 * np.sin(2 * x[:, 0]) + 60 * x[:, 1])[None],
                                   np.square(noise_of(x))[None], y).mean()  # fmt: skip
    assert shared + 0.2 < own < truth + 0.01


def test_v2_carries_the_noise_as_a_tensor(version: tuple[Store, Stored[VersionManifest]]) -> None:
    _, published = version
    x, _ = rows(3, 4)
    tensor = {"name": "input", "shape": [3, 2], "datatype": "FP32", "data": x.ravel().tolist()}
    call = Codec(published.manifest, monte_carlo=False).decode(json.dumps({"inputs": [tensor]}).encode())
    (answer,) = Predictor(published).answer([call.query])
    assert not isinstance(answer, Exception)
    outputs = {each["name"]: each for each in json.loads(call.encode(answer).body)["outputs"]}
    assert set(outputs) == {"value", "noise_standard_deviation"}
    plain = ask(published, x, mc=False)
    np.testing.assert_allclose(
        outputs["noise_standard_deviation"]["data"], column(plain, "standard_deviation"), rtol=1e-12
    )
    assert outputs["value"]["shape"] == [3, 1]


def test_the_report_is_written_from_values_and_noise(
    version: tuple[Store, Stored[VersionManifest]],
) -> None:
    _, published = version
    page = published.path("report.html").read_text()
    assert "likelihood loss (nats, standardised)" in page
    assert "Validation loss less training loss" in page
    assert "could not be judged" not in page
