"""Recipes: every mistake at once, each by its key, with the value and what is allowed."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from dropserve.errors import RecipeError, UsageError
from dropserve.training import recipe as schema
from dropserve.training.recipe import Recipe
from dropserve.training.recipe_file import check_recipe, load_recipe

WHERE = Path("recipe.toml")


def problems(content: dict[str, Any], where: Path = WHERE, **overrides: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_recipe(content, where, overrides)
    return caught.value.problems


def test_a_good_recipe_is_good(recipe: dict[str, Any]) -> None:
    checked = check_recipe(recipe, WHERE)
    assert checked.training.epochs == 8
    assert checked.split.seed == 0


def test_what_is_resolved_is_a_recipe_that_resolves_to_itself(recipe: dict[str, Any]) -> None:
    checked = check_recipe(recipe, WHERE)
    assert Recipe.model_validate(checked.resolved()) == checked


def test_every_mistake_is_reported_at_once(recipe: dict[str, Any]) -> None:
    recipe["name"] = "Bad-Name"
    recipe["task"] = "clasification"
    recipe["data"] = {"source": "csv", "file": 3, "targt": "x"}
    recipe["training"] |= {"epochs": 0, "epoch": 5, "device": "gpu"}
    recipe["optimiser"] = {"learning_rate": -1.0}
    recipe["model"]["arguments"] = {"input": 4, "outputs": "3"}
    found = "\n".join(problems(recipe))
    for expected in (
        "name: model name 'Bad-Name'",
        "task: got 'clasification' (did you mean 'classification'?); allowed: classification or regression",
        "data.file: got 3; allowed: path of a CSV file",
        "data.target: missing",
        "data.targt: unknown key, value 'x' (did you mean 'target'?)",
        "training.epochs: got 0; allowed: a whole number, 1 or more",
        "training.epoch: unknown key, value 5 (did you mean 'epochs'?)",
        "training.device: got 'gpu'",
        "optimiser.learning_rate: got -1.0; allowed: a number above 0",
        "model.arguments.input: unknown argument, value 4 (did you mean 'inputs'?); MLP takes: inputs, ",
        "model.arguments.outputs: got '3'; allowed: a whole number",
        "model.arguments.inputs: missing; the constructor of MLP needs it (a whole number)",
    ):
        assert expected in found
    assert len(found.splitlines()) == 12


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"data": {"source": "digit"}},
            "data.source: got 'digit' (did you mean 'digits'?); allowed: digits, ",
        ),
        ({"data": {}}, "data.source: missing; allowed: digits, iris"),
        ({"data": 3}, "data: got 3; allowed: a table [data]"),
        ({"task": "regression"}, "task: got 'regression'; data.source = 'iris' is for 'classification'"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split: validation + test is 1; allowed: below 1"),
        ({"model": {"class": "Net"}}, "model.class: got 'Net'; allowed: file.py:Class"),
        ({"model": {"class": "no.py:Net"}}, "there is no file"),
        ({"model": {"class": "math:Net"}}, "math defines no nn.Module called Net"),
        (
            {"data": {"source": "csv", "file": "no.csv", "target": "y"}},
            "data.file: got 'no.csv'; there is no file",
        ),
        (
            {"data": {"source": "make_classification", "informative": 2, "classes": 5}},
            "data.classes: got 5; allowed: at most 2**data.informative (4)",
        ),
        ({"training": {"seed": -1}}, "training.seed: got -1; allowed: a whole number from 0 to 4294967295"),
        (
            {"training": {"monitor": "nothing"}},
            'training.patience: got 15; with monitor = "nothing" nothing stops early: 0',
        ),
        ({"training": {"epochs": True}}, "training.epochs: got true; allowed: a whole number"),
        ({"training": {"epochs": 2.0}}, "training.epochs: got 2.0; allowed: a whole number"),
        (
            {"model": {"class": "torch.nn:Flatten", "arguments": {"start_dim": [float("inf")]}}},
            "model.arguments.start_dim: got inf; allowed: a table of the constructor's arguments: finite",
        ),
        (
            {"data": {"source": "csv", "file": "x", "target": "y", "features": ["a", 3]}},
            "data.features.1: got 3; allowed: a list of column names",
        ),
        (
            {"optimiser": {"learning_rate": float("nan")}},
            "optimiser.learning_rate: got nan; allowed: a number above",
        ),
    ],
)
def test_each_mistake_says_what_is_allowed(
    recipe: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    recipe |= change
    assert any(expected in line for line in problems(recipe)), problems(recipe)


def test_options_of_the_command_line_are_checked_like_the_file(recipe: dict[str, Any]) -> None:
    assert check_recipe(recipe, WHERE, {"training.seed": 7}).training.seed == 7
    assert recipe["training"].get("seed") is None, "the file's content is left alone"
    assert problems(recipe, **{"training.epochs": -3}) == [
        "training.epochs: got -3; allowed: a whole number, 1 or more"
    ]


def test_what_replaces_a_value_reaches_tables_within_tables(recipe: dict[str, Any]) -> None:
    before = copy.deepcopy(recipe)
    changed = check_recipe(recipe, WHERE, {"model.arguments.dropout": 0.0, "model.arguments.hidden": [7]})
    assert changed.model.arguments == {**recipe["model"]["arguments"], "dropout": 0.0, "hidden": [7]}
    assert recipe == before, "the file's content is left alone"
    recipe["training"] = 3
    (problem,) = problems(recipe, **{"training.seed": 1})
    assert problem.startswith("training: got 3")


def test_the_seed_of_the_split_is_not_the_seed_of_training(recipe: dict[str, Any]) -> None:
    checked = check_recipe(recipe, WHERE, {"training.seed": 7})
    assert checked.split.seed == 0


def _places(content: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in content.items():
        here = (*path, key)
        found += _places(value, here) if isinstance(value, dict) and value else [here]
    return found


_FULL = {
    "name": "small",
    "task": "classification",
    "model": {"class": "torch.nn:Flatten", "arguments": {}},
    "data": {"source": "make_moons", "samples": 100, "noise": 0.1, "seed": 3, "scaling": "feature"},
    "split": {"validation": 0.2, "test": 0.2, "seed": 1},
    "training": {
        "epochs": 3,
        "batch_size": 8,
        "patience": 0,
        "label_smoothing": 0.1,
        "seed": 1,
        "device": "cpu",
    },
    "optimiser": {
        "name": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "momentum": 0.5,
        "schedule": "cosine",
    },
}
_JUNK = st.one_of(
    st.none(),
    st.text("XYZ!", min_size=20, max_size=30),
    st.integers(max_value=-1),
    st.lists(st.integers(), max_size=2),
    st.just(float("inf")),
)


@given(spoiled=st.lists(st.tuples(st.sampled_from(_places(_FULL)), _JUNK), min_size=1, max_size=5))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_each_spoiled_value_is_named_once_and_nothing_else_is(
    spoiled: list[tuple[tuple[str, ...], Any]],
) -> None:
    content: dict[str, Any] = copy.deepcopy(_FULL)
    for path, junk in spoiled:
        table = content
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = junk
    named = {line.split(":")[0] for line in problems(content)}
    wanted = {".".join(path) for path, _ in spoiled}
    if "data.source" in wanted:  # the other keys of [data] depend on it
        wanted = {key for key in wanted if key == "data.source" or not key.startswith("data.")}
    assert named == wanted


@given(
    key=st.text("abcdefghij_", min_size=1, max_size=12),
    table=st.sampled_from([None, "split", "training", "optimiser", "data", "model"]),
)
@settings(max_examples=60)
def test_each_unknown_key_is_named(key: str, table: str | None) -> None:
    content: dict[str, Any] = copy.deepcopy(_FULL)
    inner = content if table is None else content[table]
    if key in inner:
        return
    inner[key] = 1
    path = f"{table}.{key}" if table else key
    found = problems(content)
    assert len(found) == 1
    assert found[0].startswith(f"{path}: unknown key, value 1")


def test_every_key_says_what_it_allows() -> None:
    tables = [
        each for each in vars(schema).values() if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    silent = [
        f"{table.__name__}.{name}"
        for table in tables
        for name, info in table.model_fields.items()
        if not info.description and name != "source"
    ]
    assert silent == []


def test_a_recipe_that_is_no_toml_or_not_there(toml: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe.toml: No such file"):
        load_recipe(toml)
    toml.write_text("name = \n")
    with pytest.raises(RecipeError, match=r"not TOML: .*line 1"):
        load_recipe(toml)
    toml.write_bytes(b"name = '\xff'\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_recipe(toml)


def test_a_model_file_is_found_relative_to_the_recipe(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self, width: int, *, p: 'float' = 0.5, **more): super().__init__()\n"
    )
    recipe["model"] = {"class": "net.py:Net", "arguments": {"width": 1.5, "p": 1, "anything": 3}}
    assert problems(recipe, tmp_path / "recipe.toml") == [
        "model.arguments.width: got 1.5; allowed: a whole number"
    ]


def test_a_model_that_does_not_import_is_one_problem_among_others(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    (tmp_path / "net.py").write_text("import no_such_module\n")
    recipe["model"] = {"class": "net.py:Net"}
    recipe["training"]["epochs"] = 0
    found = problems(recipe, tmp_path / "recipe.toml")
    assert len(found) == 2
    assert "No module named 'no_such_module'" in found[1]
