"""docs/recipes.md names every key of a recipe, with its default and what it allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from dropserve.training import recipe as schema
from dropserve.training.recipe import Recipe
from dropserve.training.recipe_columns import ColumnTable

TEXT = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
SECTIONS: dict[str, str] = dict(re.findall(r"^#+ (.+?)\n(.*?)(?=^#|\Z)", PROSE, re.MULTILINE | re.DOTALL))
TABLES: dict[str, type[BaseModel]] = {
    "Recipes": Recipe,
    "[model]": schema.ModelTable,
    "[split]": schema.SplitTable,
    "[data.columns.NAME]": ColumnTable,
    "[training]": schema.TrainingTable,
    "[augmentation]": schema.AugmentationTable,
    "[uncertainty]": schema.UncertaintyTable,
    "[optimiser]": schema.OptimiserTable,
    "[tuned]": schema.TunedTable,
    **{
        ", ".join(get_args(each.model_fields["source"].annotation)): each
        for each in get_args(get_args(schema.DataTable)[0])
    },
}


def rows(section: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r"^\| `(\w+)` \| (.*?) ?\| (.*) \|$", section, re.MULTILINE)
    return {key: (default, allowed) for key, default, allowed in found}


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_stands_there_with_its_default_and_what_it_allows(heading: str) -> None:
    expected = {}
    for name, info in TABLES[heading].model_fields.items():
        if name == "source" or (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            continue
        if TABLES[heading] is Recipe and name == "data":
            continue
        default = "needed" if info.is_required() else "" if info.default is None else f"`{info.default!r}`"
        expected[info.alias or name] = (default.replace("'", '"'), info.description)
    assert rows(SECTIONS[heading]) == expected


def test_no_section_describes_what_there_is_not() -> None:
    assert set(SECTIONS) == {*TABLES, "[data]"}


EXAMPLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_recipes(recipe: dict[str, object], example: str) -> None:
    Recipe.model_validate(recipe | tomllib.loads(example))


@pytest.mark.parametrize(("given", "kept"), [(0.05, 50), (0.001, 1), (0.29, 290), (0.999, 999), (50, 50)])
def test_false_alarms_are_a_fraction_or_thousandths(
    recipe: dict[str, object], given: float, kept: int
) -> None:
    found = Recipe.model_validate(recipe | {"uncertainty": {"false_alarms": given}})
    assert found.uncertainty.false_alarms == kept


@pytest.mark.parametrize("given", [0.0, 1.0, 0.0005, 0.0123, 1000, "0.05", True])
def test_what_is_no_share_of_false_alarms_is_refused(recipe: dict[str, object], given: object) -> None:
    with pytest.raises(ValidationError, match="false_alarms"):
        Recipe.model_validate(recipe | {"uncertainty": {"false_alarms": given}})
