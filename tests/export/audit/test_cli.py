"""``dropserve audit`` and ``dropserve sites`` as they are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dropserve.cli import app
from dropserve.errors import RecipeError, UsageError

ZOO = Path(__file__).parents[2] / "zoo"
ROOT = Path(__file__).parents[3]

OWN = """
import torch
from torch import nn

print("loading")

class Net(nn.Module):
    def __init__(self, width, p=0.5, on=False, name="x"):
        super().__init__()
        self.on = on
        self.fc = nn.Linear(4, width)
        self.drop = nn.Dropout(p)

    def forward(self, x):
        print("running")
        x = nn.functional.dropout(self.fc(x), training=self.on)
        return self.drop(x)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, numbers, words, scale=1.0):
        return (numbers + self.table(words).mean(1)) * scale
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "net.py:Net"


def audit(*arguments: str) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(app, ["audit", *arguments, "--eager", "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, json.loads(result.stdout)


def test_a_sound_model_exits_0_and_an_unsound_one_1_with_its_place(net: str) -> None:
    status, report = audit(net, "--input", "4", "--arg", "width=3")
    assert (status, report["sound"]) == (0, True)
    status, report = audit(net, "--input", "4", "--arg", "width=3", "--arg", "on=true")
    assert (status, report["sound"]) == (1, False)
    checks = {check["name"]: check for check in report["checks"]}  # type: ignore[attr-defined]
    assert checks["torch-random-state"]["verdict"] == "failed"
    assert checks["torch-random-state"]["where"] == "Net at net.py:16"
    assert checks["saved-weights-complete"]["verdict"] == "skipped"


def test_several_inputs_go_by_the_names_of_forward(net: str) -> None:
    status, report = audit("net.py:Two", "--input", "4", "--input", "6:int64")
    assert status == 0
    first = report["checks"][0]["evidence"]  # type: ignore[index]
    assert "numbers: float32[4]" in first
    assert "words: int64[6]" in first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py:Net", "--input", "4"], "no file"),
        (["net.py:Nat", "--input", "4", "--arg", "width=3"], "Net"),
        (["net.py:Net", "--input", "4"], "missing 1 required positional argument: 'width'"),
        (["net.py:Net", "--input", "4x", "--arg", "width=3"], "is not a size"),
        (["net.py:Net", "--input", "4", "--arg", "width"], "NAME=VALUE"),
        (["net.py:Net", "--input", "4", "--input", "3", "--arg", "width=3"], "takes 1 inputs (x), 2 given"),
        (["net.py:Two", "--input", "4"], "forward takes 2 to 3 inputs (numbers, words, scale), 1 given"),
    ],
)  # fmt: skip
def test_wrong_usage_says_what_to_type(net: str, arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        audit(*arguments)
    assert message in str(caught.value)
    assert caught.value.exit_status == 2


def test_checks_toml_waives_and_refuses_names_that_do_not_exist(net: str, tmp_path: Path) -> None:
    noisy = [
        net,
        "--input",
        "4",
        "--arg",
        "width=3",
        "--arg",
        "on=true",
        "--checks",
        str(tmp_path / "c.toml"),
    ]
    waived = ["torch-random-state", "random-operators", "repeated-forwards"]
    (tmp_path / "c.toml").write_text(f"waive = {json.dumps(waived)}")
    status, report = audit(*noisy)
    assert status == 0
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}  # type: ignore[attr-defined]
    assert {verdicts[name] for name in waived} == {"waived"}
    (tmp_path / "c.toml").write_text('waive = ["random"]')
    with pytest.raises(RecipeError, match="no check 'random'"):
        audit(*noisy)


def test_the_table_gives_place_and_remedy_and_says_what_to_do_next(net: str) -> None:
    arguments = ["audit", net, "--input", "4", "--arg", "width=3", "--arg", "on=true", "--eager"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "at Net at net.py:16" in result.stdout
    assert "do write dropout(..., training=self.training)" in result.stdout
    closing = result.stdout.strip().splitlines()[-1]
    assert closing.startswith("not sound: ")
    assert "run this again" in closing


def test_sites_are_listed_with_kind_rate_shape_and_place(net: str) -> None:
    arguments = ["sites", net, "--input", "4", "--arg", "width=3"]
    listed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    (site,) = listed  # the dropout whose flag is never on is none
    assert (site["name"], site["kind"], site["p"]) == ("drop", "dropout", 0.5)
    assert (site["shape"], site["where"]) == ([3], "net.py:17")
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert "net.py:17" in shown
    assert "1 site, 3 random numbers a sample; next: " in shown


@pytest.mark.parametrize("recipe", ["digits", "cafes"])
def test_sites_of_a_recipe(recipe: str) -> None:
    listed = json.loads(CliRunner().invoke(app, ["sites", recipe, "--json"]).stdout)
    assert listed
    assert {site["kind"] for site in listed} == {"dropout"}


def test_sites_without_a_shape_say_what_is_missing(net: str) -> None:
    with pytest.raises(UsageError, match="--input 16"):
        CliRunner().invoke(app, ["sites", net], catch_exceptions=False)


@pytest.mark.slow
def test_the_whole_command_prints_only_json_and_sets_its_status(net: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from dropserve.cli import main; main()", "audit", net, "--input", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )

    done = run("--arg", "width=3", "--json")
    assert done.returncode == 0, done.stderr
    names = [check["name"] for check in json.loads(done.stdout)["checks"]]
    assert {"onnx-random-operators", "parity-onnx", "parity-masked-torchscript"} <= set(names)
    wrong = run("--json")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "width" in wrong.stderr


def test_a_model_that_is_random_in_training_only_is_sound_but_told_that_it_cannot_be_sampled(
    net: str,
) -> None:
    Path("path.py").write_text(
        "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x * torch.rand(len(x), 1) if self.training else x\n"
    )
    result = CliRunner().invoke(app, ["audit", "path.py:Net", "--input", "4", "--eager"])
    assert result.exit_code == 0
    assert "no Monte Carlo for this model" in result.stdout
    assert "dropout-maskable" in result.stdout
    sound = CliRunner().invoke(app, ["audit", net, "--arg", "width=3", "--input", "4", "--eager"])
    assert sound.exit_code == 0
    assert "no Monte Carlo" not in sound.stdout
