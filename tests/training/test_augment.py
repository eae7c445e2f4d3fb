"""Augmentation, pixel by pixel against a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.errors import RecipeError
from dropserve.training.augment import augmented, check_augmentation
from dropserve.training.learner import Batches
from dropserve.training.recipe import AugmentationTable, Recipe


def moved(image: np.ndarray, flip: bool, down: int, right: int) -> np.ndarray:
    """numpy's own mirror and padding."""
    image = image[:, :, ::-1] if flip else image
    wide = np.pad(image, ((0, 0), (8, 8), (8, 8)), mode="edge")
    return wide[:, 8 + down : 8 + down + image.shape[1], 8 + right : 8 + right + image.shape[2]]


@given(
    flip=st.booleans(),
    shift=st.integers(0, 3),
    channels=st.integers(1, 3),
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_every_image_is_a_mirrored_and_moved_one(
    flip: bool, shift: int, channels: int, height: int, width: int, seed: int
) -> None:
    rows = torch.randn(5, channels, height, width, generator=torch.Generator().manual_seed(seed))
    found = augmented(rows, AugmentationTable(flip=flip, shift=shift), torch.Generator().manual_seed(seed))
    assert found.shape == rows.shape
    steps = range(-shift, shift + 1)
    for before, after in zip(rows.numpy(), found.numpy(), strict=True):
        # a mirrored image moved right is the image moved left, mirrored: all of them are tried
        tried = [moved(before, m, d, r) for m in {False, flip} for d in steps for r in steps]
        assert any(np.array_equal(after, each) for each in tried)


def test_all_that_is_allowed_comes_up_about_as_often() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 3] = 1  # off the middle, so that a mirror shows
    rows = image.repeat(9000, 1, 1, 1)
    found = augmented(rows, AugmentationTable(flip=True, shift=1), torch.Generator().manual_seed(0))
    places, counts = np.unique(found.flatten(1).argmax(1).numpy(), return_counts=True)
    # rows 3 to 5; columns 2 to 4, and mirrored 4 to 6: column 4 either way
    assert sorted(places.tolist()) == [9 * r + c for r in (3, 4, 5) for c in (2, 3, 4, 5, 6)]
    expected = np.array([1, 1, 2, 1, 1] * 3) / 18 * 9000
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_a_seed_gives_the_same_batches_and_epochs_differ() -> None:
    rows, target = torch.randn(20, 1, 6, 6), torch.arange(20)
    table = AugmentationTable(flip=True, shift=2)
    first, second = (Batches(rows, target, 8, 3, table) for _ in range(2))
    one, other = list(first), list(second)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, other, strict=True))
    state = first.order_state()
    again = list(first)
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(one, again, strict=True))
    second.set_order_state(state)  # what a checkpoint restores
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(again, list(second), strict=True))


def test_validation_rows_stay_as_they_are() -> None:
    rows = torch.randn(4, 1, 6, 6)
    ((found, _),) = Batches(rows, torch.arange(4), 8, None, AugmentationTable(flip=True, shift=2))
    assert torch.equal(found, rows)


@pytest.mark.parametrize(
    ("augmentation", "shape", "said"),
    [
        ({"flip": True}, (64,), r"rows are \[64\]; expected images"),
        ({"shift": 8}, (1, 8, 9), "below the size of images, 8 x 9"),
    ],
)
def test_rows_that_are_no_images_are_refused(
    recipe: dict[str, Any], augmentation: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    checked = Recipe.model_validate(recipe | {"augmentation": augmentation})
    with pytest.raises(RecipeError, match=said):
        check_augmentation(checked, shape)
    check_augmentation(Recipe.model_validate(recipe), shape)


def test_a_recipe_that_augments_a_table_is_told_before_training(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    from dropserve.training.recipe_file import RecipeFile, check_recipe
    from dropserve.training.run import prepare

    path = tmp_path / "recipe.toml"
    checked = check_recipe(recipe | {"augmentation": {"flip": True}}, path)
    with pytest.raises(RecipeError, match="augmentation: rows are"):
        prepare(RecipeFile(path, checked))
