"""The overfitting study: what it measures has closed forms, what it says follows from the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from typer.testing import CliRunner

from dropserve.cli import app
from dropserve.errors import UsageError
from dropserve.training.overfit.evidence import Bar, weigh
from dropserve.training.overfit.measure import Kind, averaged, co_adaptation, scores
from dropserve.training.overfit.show import markdown
from dropserve.training.overfit.study import Cell, Plan, run, subset
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import Prepared, prepare
from dropserve.training.stack import (
    Member,
    Rows,
    StackSettings,
    cross_entropy,
    squared_error,
    train_stack,
)


def prepared(recipe: dict[str, Any], folder: Path) -> Prepared:
    file = folder / "recipe.toml"
    return prepare(RecipeFile(file, check_recipe(recipe, file)))


def cell(rate: float, seed: int, test: float, **changes: Any) -> Cell:
    numbers: dict[str, Any] = {
        "rows": 100,
        "train_score": 1.0,
        "train_loss": 0.1,
        "last_validation_loss": 0.5 - rate,
        "last_test_score": test,
        "validation_score": test,
        "averaged_score": test,
        "co_adaptation": 0.2,
        "best_epoch": 1,
    }
    return Cell(rate=rate, seed=seed, test_score=test, **(numbers | changes))


def test_intervals_are_students() -> None:
    values = [0.91, 0.93, 0.96, 0.90]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    bar = Bar.of(values)
    assert (bar.mean - bar.half, bar.mean + bar.half) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("without", "with_", "classifies", "said"),
    [
        ([0.90, 0.91, 0.92], [0.93, 0.94, 0.95], True, "dropout helps: p = 0.5 raises test accuracy by 3 ± "),
        ([0.93, 0.94, 0.95], [0.90, 0.91, 0.92], True, "dropout hurts: p = 0.5 lowers test accuracy by 3 ± "),
        ([0.90, 0.94, 0.92], [0.93, 0.90, 0.94], True, "does not clearly help: test accuracy +0.33 ± "),
        ([3.0, 3.1, 3.2], [2.0, 2.11, 2.2], False, "dropout helps: p = 0.5 lowers test RMSE by 0.997 ± "),
        ([3.0, 3.1, 3.2], [3.5, 3.0, 3.2], False, "does not clearly help: test RMSE +0.13 ± "),
    ],
)
def test_the_sentence_says_what_the_numbers_do(
    without: list[float], with_: list[float], classifies: bool, said: str
) -> None:
    cells = [
        cell(rate, seed, test)
        for rate, all_ in ((0.0, without), (0.5, with_))
        for seed, test in enumerate(all_)
    ]
    evidence = weigh(cells, classifies=classifies)
    assert said in evidence.sentence
    assert "goes from 0.4 to -0.1" in evidence.sentence
    assert evidence.sentence in markdown(evidence, "a title")


def test_the_rate_is_chosen_on_validation_rows_not_on_test_rows() -> None:
    cells = [cell(0.0, seed, 0.9 + seed / 100) for seed in range(3)]
    cells += [cell(0.2, seed, 0.99, validation_score=0.5) for seed in range(3)]
    cells += [cell(0.4, seed, 0.80, validation_score=0.9) for seed in range(3)]
    assert weigh(cells, classifies=True).chosen(100).rate == 0.4


class Units(nn.Module):
    """Hidden units that are the columns of a matrix product."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x @ self.weight).sum(1, keepdim=True)


def test_co_adaptation_is_the_correlation_of_live_units() -> None:
    features = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    copies = torch.tensor([[1.0, 2.0, -1.0, 0.0], [0, 0, 0, 0], [0, 0, 0, 0]])  # the last unit is dead
    assert co_adaptation(Units(copies), features) == pytest.approx(1)
    assert co_adaptation(Units(torch.eye(3)), features) < 0.05
    mixed = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    units = (features[:2000] @ mixed).numpy()
    assert co_adaptation(Units(mixed), features) == pytest.approx(abs(np.corrcoef(units.T)[0, 1]), rel=1e-5)
    assert math.isnan(co_adaptation(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)), features))


def test_averaging_a_linear_net_over_balanced_masks_changes_nothing() -> None:
    def linear() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    rows = Rows(torch.randn(50, 3), torch.randn(50))
    members = [Member(rows, seed=1, rate=rate) for rate in (0.0, 0.5, 0.2)]
    stack = train_stack(linear, members, squared_error, StackSettings(epochs=2, batch_size=25))
    kind = Kind(False, squared_error, 3.0)
    plain = scores(stack, rows, kind)
    # Each unit is kept in exactly half (four fifths) of each block, so the mean is that of scaled weights.
    assert averaged(stack, rows, kind, seed=0) == pytest.approx([score for score, _ in plain], rel=1e-4)
    assert [score for score, _ in plain] == pytest.approx(
        [3 * math.sqrt(loss) for _, loss in plain], rel=1e-5
    )


def test_averaging_a_net_with_a_rectifier_changes_its_answers() -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    rows = Rows(torch.randn(50, 3), torch.randn(50))
    settings = StackSettings(epochs=2, batch_size=25)
    stack = train_stack(net, [Member(rows, rate=0.5)], squared_error, settings)
    kind = Kind(False, squared_error, 1.0)
    assert averaged(stack, rows, kind, seed=0)[0] != pytest.approx(scores(stack, rows, kind)[0][0], rel=1e-4)


def test_accuracy_and_loss_are_those_of_sklearn() -> None:
    from sklearn.metrics import accuracy_score, log_loss

    rows = Rows(torch.randn(300, 3), torch.randint(0, 4, (300,)))
    settings = StackSettings(epochs=1, batch_size=25)
    stack = train_stack(lambda: nn.Linear(3, 4), [Member(rows)], cross_entropy, settings)
    logits = stack.predict(rows.features)[0]
    ((accuracy, loss),) = scores(stack, rows, Kind(True, cross_entropy, 1.0))
    assert accuracy == pytest.approx(accuracy_score(rows.target, logits.argmax(1)))
    assert loss == pytest.approx(log_loss(rows.target, logits.double().softmax(1).numpy()), rel=1e-4)


def test_a_subset_is_scaled_by_its_own_rows_and_keeps_the_rest_apart(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    dataset = prepared(recipe, tmp_path).dataset
    few = subset(dataset, 30, 1, "feature")
    assert len(few.split.train) == 30
    assert set(few.split.train) <= set(dataset.split.train)
    assert np.array_equal(few.split.test, dataset.split.test)
    assert np.allclose(few.features[few.split.train].mean(axis=0), 0, atol=1e-5)
    assert np.bincount(few.target[few.split.train]).tolist() == [10, 10, 10]
    assert not np.array_equal(subset(dataset, 30, 2, "feature").split.train, few.split.train)
    assert subset(dataset, len(dataset.split.train), 1, "feature") is dataset


def test_a_study_is_resumed_and_dropout_narrows_the_gap_on_noise(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", x=random.standard_normal((90, 4)), y=random.integers(0, 3, 90))
    recipe["data"] = {"source": "npz", "file": "noise.npz"}
    recipe["model"]["arguments"] |= {"hidden": [64], "input_dropout": 0.15}
    recipe["training"]["epochs"] = 60
    ready = prepared(recipe, tmp_path)
    plan = Plan.of(ready.dataset, 30, 2, (0.5,))
    assert plan == Plan((30, 62), 2, (0.0, 0.5))
    told: list[float] = []
    cells = run(ready, plan, tmp_path / "done", told=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    assert len(cells) == 2 * 2 * 2
    evidence = weigh(cells, classifies=True)
    without, with_ = evidence.at(62)
    assert without.gap.mean > with_.gap.mean + 0.1
    assert without.train.mean > with_.train.mean
    assert without.averaging == Bar(0.0, 0.0)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").iterdir()}
    assert len(stamps) == 4
    next(iter(stamps)).unlink()
    assert run(ready, plan, tmp_path / "done") == cells  # seeds decide, so what is done again is the same
    kept = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns == stamp}
    assert len(kept) == 3


def test_numbers_out_of_range_are_all_said_at_once(recipe: dict[str, Any], tmp_path: Path) -> None:
    dataset = prepared(recipe, tmp_path).dataset
    with pytest.raises(UsageError, match=r"--small 5: .*; --seeds 1: .*; --rates \[1.0\]"):
        Plan.of(dataset, 5, 1, (1.0,))


def test_a_net_without_dropout_cannot_be_studied(recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["model"]["arguments"]["dropout"] = 0.0
    ready = prepared(recipe, tmp_path)
    with pytest.raises(UsageError, match="no dropout above 0"):
        run(ready, Plan((50,), 2), tmp_path)


def test_the_command_writes_table_picture_and_sentence(tmp_path: Path) -> None:
    command = [
        "overfit",
        "tutorial",
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--rates",
        "0.3",
        "--out",
        str(tmp_path),
    ]
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads((tmp_path / "overfit.json").read_text("utf-8"))
    assert record["sentence"] in " ".join(outcome.output.split())
    assert record["sentence"] in (tmp_path / "overfit.md").read_text("utf-8")
    assert (tmp_path / "overfit.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="--rates 'x'"):
        CliRunner().invoke(app, ["overfit", "tutorial", "--rates", "x"], catch_exceptions=False)
