"""A disk that fills while a model is trained: real file systems of limited size, wherever it writes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dropserve.store import Store
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 400), nn.ReLU(), nn.Dropout(0.3), nn.Linear(400, 3))
"""
RECIPE = """
name = "small"
task = "classification"
[model]
class = "net.py:Net"
[data]
source = "iris"
[training]
epochs = 6
batch_size = 16
device = "cpu"
"""
TRAIN = 'dropserve train small.toml; echo "exit status $?"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    done = subprocess.run(probe, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no private file system of limited size can be mounted here: {done.stderr.decode()}")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "small.toml").write_text(RECIPE)
    for name in ("model_store", ".run/training"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """In a mount namespace of its own, by which nothing outside is touched."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "500", "OMP_NUM_THREADS": "1"}
    line = ["unshare", "-rm", "bash", "-c", script]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def kilobytes(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(-(-path.stat().st_size // 4096) * 4 for path in files)


def undisturbed(project: Path, store: Path) -> bytes:
    """The weights that must come of it: with one thread, as in :func:`run`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    published, _ = train(prepare(load_recipe(project / "small.toml")), Store(store))
    torch.set_num_threads(threads)
    return published.path("weights.safetensors").read_bytes()


def test_where_training_would_go_on(project: Path, tmp_path: Path) -> None:
    """Room for no checkpoint; then for one, beside which the second finds none; then for all."""
    expected = undisturbed(project, tmp_path / "elsewhere")
    script = f"""
mount -t tmpfs -o size=40k none .run/training
{TRAIN}
mount -o remount,size=120k .run/training
{TRAIN}
echo "left: $(ls -A .run/training | tr '\\n' ' ')"
mount -o remount,size=4m .run/training
{TRAIN}
echo "left: $(ls -A .run/training)"
"""
    done = run(project, script)
    first, again, second = done.stdout.split("exit status 1")
    assert "error: nothing was published for 'small': No space left on device (" in done.stderr, done.stderr
    assert ".ckpt). The store is as it was; mend this and try again." in done.stderr
    assert "resuming" not in first + again, "nothing was kept by the first"
    assert second.splitlines()[1].endswith(".ckpt "), "the former checkpoint, and nothing half-written"
    assert "resuming after epoch 1 of 6" in second
    assert "exit status 0" in second
    assert second.rstrip().endswith("left:")
    assert Store(project / "model_store").run("small").path("weights.safetensors").read_bytes() == expected


@pytest.mark.parametrize("share", [0.1, 0.4, 0.85])
def test_where_the_run_is_published(project: Path, tmp_path: Path, share: float) -> None:
    """Room for ever more of a run: weights, rows, pictures, the manifest meet the end."""
    expected = undisturbed(project, tmp_path / "elsewhere")
    size = int(share * kilobytes(tmp_path / "elsewhere"))
    script = f"""
mount -t tmpfs -o size={size}k none model_store
{TRAIN}
echo "left: $(find model_store -type f -not -name .lock)"
mount -o remount,size=64m model_store
{TRAIN if share > 0.5 else ""}
sha256sum model_store/small/runs/*/weights.safetensors
"""
    done = run(project, script)
    before, after = done.stdout.split("left: ")
    assert "exit status 1" in before, done.stdout + done.stderr
    assert "error: nothing was published for 'small': No space left on device" in done.stderr
    assert not after.splitlines()[0], "nothing half-written"
    if share > 0.5:
        assert "resuming after epoch 6 of 6" in after, "no epoch is trained again"
        assert hashlib.sha256(expected).hexdigest() in after, done.stderr
