"""Every recipe that dropserve ships loads, reads its data, and fits its model."""

import json
from pathlib import Path

import numpy as np
import pytest

from dropserve.columns import request_row
from dropserve.project import packaged_stages
from dropserve.training.data import INPUT
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare
from dropserve.training.run_folder import plain

RECIPES = sorted((packaged_stages() / "training/recipes").glob("*.toml"))


def test_the_promised_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"tutorial", "digits", "digits-cnn", "diabetes", "csv", "cafes"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_ready_to_train(path: Path) -> None:
    prepared = prepare(load_recipe(path))
    classes = len(prepared.dataset.table.labels)
    assert prepared.signature.outputs[0].shape == (max(1, classes),)
    assert path.stem in {prepared.file.recipe.name, "csv"}


@pytest.mark.parametrize(
    ("example", "recipe"),
    [
        ("digit", "digits"),
        ("digit", "digits-cnn"),
        ("tutorial", "tutorial"),
        ("diabetes", "diabetes"),
        ("flower", "csv"),
        ("cafe", "cafes"),
    ],
)
def test_an_example_is_a_row_that_its_model_was_not_trained_on(example: str, recipe: str) -> None:
    dataset = prepare(load_recipe(next(path for path in RECIPES if path.stem == recipe))).dataset
    body = json.loads((packaged_stages() / "examples" / f"{example}.json").read_text())
    test = dataset.table.features[dataset.split.test]
    columns = dataset.preprocessing.columns.get(INPUT, ())
    if any(column.categories for column in columns):
        expected = request_row(plain(test[0]), columns)
        assert body["instances"] == [expected]
        return
    assert (np.array(body["instances"], np.float32) == test[0]).all()
