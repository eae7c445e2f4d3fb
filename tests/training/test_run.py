"""A published run: everything that the contract promises, and nothing when something fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from dropserve.errors import ModelSourceError, TrainingError
from dropserve.manifest import RunManifest
from dropserve.model import build_served
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import Prepared, prepare, train
from dropserve.uncertainty.metrics import ece

FILES = {
    "weights.safetensors", "recipe.json", "source/models.py", "validation.npz", "learning_curve.csv",
    "learning_curve.png", "example.json", "test.npz", "reference.npz",
}  # fmt: skip


def prepared(content: dict[str, Any], folder: Path) -> Prepared:
    return prepare(RecipeFile(folder / "recipe.toml", check_recipe(content, folder / "recipe.toml")))


@pytest.fixture(scope="module")
def published(
    plain_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Prepared, Stored[RunManifest]]:
    folder = tmp_path_factory.mktemp("published")
    ready = prepared(plain_recipe, folder)
    train(ready, Store(folder / "store"))
    return ready, Store(folder / "store").run("small")


def test_a_run_holds_what_the_contract_says(published: tuple[Prepared, Stored[RunManifest]]) -> None:
    ready, run = published
    manifest = run.manifest
    assert set(manifest.files) == FILES
    assert manifest.labels == ("setosa", "versicolor", "virginica")
    assert [str(spec) for spec in (*manifest.signature.inputs, *manifest.signature.outputs)] == [
        "input: float32[4]",
        "output: float32[3]",
    ]
    assert manifest.recipe == json.loads(run.path("recipe.json").read_text()) == ready.file.recipe.resolved()
    assert manifest.data["split_sha256"] == ready.dataset.split.sha256
    assert manifest.data["columns"][0] == "sepal length (cm)"
    assert manifest.built_with["hardware"] == "cpu"
    assert run.path("source/models.py").read_bytes() == ready.source.file.read_bytes()


def test_validation_rows_are_raw_and_were_not_trained_on(
    published: tuple[Prepared, Stored[RunManifest]],
) -> None:
    ready, run = published
    table, split = ready.dataset.table, ready.dataset.split
    with np.load(run.path("validation.npz")) as held_out:
        np.testing.assert_array_equal(held_out["input"], table.features[split.validation])
        np.testing.assert_array_equal(held_out["target"], table.target[split.validation])
        example = json.loads(run.path("example.json").read_text())
        np.testing.assert_array_equal(np.array(example["instances"], np.float32), held_out["input"][:1])


def test_test_rows_are_kept_with_what_the_model_answered(
    published: tuple[Prepared, Stored[RunManifest]],
) -> None:
    ready, run = published
    table, rows = ready.dataset.table, ready.dataset.split.test
    with np.load(run.path("test.npz")) as tested:
        order = np.lexsort(tested["input"].T), np.lexsort(table.features[rows].T)
        np.testing.assert_array_equal(tested["input"][order[0]], table.features[rows][order[1]])
        right = (tested["output"].argmax(axis=1) == tested["target"]).mean()
    assert right == pytest.approx(run.manifest.metrics["test_accuracy"])


def test_rows_set_aside_to_calibrate_are_kept_apart(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe | {"split": {"calibration": 0.2}}, tmp_path)
    run, _ = train(ready, Store(tmp_path / "store"))
    table, split = ready.dataset.table, ready.dataset.split
    with np.load(run.path("calibration.npz")) as found:
        np.testing.assert_array_equal(found["input"], table.features[split.calibration])
        np.testing.assert_array_equal(found["target"], table.target[split.calibration])
    assert run.manifest.data["rows"] == {"train": 76, "validation": 22, "test": 22, "calibration": 30}
    assert set(run.manifest.files) == FILES | {"calibration.npz"}


def test_metrics_are_those_of_the_model_that_is_exported(
    published: tuple[Prepared, Stored[RunManifest]],
) -> None:
    ready, run = published
    table, metrics = ready.dataset.table, run.manifest.metrics
    model = build_served(run)
    for part in ("validation", "test"):
        rows = getattr(ready.dataset.split, part)
        with torch.no_grad():
            logits = model(torch.from_numpy(table.features[rows])).double()
        probabilities = torch.softmax(logits, 1).numpy()
        expected = accuracy_score(table.target[rows], probabilities.argmax(1))
        assert metrics[f"{part}_accuracy"] == pytest.approx(expected)
        assert metrics[f"{part}_loss"] == pytest.approx(log_loss(table.target[rows], probabilities), rel=1e-6)
        squares = brier_score_loss(table.target[rows], probabilities, scale_by_half=False)
        assert metrics[f"{part}_brier"] == pytest.approx(squares)
        error = multiclass_calibration_error(
            torch.from_numpy(probabilities), torch.from_numpy(table.target[rows]), 3, n_bins=15
        )
        assert metrics[f"{part}_ece"] == pytest.approx(float(error), abs=1e-6)
        other = ece(probabilities, table.target[rows], equal="mass")
        assert metrics[f"{part}_ece_mass"] == pytest.approx(other, abs=1e-9)


def test_regression_metrics_are_in_the_targets_unit(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"task": "regression", "data": {"source": "diabetes"}}
    recipe["model"]["arguments"] |= {"inputs": 10, "outputs": 1}
    ready = prepared(recipe, tmp_path)
    run, fitted = train(ready, Store(tmp_path))
    rows, table = ready.dataset.split.test, ready.dataset.table
    with torch.no_grad():
        predicted = build_served(run)(torch.from_numpy(table.features[rows]))[:, 0].numpy()
    for name, metric in (
        ("rmse", root_mean_squared_error),
        ("mae", mean_absolute_error),
        ("r2", r2_score),
    ):
        assert run.manifest.metrics[f"test_{name}"] == pytest.approx(
            metric(table.target[rows], predicted), rel=1e-5
        )
    assert run.manifest.metrics["validation_rmse"] == pytest.approx(fitted.best.score, rel=1e-5)
    assert 30 < run.manifest.metrics["test_rmse"] < 200, "patients differ by about 77 units"


def test_the_learning_curve_has_a_line_for_each_epoch(
    published: tuple[Prepared, Stored[RunManifest]],
) -> None:
    _, run = published
    with run.path("learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    assert int(best["epoch"]) == run.manifest.metrics["best_epoch"]
    assert float(best["validation_accuracy"]) == pytest.approx(
        run.manifest.metrics["validation_accuracy"], rel=1e-5
    )
    image = run.path("learning_curve.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 10_000


def test_an_edit_during_training_does_not_reach_the_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    source = "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self): super().__init__(4, 3)\n"
    (tmp_path / "net.py").write_text(source)
    recipe["model"] = {"class": "net.py:Net"}
    ready = prepared(recipe, tmp_path)
    (tmp_path / "net.py").write_text(source + "# edited\n")
    run, _ = train(ready, Store(tmp_path / "store"))
    assert run.path("source/net.py").read_text() == source


def test_tied_weights_are_stored_under_both_names(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)\n        self.b.weight = self.a.weight\n"
        "        self.out = nn.Linear(4, 3)\n    def forward(self, x): return self.out(self.b(self.a(x)))\n"
    )
    recipe["model"] = {"class": "net.py:Net"}
    run, fitted = train(prepared(recipe, tmp_path), Store(tmp_path / "store"))
    again = build_served(run).model
    assert torch.equal(again.a.weight, again.b.weight)
    assert torch.equal(again.a.weight, fitted.model.a.weight)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_training_that_fails(
    recipe: dict[str, Any], tmp_path: Path, error: BaseException
) -> None:
    class Fails:
        def on_progress(self, epochs: float) -> None: ...

        def on_epoch(self, row: object) -> None:
            raise error if row else AssertionError

    store = Store(tmp_path / "store")
    with pytest.raises(type(error)):
        train(prepared(recipe, tmp_path), store, Fails())
    assert store.names() == []
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == [".lock"]


def net(tmp_path: Path, forward: str) -> dict[str, Any]:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        self.a = {'nn.Linear(4, 5)' if 'self.a' in forward else '0'}\n"
        f"    def forward(self, x): return {forward}\n"
    )
    return {"class": "net.py:Net"}


@pytest.mark.parametrize(
    ("forward", "error", "expected"),
    [
        ("self.a(x)", TrainingError, r"answers 3 rows with a tensor of \[3, 5\]; expected \[3, 3\].*setosa"),
        (
            "self.a(x[:, :2])",
            ModelSourceError,
            r"Net cannot take 3 rows of iris, \[4\] float32.*mat1 and mat2",
        ),
        ("x[:, :3]", TrainingError, "Net has no parameter that learns"),
        ("(self.a(x), x)", TrainingError, r"Net returns a tuple; expected one tensor of logits, \[rows, 3\]"),
        (
            "self.a(x)[:, :3].bfloat16()",
            TrainingError,
            r"Net answers in bfloat16; expected float32.*x\.float\(\)",
        ),
        ("self.a(x)[:, :3] > 0", TrainingError, "Net answers in bool; expected float32"),
        ("self.a(x)[:, :3] / 0", TrainingError, "answers NaN or infinity before any training"),
    ],
)
def test_a_model_that_does_not_fit_its_data_says_what_would(
    recipe: dict[str, Any], tmp_path: Path, forward: str, error: type[Exception], expected: str
) -> None:
    recipe["model"] = net(tmp_path, forward)
    with pytest.raises(error, match=expected):
        prepared(recipe, tmp_path)


def test_a_model_that_is_torchscript_in_part_is_not_trained(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"] = net(tmp_path, "self.a(x)[:, :3]")
    source = (tmp_path / "net.py").read_text()
    (tmp_path / "net.py").write_text(source.replace("nn.Linear(4, 5)", "torch.jit.script(nn.Linear(4, 5))"))
    with pytest.raises(ModelSourceError, match=r"Net: a is TorchScript"):
        prepared(recipe, tmp_path)


def test_a_regressor_of_several_values_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {
        "model": net(tmp_path, "self.a(x[:, :4])"),
        "task": "regression",
        "data": {"source": "diabetes"},
    }
    with pytest.raises(TrainingError, match=r"\[3, 5\]; expected \[3, 1\]: for each row one value"):
        prepared(recipe, tmp_path)


def test_preparing_leaves_the_model_in_training_mode(recipe: dict[str, Any], tmp_path: Path) -> None:
    model = prepared(recipe, tmp_path).model
    assert all(module.training for module in model.modules())
    assert isinstance(model, nn.Module)
