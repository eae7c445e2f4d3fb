"""What a recipe may not ask of many trainings at once is refused by name, not left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dropserve.errors import UsageError
from dropserve.training.recipe_file import check_recipe
from dropserve.training.stack.recipe import check_stackable


@pytest.mark.parametrize(
    ("table", "settings", "named"),
    [
        ("augmentation", {"flip": True}, "augmentation: many trainings"),
        ("training", {"monitor": "score"}, "training.monitor = 'score': many trainings"),
        ("training", {"devices": 2}, r"training.devices = 2, .*in one process and in 32 bits"),
        (
            "training",
            {"device": "cuda"},
            r"training.device = 'cuda': many trainings .*on the CPU; leave it out",
        ),
        ("training", {"precision": "bf16-mixed"}, "training.precision = 'bf16-mixed'"),
    ],
)
def test_what_members_do_not_do_is_refused(
    recipe: dict[str, Any], toml: Path, table: str, settings: dict[str, Any], named: str
) -> None:
    check_stackable(check_recipe(recipe, toml))
    recipe[table] = {**recipe.get(table, {}), **settings}
    with pytest.raises(UsageError, match=named):
        check_stackable(check_recipe(recipe, toml))
