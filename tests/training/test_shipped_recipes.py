"""Every recipe that dropserve ships loads, reads its data, and fits its model."""

from pathlib import Path

import pytest

from dropserve.project import packaged_stages
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare

RECIPES = sorted((packaged_stages() / "training/recipes").glob("*.toml"))


def test_the_promised_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"tutorial", "digits", "digits-cnn", "diabetes", "csv"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_ready_to_train(path: Path) -> None:
    prepared = prepare(load_recipe(path))
    classes = len(prepared.dataset.table.labels)
    assert prepared.signature.outputs[0].shape == (max(1, classes),)
    assert path.stem in {prepared.file.recipe.name, "csv"}
