"""``dropserve train``, ``import`` and ``init`` as a user meets them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dropserve import cli
from dropserve.project import packaged_stages
from dropserve.store import Store

RECIPE = f"""
name = "small"
task = "classification"
[model]
class = "{packaged_stages()}/training/models.py:MLP"
arguments = {{ inputs = 4, outputs = 3, hidden = [8], dropout = 0.9 }}
[data]
source = "iris"
[training]
epochs = 3
batch_size = 32
device = "cpu"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments: str) -> int:
    """Exit status of the command line."""
    before, sys.argv = sys.argv, ["dropserve", *arguments]
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


def test_train_shows_its_way_and_ends_with_the_next_step(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "small.toml", "--seed", "5") == 0
    out = capsys.readouterr().out
    assert "small: classification with MLP (67 parameters) on cpu, seed 5" in out
    assert "iris: 106 rows to train, 22 to validate, 22 to test" in out
    assert "advice layers.2 (models.py:" in out
    assert "p = 0.9 drops more than half" in out
    assert "epoch 3/3, loss" in out
    manifest = Store(project / "model_store").run("small").manifest
    assert f"{manifest.metrics['test_accuracy']:.4f}" in out
    assert out.splitlines()[-1].endswith(f"{manifest.id}; next: dropserve export small")
    assert manifest.recipe["training"]["seed"] == 5


def test_options_replace_what_the_recipe_says(project: Path) -> None:
    assert run("train", "small.toml", "--epochs", "1", "--device", "cpu") == 0
    training = Store(project / "model_store").run("small").manifest.recipe["training"]
    assert (training["epochs"], training["device"]) == (1, "cpu")


def test_a_wrong_recipe_and_a_wrong_option_are_one_message(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "small.toml").write_text(RECIPE.replace("epochs", "epoch").replace("iris", "irs"))
    assert run("train", "small.toml", "--device", "gpu") == 2
    err = capsys.readouterr().err
    assert "3 problems" in err
    for expected in (
        "data.source: got 'irs' (did you mean 'iris'?)",
        "training.epoch: unknown key",
        "got 'gpu'",
    ):
        assert expected in err
    assert not (project / "model_store").exists()


def test_an_unknown_recipe_lists_the_shipped_ones(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "digit") == 2
    err = capsys.readouterr().err
    assert "(did you mean 'digits'?)" in err
    assert "csv, diabetes, digits, digits-cnn, tutorial" in err


def test_import_publishes_and_ends_with_the_next_step(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    (project / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, n): super().__init__(n, 2)\n"
    )
    torch.save({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, project / "w.pt")
    options = ["--weights", "w.pt", "--input", "3", "--arg", "n=3", "--labels", "no, yes"]
    assert run("import", "net.py:Net", *options) == 0
    out = capsys.readouterr().out
    assert "net: classification, input: float32[3] -> output: float32[2]" in out
    assert out.splitlines()[-1].endswith("next: dropserve export net")
    assert Store(project / "model_store").run("net").manifest.labels == ("no", "yes")
    assert run("import", "net.py:Net", "--weights", "none.pt", "--input", "3", "--arg", "n=3") == 2
    assert "weights none.pt: there is no such file" in capsys.readouterr().err


def test_init_says_what_it_did_and_train_uses_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init") == 0
    out = capsys.readouterr().out
    assert "created training/recipes/digits.toml" in out
    assert out.splitlines()[-1].endswith("next: dropserve train training/recipes/digits.toml")
    (project / "training/models.py").write_text("# mine\n")
    assert run("init") == 0
    assert "kept    training/models.py: it is there and differs" in capsys.readouterr().out
    assert run("train", "tutorial") == 2
    assert f"{project}/training/models.py" in capsys.readouterr().err.replace("\n", ""), (
        "the user's copy is the one"
    )


INTERRUPTED = "interrupted: nothing was published; the model store is as it was\n"


def test_ctrl_c_in_the_middle_leaves_no_run(project: Path) -> None:
    (project / "small.toml").write_text(RECIPE.replace("epochs = 3", "epochs = 1000000\npatience = 0"))
    command = [sys.executable, "-c", "from dropserve.cli import main; main()", "train", "small.toml"]
    runs = project / "model_store/small/runs"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=project, text=True, **pipes) as process:
        while not list(runs.glob(".staging-*")):  # training has begun
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith(INTERRUPTED)
    assert list(runs.iterdir()) == []


@pytest.mark.slow
def test_ctrl_c_while_torch_is_being_imported_waits_its_turn(project: Path) -> None:
    watch = (
        "import sys, os, signal, threading, time\n"
        "def press():\n"
        "    while 'torch' not in sys.modules: time.sleep(0.001)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=press, daemon=True).start()\n"
        "from dropserve.cli import main; main()\n"
    )
    command = [sys.executable, "-c", watch, "train", "small.toml"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, INTERRUPTED)
