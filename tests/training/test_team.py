"""Two processes train as one would: its steps, its early end, its checkpoint, its single run."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dropserve.errors import RecipeError, UsageError
from dropserve.manifest import RunManifest
from dropserve.store import Store, Stored
from dropserve.training.hardware import Hardware, choose_hardware
from dropserve.training.learner import Batches
from dropserve.training.recipe import AugmentationTable, TrainingTable
from dropserve.training.recipe_file import check_recipe
from dropserve.training.team import Team

# Without dropout and BatchNorm, two processes must take the steps of one; with them, their own.
NET = """
import os, random, signal, sys, time
import numpy, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, p=0.0, wait=0.0, norm=False):
        super().__init__()
        self.wait, self.batches = wait, 0
        layers = [nn.Linear(4, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(p)]
        self.layers = nn.Sequential(*layers, nn.Linear(16, 3))
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        if self.training:
            time.sleep(self.wait)
            self.batches += 1
            last = self.batches == int(os.environ.get("END_AT_BATCH", -1))
            if last and sys.argv[0].endswith("peer.py"):
                os.kill(os.getpid(), signal.SIGKILL)
            x = x * (1 + self.layers[-2].p * (0.1 * random.random() + 0.1 * numpy.random.rand()))
        return self.layers(x)
"""
RECIPE = """
name = "small"
task = "classification"
[model]
class = "net.py:Net"
arguments = {{ {arguments} }}
[data]
source = "iris"
[training]
epochs = {epochs}
batch_size = 22
patience = {patience}
device = "cpu"
devices = {devices}
[optimiser]
learning_rate = 2e-2
schedule = "cosine"
"""


@given(
    st.integers(2, 60),
    st.integers(2, 20),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 99)),
    st.booleans(),
)
def test_shares_are_the_batches_that_one_process_takes(
    rows: int, size: int, count: int, seed: int | None, flip: bool
) -> None:
    features = torch.arange(rows * 2.0).reshape(rows, 1, 1, 2)
    target = torch.arange(rows)
    augmentation = AugmentationTable(flip=flip)  # type: ignore[call-arg]  # the other has a default
    if rows < 2 * count or size < 2 * count:
        return
    teams = [Batches(features, target, size, seed, augmentation, Team(rank, count)) for rank in range(count)]
    assert len({len(batches) for batches in teams}) == 1
    for _ in range(2):
        seen: list[int] = []
        for place, shares in enumerate(zip(*teams, strict=True)):
            whole = sum(len(share[1]) for share in shares)
            assert whole <= size + 2 * count
            assert all(len(share[1]) >= 2 for share in shares), "BatchNorm cannot learn from one"
            for batches, (mine, numbers) in zip(teams, shares, strict=True):
                assert batches.weight(place) == pytest.approx(len(numbers) * count / whole)
                expected = features[numbers]
                assert torch.equal(mine.sum(-1), expected.sum(-1)), "a flip keeps the sum"
                seen += numbers.tolist()
        assert sorted(seen) == list(range(rows))
    if count == 1:
        return
    alone = [target for _, target in Batches(features, target, size, seed, augmentation)]
    together = [target for _, target in teams[0]]
    if len(alone) == len(together):
        fresh = iter(Batches(features, target, size, seed, augmentation, Team(0, count)))
        for one, (_, mine) in zip(alone, fresh, strict=True):
            assert torch.equal(one[::count], mine)


def table(**settings: Any) -> TrainingTable:
    return TrainingTable.model_validate(settings)


def test_what_hardware_a_recipe_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_hardware(table()) == Hardware("cpu", 1, "32")
    assert str(choose_hardware(table(devices=2, precision="bf16-mixed"))) == "2 x cpu, bf16-mixed"
    with pytest.raises(
        UsageError, match="'16-mixed', which needs a GPU; allowed on cpu: auto, 32, bf16-mixed"
    ):
        choose_hardware(table(precision="16-mixed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for brain in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda brain=brain, **_: brain)
        expected = Hardware("cuda", 2, "bf16-mixed" if brain else "32")
        assert choose_hardware(table(device="auto", devices=2)) == expected
    assert choose_hardware(table(precision="16-mixed")).precision == "16-mixed"
    with pytest.raises(UsageError, match=r"training.devices: got 3; allowed on cuda here: 1 to 2"):
        choose_hardware(table(devices=3))


def test_a_batch_has_two_rows_for_each(recipe: dict[str, Any], toml: Path) -> None:
    recipe["training"] |= {"devices": 4, "batch_size": 7}
    with pytest.raises(RecipeError, match=r"training.batch_size: got 7; allowed: at least .* \(8\)"):
        check_recipe(recipe, toml)


def project(folder: Path, *, devices: int, epochs: int = 4, patience: int = 0, arguments: str = "") -> Path:
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    text = RECIPE.format(devices=devices, epochs=epochs, patience=patience, arguments=arguments)
    (folder / "small.toml").write_text(text)
    return folder


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from dropserve.cli import main; main()", "train", "small.toml"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trained(folder: Path) -> Stored[RunManifest]:
    with start(folder) as process:
        _, complaints = process.communicate()
        assert process.returncode == 0, complaints
    (run,) = Store(folder / "model_store").runs("small")
    assert not list((folder / ".run/training").glob("*")), "what was needed to go on is gone"
    return Store(folder / "model_store").run("small", run)


def weights(run: Stored[RunManifest]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.path("weights.safetensors"))


def curve(run: Stored[RunManifest]) -> np.ndarray:
    with run.path("learning_curve.csv").open() as file:
        rows = [[float(v) for k, v in row.items() if k != "seconds"] for row in csv.DictReader(file)]
    return np.array(rows)


@pytest.mark.slow
def test_two_take_the_steps_of_one(tmp_path: Path) -> None:
    """105 rows in batches of 22 end with one of 17: unequal shares, weighted."""
    one, two = (trained(project(tmp_path / str(count), devices=count, epochs=6)) for count in (1, 2))
    assert len(curve(one)) == 6
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-4)
    expected = weights(one)
    for name, found in weights(two).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-5)


def wait_for_epochs(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    seen: set[int] = set()
    while len(seen) < count:
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.002)
        seen |= {path.stat().st_mtime_ns for path in (folder / ".run/training").glob("*.ckpt")}


ROUGH = "p = 0.3, norm = true, wait = 0.01"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_however_it_ends_two_go_on_and_end_with_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"devices": 2, "epochs": 24, "patience": 12, "arguments": ROUGH}
    expected = trained(project(tmp_path / "undisturbed", **settings))
    folder = project(tmp_path / "killed", **settings)

    with start(folder, END_AT_BATCH="13") as process:  # the other falls
        _, complaints = process.communicate(timeout=120)
    assert process.returncode == 1
    told = r"error: process 1 of 2 that train \(0 is this one\) was ended by signal 9"
    assert re.search(told, complaints), complaints
    assert "Traceback" not in complaints

    for number, word in (
        (signal.SIGKILL, ""),
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "interrupted"),
    ):
        with start(folder) as process:
            wait_for_epochs(folder, process, 3)
            peers = psutil.Process(process.pid).children(recursive=True)
            assert peers
            process.send_signal(number)
            _, complaints = process.communicate(timeout=60)
        assert word in complaints
        assert process.returncode in {-9, 130, 143}
        _, alive = psutil.wait_procs(peers, timeout=20)
        assert not alive, "the others end with number 0, however it ended"
        assert not Store(folder / "model_store").runs("small")
    found = trained(folder)
    assert found.path("weights.safetensors").read_bytes() == expected.path("weights.safetensors").read_bytes()
    np.testing.assert_array_equal(curve(found), curve(expected))
