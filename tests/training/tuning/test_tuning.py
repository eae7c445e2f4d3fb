"""Tuning: what is searched is what the recipe can say, nothing is tried twice, and the result is a recipe."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t, ttest_rel
from typer.testing import CliRunner

from dropserve.cli import app
from dropserve.errors import UsageError
from dropserve.training.fit import fit
from dropserve.training.recipe_file import RecipeFile, check_recipe, load_recipe
from dropserve.training.run import Prepared, prepare
from dropserve.training.tuning import search
from dropserve.training.tuning.search import Trial, Tuned, journal_of, tune
from dropserve.training.tuning.space import find_space
from dropserve.training.tuning.write import write_recipe


def prepared(recipe: dict[str, Any], folder: Path) -> Prepared:
    file = folder / "recipe.toml"
    return prepare(RecipeFile(file, check_recipe(recipe, file)))


def test_the_arguments_that_set_rates_are_found(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["arguments"] |= {"hidden": [8, 8]}
    space = find_space(prepared(recipe, tmp_path), shared=False)
    found = {each.name: (each.own, each.sites) for each in space.arguments}
    # input_dropout is not in the recipe and 0 by default: the site is there once it has a rate
    assert found == {"dropout": (0.3, (1, 2)), "input_dropout": (0.0, (0,))}
    assert space.names == ("p_dropout", "p_input_dropout")
    assert space.site_rates({"p_dropout": 0.4, "p_input_dropout": 0.1}) == (0.1, 0.4, 0.4)


def test_one_rate_keeps_the_recipes_proportions(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["arguments"] |= {"dropout": 0.4, "input_dropout": 0.1}
    space = find_space(prepared(recipe, tmp_path), shared=True)
    assert space.rates({"p": 0.2}) == pytest.approx({"dropout": 0.2, "input_dropout": 0.05})
    assert space.site_rates({"p": 0.2}) == pytest.approx((0.05, 0.2))


def test_a_model_that_takes_no_rate_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "fixed.py").write_text(
        "from torch import nn\nclass Fixed(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))\n",
        encoding="utf-8",
    )
    recipe["model"] = {"class": "fixed.py:Fixed"}
    with pytest.raises(UsageError, match="no argument of its constructor sets a dropout rate"):
        find_space(prepared(recipe, tmp_path), shared=True)


def test_a_search_is_resumed_and_begins_with_the_recipe(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe, tmp_path)
    space = find_space(ready, shared=True)
    first = tune(ready, space, tmp_path / "tune", trials=4, at_once=3)
    assert [trial.number for trial in first.trials] == [0, 1, 2, 3]
    assert first.own is not None
    assert first.own.values == {"p": 0.3, "learning_rate": 0.01, "weight_decay": 0.01}
    assert first.trials[1].values["p"] == 0.0
    told: list[int] = []
    second = tune(ready, space, tmp_path / "tune", trials=6, at_once=4, told=told.append)
    assert second.trials[:4] == first.trials
    assert told == [4, 5, 6]
    own_best = min(second.trials[:5], key=lambda trial: trial.loss)
    last = second.trials[5].values
    assert last == own_best.values | {"p": 0.0} or own_best.values["p"] == 0
    assert second.best.loss <= first.own.loss
    values = {tuple(trial.values.values()) for trial in second.trials}
    assert len(values) == 6


def test_what_a_killed_search_was_trying_is_tried_again(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe, tmp_path)
    space = find_space(ready, shared=True)
    study = search._open(ready, space, tmp_path)
    asked = [study.ask() for _ in range(3)]  # and the process ends
    lost = [search._suggest(trial, space) for trial in asked[:2]]
    found = tune(ready, space, tmp_path, trials=2, at_once=2)
    assert [trial.values for trial in found.trials] == lost
    assert len(found.trials) == 2


def test_a_trial_without_dropout_has_the_loss_of_its_own_training(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    ready = prepared(recipe, tmp_path)
    found = tune(ready, find_space(ready, shared=True), tmp_path, trials=2)
    recipe["model"]["arguments"]["dropout"] = 0.0
    alone = prepared(recipe, tmp_path)
    fitted = fit(alone.build, alone.dataset, alone.file.recipe)
    assert found.trials[1].loss == pytest.approx(fitted.best.validation_loss, rel=1e-4)


def test_another_recipe_has_another_journal(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe, tmp_path)
    recipe["training"]["epochs"] += 1
    other = prepared(recipe, tmp_path)
    shared, each = find_space(ready, shared=True), find_space(ready, shared=False)
    paths = {journal_of(ready, shared, tmp_path), journal_of(ready, each, tmp_path)}
    assert len({*paths, journal_of(other, find_space(other, shared=True), tmp_path)}) == 3


TEXT = """# What this is for.
name = "small"
task = "classification"

[model]
class = "net/models.py:Net"   # ours
arguments = { p = 0.5 }

[data]
source = "csv"
file = "rows.csv"
target = "y"
"""


def test_the_found_recipe_keeps_comments_and_finds_its_files(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/models.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, p: float = 0.1):\n"
        "        super().__init__(nn.Linear(1, 8), nn.ReLU(), nn.Dropout(p), nn.Linear(8, 2))\n",
        encoding="utf-8",
    )
    rows = "".join(f"{number / 7:.3f},{'ab'[number % 2]}\n" for number in range(60))
    (tmp_path / "rows.csv").write_text("x,y\n" + rows, encoding="utf-8")
    path = tmp_path / "small.toml"
    path.write_text(TEXT, encoding="utf-8")
    file = load_recipe(path)
    space = find_space(prepare(file), shared=True)
    trial = Trial(0, {"p": 0.123456, "learning_rate": 0.002, "weight_decay": 0.03}, 0.5)
    written = write_recipe(file, Tuned((trial,), space), tmp_path / "elsewhere/found.toml")
    assert written.recipe.model.arguments == {"p": 0.1235}
    assert written.recipe.optimiser.learning_rate == 0.002
    assert written.recipe.optimiser.weight_decay == 0.03
    text = (tmp_path / "elsewhere/found.toml").read_text("utf-8")
    assert "# What this is for." in text
    assert "# ours" in text
    assert tomllib.loads(text)["data"]["file"] == "../rows.csv"
    prepare(written)  # its files are found
    beside = write_recipe(file, Tuned((trial,), space), tmp_path / "beside.toml")
    assert beside.recipe.model.spec == "net/models.py:Net"


def test_the_command_writes_a_recipe_that_trains(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(tomlkit.dumps(recipe), encoding="utf-8")
    command = ["tune", "small.toml", "--trials", "3", "--epochs", "2", "--per-argument"]
    outcome = CliRunner().invoke(app, command, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    found = load_recipe(tmp_path / "small-tuned.toml").recipe
    assert set(found.model.arguments) == {"inputs", "outputs", "hidden", "dropout", "input_dropout"}
    assert found.training.epochs == 8  # --epochs is of the search, not of the recipe
    assert (tmp_path / ".run/tune/small.png").read_bytes().startswith(b"\x89PNG")
    assert "the recipe" in outcome.output
    assert "without dropout" in outcome.output
    assert found.tuned.trials == 3
    assert found.tuned.rates == {k: v for k, v in found.model.arguments.items() if "dropout" in k}
    assert len(list((tmp_path / ".run/tune").glob("*.journal"))) == 1
    prepare(load_recipe(tmp_path / "small-tuned.toml"))


def test_intervals_are_those_of_scipys_paired_test(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe, tmp_path)
    found = tune(ready, find_space(ready, shared=True), tmp_path, trials=4)
    others = [trial for trial in found.trials if trial is not found.best]
    for trial in others:
        assert len(trial.rows) == len(ready.dataset.split.validation)
        assert trial.loss == pytest.approx(np.mean(trial.rows))
        expected = ttest_rel(trial.rows, found.best.rows).confidence_interval(0.95)
        behind = found.behind(trial)
        assert behind is not None
        assert (behind[0] - behind[1], behind[0] + behind[1]) == pytest.approx((expected.low, expected.high))
    assert found.behind(found.best) is None


@given(st.data())
def test_the_verdict_on_dropout_is_borne_out(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 30))
    losses = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 3.0]), min_size=rows, max_size=rows)
    rates = data.draw(st.lists(st.sampled_from([0.0, 0.2, 0.5]), min_size=1, max_size=5))
    trials = []
    for number, rate in enumerate(rates):
        own = tuple(data.draw(losses))
        trials.append(Trial(number, {"p": rate}, float(np.mean(own)), own))
    tuned = Tuned(tuple(trials), SimpleNamespace(names=("p",)))  # type: ignore[arg-type]
    said = tuned.verdict
    without = [trial for trial in trials if not trial.values["p"]]
    least = min(trial.loss for trial in trials)
    if "was not measured" in said:
        assert not without
    elif "is the best" in said:
        assert min(trial.loss for trial in without) == least
    else:
        none = min(without, key=lambda trial: trial.loss)
        gaps = np.subtract(none.rows, tuned.best.rows)
        half = t.ppf(0.975, rows - 1) * gaps.std(ddof=1) / np.sqrt(rows) if rows > 1 else np.inf
        assert ("within noise" in said) == (gaps.mean() <= half * (1 + 1e-9))
        assert ("clearly helps" in said) == (gaps.mean() > half * (1 + 1e-9))


def test_train_says_what_tune_measured_and_nothing_against_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["arguments"]["dropout"] = 0.05
    assert any(each.rule == "rate" for each in prepared(recipe, tmp_path).advice)
    recipe["tuned"] = {"trials": 40, "rows": 90, "rates": {"dropout": 0.05}, "gain": 0.1, "half": 0.02}
    assert not any(each.rule == "rate" for each in prepared(recipe, tmp_path).advice)
    recipe["tuned"]["half"] = 0.2
    (said,) = [each for each in prepared(recipe, tmp_path).advice if each.rule == "rate"]
    assert "p = 0 lies within noise" in said.why
    recipe["model"]["arguments"]["dropout"] = 0.06  # by hand: not what was measured
    assert any("rule of thumb" in each.change for each in prepared(recipe, tmp_path).advice)


def test_one_trial_is_refused(recipe: dict[str, Any], tmp_path: Path) -> None:
    ready = prepared(recipe, tmp_path)
    with pytest.raises(UsageError, match="at least 2 trials"):
        tune(ready, find_space(ready, shared=True), tmp_path, trials=1)
