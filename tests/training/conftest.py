"""Recipes and models small enough to train in a blink."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from dropserve.project import packaged_stages

MODELS = packaged_stages() / "training/models.py"

RECIPE: dict[str, Any] = {
    "name": "small",
    "task": "classification",
    "model": {
        "class": f"{MODELS}:MLP",
        "arguments": {"inputs": 4, "outputs": 3, "hidden": [16], "dropout": 0.3},
    },
    "data": {"source": "iris"},
    # Most tests hold it against a loop on the CPU, whatever else the machine has.
    "training": {"epochs": 8, "batch_size": 16, "patience": 0, "device": "cpu"},
    "optimiser": {"learning_rate": 0.01},
}


@pytest.fixture(scope="session")
def plain_recipe() -> dict[str, Any]:
    """The content of a good recipe, not to be changed."""
    return RECIPE


@pytest.fixture
def recipe() -> dict[str, Any]:
    """The content of a good recipe, to be changed at will."""
    return copy.deepcopy(RECIPE)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """Where a recipe would stand."""
    return tmp_path / "recipe.toml"
