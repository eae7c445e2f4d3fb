"""Interrupted and given again, the same command ends with the bits of a training that nobody disturbed."""

from __future__ import annotations

import csv
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from dropserve import cli
from dropserve.errors import PublishError, TrainingError
from dropserve.manifest import RunManifest
from dropserve.store import Store, Stored
from dropserve.training.checkpoint import Checkpoint
from dropserve.training.learner import Epoch
from dropserve.training.recipe_file import RecipeFile, check_recipe, load_recipe
from dropserve.training.run import Prepared, checkpoint_of, prepare, train

# Draws from all three generators, keeps running statistics, and is slow enough to be hit in mid-epoch.
NET = """
import os, random, signal, time
import numpy, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, wait=0.0):
        super().__init__()
        self.wait, self.batches = wait, 0
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3),
                                    nn.Linear(16, 3))

    def forward(self, x):
        if self.training:
            time.sleep(self.wait)
            self.batches += 1
            if self.batches == int(os.environ.get("END_AT_BATCH", -1)):
                os.kill(os.getpid(), signal.SIGTERM)
            x = x * (1 + 0.1 * random.random() + 0.1 * numpy.random.rand())
        return self.layers(x)
"""
RECIPE = """
name = "small"
task = "classification"
[model]
class = "net.py:Net"
arguments = { wait = 0.004 }
[data]
source = "iris"
[training]
epochs = 60
batch_size = 16
patience = 50
[optimiser]
learning_rate = 2e-3
schedule = "cosine"
"""


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def dropserve(*arguments: str) -> int:
    before, sys.argv = sys.argv, ["dropserve", *arguments]
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


def undisturbed(project: Path) -> Stored[RunManifest]:
    run, _ = train(prepare(load_recipe(project / "small.toml")), Store(project / "undisturbed"))
    return run


def curve(run: Stored[RunManifest]) -> list[dict[str, str]]:
    with run.path("learning_curve.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)
        ]


def agree(first: Stored[RunManifest], second: Stored[RunManifest]) -> None:
    assert curve(first) == curve(second)
    assert first.path("weights.safetensors").read_bytes() == second.path("weights.safetensors").read_bytes()
    assert first.manifest.metrics == second.manifest.metrics


def kill_in_the_middle(project: Path, epochs: int, late: float) -> None:
    """Start the command, let it finish some epochs more, and a part of the next."""
    checkpoints = project / ".run/training"
    command = [sys.executable, "-c", "from dropserve.cli import main; main()", "train", "small.toml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    seen: set[int] = {path.stat().st_mtime_ns for path in checkpoints.glob("*.ckpt")}
    epochs += len(seen)
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.DEVNULL) as process:
        while len(seen) < epochs:
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.002)
            seen |= {path.stat().st_mtime_ns for path in checkpoints.glob("*.ckpt")}
        time.sleep(late)
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow  # every epoch is broken off in the fast test below
def test_killed_at_three_random_moments_it_ends_with_the_same_bits(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random()
    moments = [(dice.randint(1, 8), 0.06 * dice.random()) for _ in range(3)]
    for epochs, late in moments:
        kill_in_the_middle(project, epochs, late)
        assert Store(project / "model_store").names() == [], moments
    assert dropserve("train", "small.toml") == 0
    out = capsys.readouterr().out
    after = int(out.partition("resuming after epoch ")[2].split()[0])
    assert sum(epochs for epochs, _ in moments) <= after < 60, moments
    agree(Store(project / "model_store").run("small"), undisturbed(project))
    assert list((project / ".run/training").iterdir()) == []
    assert [path.name for path in (project / "model_store").rglob(".staging*")] == []


def test_asked_to_end_it_leaves_nothing_half_written(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "small.toml").write_text(RECIPE.replace("0.004", "0.0").replace("epochs = 60", "epochs = 12"))
    monkeypatch.setenv("END_AT_BATCH", "32")  # the fourth of seven batches of the fifth epoch
    before = signal.getsignal(signal.SIGTERM)
    assert dropserve("train", "small.toml") == 143
    assert signal.getsignal(signal.SIGTERM) is before
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "interrupted: nothing was published; the model store is as it was",
        "the same command goes on after the last finished epoch; --fresh starts over",
    ]
    assert [path.name for path in (project / "model_store").rglob("*") if path.is_file()] == [".lock"]
    assert [path.suffix for path in (project / ".run/training").iterdir()] == [".ckpt"]
    monkeypatch.delenv("END_AT_BATCH")
    assert dropserve("train", "small.toml") == 0
    assert "resuming after epoch 4 of 12" in capsys.readouterr().out
    agree(Store(project / "model_store").run("small"), undisturbed(project))


def test_fresh_starts_over_and_another_seed_is_another_training(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "small.toml").write_text(RECIPE.replace("0.004", "0.0").replace("epochs = 60", "epochs = 6"))
    monkeypatch.setenv("END_AT_BATCH", "20")
    assert dropserve("train", "small.toml") == 143
    monkeypatch.delenv("END_AT_BATCH")
    capsys.readouterr()
    assert dropserve("train", "small.toml", "--seed", "1") == 0
    assert "resuming" not in capsys.readouterr().out
    assert len(list((project / ".run/training").iterdir())) == 1, "that of the other seed stays"
    assert dropserve("train", "small.toml", "--fresh") == 0
    assert "resuming" not in capsys.readouterr().out
    assert list((project / ".run/training").iterdir()) == []


class StopAt:
    """A watcher that breaks off training at the end of an epoch, before it counts as finished."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self.rows: list[Epoch] = []

    def on_progress(self, epochs: float) -> None: ...

    def on_epoch(self, row: Epoch) -> None:
        self.rows.append(row)
        if row.number == self._epoch:
            raise RuntimeError("broken off")


def rough(recipe: dict[str, Any], folder: Path) -> Prepared:
    """A training that stops early, some epochs after its best one."""
    (folder / "net.py").write_text(NET)
    recipe["model"] = {"class": "net.py:Net"}
    recipe["training"] = {"epochs": 40, "batch_size": 16, "patience": 3}
    recipe["optimiser"] = {"name": "sgd", "learning_rate": 0.3, "schedule": "cosine"}
    return prepare(RecipeFile(folder / "recipe.toml", check_recipe(recipe, folder / "recipe.toml")))


def test_broken_off_in_any_epoch_it_stops_as_early_and_keeps_the_same_weights(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    prepared = rough(recipe, tmp_path)
    expected, fitted = train(prepared, Store(tmp_path / "undisturbed"))
    last = len(fitted.curve)
    assert fitted.best.number < last < 40, "the case is chosen to stop early"
    for epoch in range(2, last + 1):
        checkpoint = checkpoint_of(prepared, tmp_path / "kept")
        with pytest.raises(RuntimeError, match="broken off"):
            train(prepared, Store(tmp_path / "store"), StopAt(epoch), checkpoint)
        progress = checkpoint.read()
        assert progress is not None
        assert len(progress.curve) == epoch - 1
        watcher = StopAt(0)
        run, again = train(prepared, Store(tmp_path / "store"), watcher, checkpoint)
        agree(run, expected)
        assert again.stopped_early
        assert [row.number for row in watcher.rows] == list(range(epoch, last + 1))
        assert checkpoint.read() is None


def test_interrupted_while_publishing_no_epoch_is_trained_again(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = rough(recipe, tmp_path)
    expected, _ = train(prepared, Store(tmp_path / "undisturbed"))
    checkpoint, store = checkpoint_of(prepared, tmp_path / "kept"), Store(tmp_path / "store")
    with monkeypatch.context() as broken:
        broken.setattr(Store, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(prepared, store, None, checkpoint)
    progress = checkpoint.read()
    assert progress is not None
    assert progress.finished
    watcher = StopAt(0)
    run, _ = train(prepared, store, watcher, checkpoint)
    assert watcher.rows == []
    agree(run, expected)


def test_a_full_disk_is_told_and_the_former_checkpoint_stays(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = rough(recipe, tmp_path)
    checkpoint, store = checkpoint_of(prepared, tmp_path / "kept"), Store(tmp_path / "store")
    write, written = Path.write_bytes, list[Path]()

    def third_time_full(path: Path, content: Any) -> int:
        if path.parent.name == "kept":
            written.append(path)
            if len(written) == 3:
                write(path, b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", third_time_full)
        with pytest.raises(PublishError, match=r"No space left on device \(.*small-\w+\.ckpt\)"):
            train(prepared, store, None, checkpoint)
    assert list((tmp_path / "kept").iterdir()) == [checkpoint.path]
    progress = checkpoint.read()
    assert progress is not None
    assert len(progress.curve) == 2
    agree(train(prepared, store, None, checkpoint)[0], train(prepared, Store(tmp_path / "other"))[0])


class _Runs:
    """What a hostile checkpoint would do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", {"callbacks": {}}, {"x": _Runs()}])
def test_a_damaged_checkpoint_says_what_to_do_and_runs_nothing(
    content: bytes | dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint(tmp_path, "small", {})
    if isinstance(content, bytes):
        checkpoint.path.write_bytes(content)
    else:
        torch.save(content, checkpoint.path)
    with pytest.raises(TrainingError, match=r"cannot be read .*remove it, or train with --fresh"):
        checkpoint.read()
    assert not (tmp_path / "hacked").exists()


def test_only_what_decides_the_outcome_names_the_file(recipe: dict[str, Any], tmp_path: Path) -> None:
    paths = {checkpoint_of(rough(recipe, tmp_path), tmp_path).path}
    assert checkpoint_of(rough(recipe, tmp_path), tmp_path).path in paths
    recipe["split"] = {"seed": 1}
    paths.add(checkpoint_of(rough(recipe, tmp_path), tmp_path).path)
    (tmp_path / "net.py").write_text(NET + "# edited\n")
    file = tmp_path / "recipe.toml"
    paths.add(checkpoint_of(prepare(RecipeFile(file, check_recipe(recipe, file))), tmp_path).path)
    assert len(paths) == 3
