"""The benchmark on tables with splits: no test row chooses, results survive a kill, figures are means."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.special import logsumexp
from scipy.stats import norm

from dropserve.cli import app
from dropserve.errors import DataError, UsageError
from dropserve.training.uci import report
from dropserve.training.uci.bench import run, train_split
from dropserve.training.uci.choose import Space, choose, inner_folds, settings_for
from dropserve.training.uci.density import Noise, Samples, beta_likelihood, fit_noise
from dropserve.training.uci.judge import judge
from dropserve.training.uci.published import ENSEMBLES, GRID, read_published
from dropserve.training.uci.records import Records, SplitResult
from dropserve.training.uci.splits import read_table, read_tables

QUICK = Space(rates=(0.0, 0.05), learning_rates=(0.01,), weight_decays=(1e-3,), steps=60, samples=10)


def arrays(rows: int = 60, splits: int = 2, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, 3))
    y = 5 + 2 * x[:, 0] + 0.1 * random.standard_normal(rows)
    orders = [random.permutation(rows) for _ in range(splits)]
    cut = rows * 9 // 10
    return {
        "X": x,
        "y": y,
        "train_index": np.concatenate([order[:cut] for order in orders]).astype(np.int32),
        "train_offsets": np.arange(splits + 1, dtype=np.int32) * cut,
        "test_index": np.concatenate([order[cut:] for order in orders]).astype(np.int32),
        "test_offsets": np.arange(splits + 1, dtype=np.int32) * (rows - cut),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "data"
    where.mkdir()
    np.savez(where / "small.npz", **arrays())
    return where


def test_parts_are_the_rows_that_the_split_names(folder: Path) -> None:
    table, content = read_table(folder / "small.npz"), arrays()
    assert (table.name, table.splits, table.rows) == ("small", 2, 60)
    second = content["train_index"][54:]
    assert np.array_equal(table.training(1).features, content["X"][second])
    assert np.array_equal(table.training(1).target, content["y"][second])
    assert len(table.test(0)) == 6
    assert not set(map(tuple, table.test(1).features)) & set(map(tuple, table.training(1).features))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(59)}, r"expected \[n, d\] and \[n\]"),
        ({"X": np.full((60, 3), np.nan)}, "NaN or infinity"),
        ({"test_index": arrays()["train_index"][:12]}, "names a row twice"),
        ({"train_index": arrays()["train_index"] + 60}, "names rows from"),
        ({"test_offsets": np.array([0, 6])}, "the length of test_index"),
        ({"train_index": arrays()["train_index"].astype(float)}, "expected whole numbers"),
        ({"y": np.ones(60)}, "more than one value"),
        ({"X": None}, "no array X"),
    ],
)
def test_what_is_no_table_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    content = {name: value for name, value in (arrays() | change).items() if value is not None}
    np.savez(folder / "small.npz", **content)
    with pytest.raises(DataError, match=message):
        read_tables(folder)


def test_a_folder_without_tables_and_an_unknown_name_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.npz file"):
        read_tables(tmp_path)
    with pytest.raises(DataError, match="no table large; there are: small"):
        read_tables(folder, ["large"])
    (folder / "broken.npz").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_tables(folder)


def test_test_rows_change_nothing_that_is_chosen_or_trained(folder: Path) -> None:
    """With other test rows, of any values, the choice and the weights are the same to the bit."""
    before = read_table(folder / "small.npz")
    content = arrays()
    content["X"][content["test_index"][:6]] = 1e6
    content["y"][content["test_index"][:6]] = -1e6
    np.savez(folder / "small.npz", **content)
    after = read_table(folder / "small.npz")
    first, second = (train_split(table.training(0), QUICK, 7) for table in (before, after))
    assert first.choice == second.choice
    assert torch.equal(first.predictor.stack.parameters, second.predictor.stack.parameters)
    assert judge(first.predictor, before.test(0)) != judge(first.predictor, after.test(0))


def test_the_search_finds_the_candidate_that_can_learn(folder: Path) -> None:
    part = read_table(folder / "small.npz").training(0)
    space = Space(
        rates=(0.02,),
        learning_rates=(1e-7, 0.01),
        weight_decays=(0.01,),
        steps=400,
        kept_share=1.0,
        samples=10,
    )
    told: list[float] = []
    choice = choose(part, space, seed=0, told=told.append)
    assert choice.candidate.learning_rate == 0.01
    assert choice.rmse < 0.5 < part.target.std()
    assert len(choice.tried) == 2
    assert choice.tried[0][1] > choice.tried[1][1]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_inner_folds_cover_the_part_once_and_large_tables_hold_out_the_last_fifth() -> None:
    folds = inner_folds(103, Space())
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(103))
    for train, held in folds:
        assert not set(train) & set(held)
        assert len(train) + len(held) == 103
    ((train, held),) = inner_folds(5000, Space())
    assert np.array_equal(held, np.arange(4000, 5000))
    assert np.array_equal(train, np.arange(4000))


def test_steps_stay_about_the_same_whatever_the_rows() -> None:
    for rows in (200, 1000, 10_000, 100_000):
        settings = settings_for(rows, 10_000)
        steps = settings.epochs * math.ceil(rows / settings.batch_size)
        assert abs(steps - 10_000) <= math.ceil(rows / settings.batch_size)
        assert 32 <= settings.batch_size <= 256


def test_the_mixture_is_a_logsumexp_over_samples() -> None:
    random = np.random.default_rng(0)
    samples = Samples(random.standard_normal((7, 5)), random.random((7, 5)) + 0.1)
    target = random.standard_normal(5)
    deviation = np.sqrt(2.0 * samples.variances + 0.3)
    expected = logsumexp(norm.logpdf(target, samples.means, deviation), axis=0) - math.log(7)
    assert Noise(2.0, 0.3).log_likelihood(samples, target) == pytest.approx(expected)


def test_the_noise_is_found_that_the_data_have() -> None:
    random = np.random.default_rng(1)
    claimed = random.random(4000) + 0.05
    zero = np.zeros((1, 4000))
    wide = random.standard_normal(4000) * np.sqrt(2 * claimed)
    noise, likelihood = fit_noise(Samples(zero, claimed[None]), wide)
    true = norm.logpdf(wide, 0, np.sqrt(2 * claimed)).mean()
    assert true <= likelihood < true + 0.005  # the best of many, one of which is the truth
    assert noise.factor * claimed + noise.floor == pytest.approx(2 * claimed, rel=0.25, abs=0.15)
    flat = random.standard_normal(4000) * 3
    noise, _ = fit_noise(Samples(zero, claimed[None]), flat)
    assert noise.floor == pytest.approx(9, rel=0.25)
    assert noise.factor * claimed.mean() < 1


def test_the_loss_has_the_gradients_of_its_paper() -> None:
    output = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(1, 6, dtype=torch.float64)
    (slope,) = torch.autograd.grad(beta_likelihood(output, target).sum(), output)
    noise = torch.nn.functional.softplus(output[..., 1]) + 1e-6
    # d/dmean of the likelihood is (mean - y)/variance; weighted by variance ** 0.5
    assert torch.allclose(slope[..., 0], (output[..., 0] - target) / noise.sqrt())
    through = (noise - (output[..., 0] - target) ** 2) / (2 * noise**2) * noise.sqrt()
    assert torch.allclose(slope[..., 1], through * torch.sigmoid(output[..., 1]))


def test_a_run_is_resumed_and_a_subset_is_labelled(folder: Path, tmp_path: Path) -> None:
    tables, results = read_tables(folder), tmp_path / "results"
    first = run(tables, results, space=QUICK, splits=1, workers=1)
    path = Records(results, tables[0], QUICK).path(0)
    stamp = path.stat().st_mtime_ns
    seen: list[int] = []
    both = run(tables, results, space=QUICK, workers=1, told=lambda _, result: seen.append(result.split))
    assert path.stat().st_mtime_ns == stamp
    assert seen == [0, 1]
    assert both["small"][0] == first["small"][0]
    assert report.rows(tables, first, {})[0].label == "small (SUBSET: 1 of 2 splits)"
    (row,) = report.rows(tables, both, {})
    assert row.label == "small"
    values = [each.rmse for each in both["small"]]
    assert row.rmse.mean == pytest.approx(np.mean(values))
    assert row.rmse.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))
    assert row.rmse.mean < 0.8
    other = Records(results, tables[0], Space(**{**vars(QUICK), "steps": 61}))
    assert other.read(0) is None
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="remove it"):
        run(tables, results, space=QUICK, workers=1)


def result(split: int, rmse: float, likelihood: float) -> SplitResult:
    return SplitResult(split, rmse, likelihood, rmse, likelihood, {}, 60.0, 30.0)


def test_published_columns_stand_beside_ours(folder: Path) -> None:
    def published(rmse: float, likelihood: float) -> dict[str, Any]:
        return {"mean": rmse, "spread": 0.1} | {"stderr": likelihood}

    content = {
        "result_files": {
            "results": {
                "small": {"mc_rmse": {"mean": 1.0, "stderr": 0.1}, "ll": {"mean": -1.5, "stderr": 0.1}}
            }
        },
        "readme_2016": {
            "results": {"small": {"2_layers_rmse": published(2, 0), "2_layers_ll": published(-2, 0)}}
        },
        "gal_ghahramani_2016_table1": {
            "results": {"small": {"Dropout": {"rmse": published(3, 0), "ll": published(-3, 0)}}}
        },
        "deep_ensembles_2017_table1": {
            "results": {"small": {"rmse": published(4, 0), "nll": published(0.5, 0)}}
        },
    }
    (folder / "published.json").write_text(json.dumps(content), encoding="utf-8")
    columns = read_published(folder)
    tables = read_tables(folder)
    done = {"small": [result(0, 0.8, -1.0), result(1, 0.9, -0.8)]}
    rows = report.rows(tables, done, columns)
    assert rows[0].better(GRID) == (True, True)
    assert rows[0].better(ENSEMBLES) == (True, False)  # -0.9 against minus an nll of 0.5
    console = Console(record=True, width=200)
    console.print(report.grid(rows))
    text = console.export_text()
    assert "0.850 ± 0.050" in text
    assert "-0.500 ± 0.100" in text
    said = report.verdicts(rows)
    assert said[0] == "Better than 2018 grid search on both figures on 1 of 1 tables."
    assert said[1] == "Better than Deep Ensembles 2017 in log-likelihood on 0 of 1 tables; not on small."
    assert json.loads(json.dumps(report.record(rows, done)))["tables"]["small"]["subset"] is False
    (folder / "published.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="published"):
        read_published(folder)


def test_numbers_of_splits_and_workers_are_checked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        run(read_tables(folder), tmp_path, splits=0)


KILLED = """
import sys, dropserve.training.uci.bench as bench
from pathlib import Path
from dropserve.training.uci.choose import Space
from dropserve.training.uci.splits import read_tables
if __name__ == "__main__":
    space = Space(rates=(0.05,), learning_rates=(0.01,), weight_decays=(0.001,), steps=300, samples=10)
    tables = read_tables(Path(sys.argv[1]))
    bench.run(tables, Path(sys.argv[2]), space=space, workers=1, told=lambda t, r: print(r.split, flush=True))
"""


@pytest.mark.slow
def test_a_kill_costs_no_finished_split_and_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    np.savez(folder / "small.npz", **arrays(splits=8))
    script, results = tmp_path / "go.py", tmp_path / "results"
    script.write_text(KILLED, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), str(results)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout
        done = {int(first.stdout.readline()) for _ in range(2)}
        group = os.getpgid(first.pid)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlived the process that was killed")
    files = {path.name: path.stat().st_mtime_ns for path in results.rglob("split-*.json")}
    assert len(files) >= len(done)
    subprocess.run(command, check=True, capture_output=True)
    after = {path.name: path.stat().st_mtime_ns for path in results.rglob("split-*.json")}
    assert len(after) == 8
    assert files.items() <= after.items()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    outcome = CliRunner().invoke(app, ["bench", "uci", "--data", str(tmp_path / "none")])
    assert isinstance(outcome.exception, UsageError)
    assert "no such folder" in str(outcome.exception)
