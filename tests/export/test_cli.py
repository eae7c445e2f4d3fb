from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dropserve.cli import app
from dropserve.errors import CheckFailedError, NotInStoreError, RecipeError, UsageError
from dropserve.store import Store

Publish = Callable[..., Any]
CHECKS = 'formats = ["onnx"]\nbatch_sizes = [1, 3]\n'


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project folder with quick settings of its own."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export/checks.toml").write_text(CHECKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def test_export_and_models_end_with_what_to_do_next(store: Store, publish: Publish) -> None:
    publish()
    assert run("models").output.splitlines()[-1] == "next: dropserve export net"
    result = run("export")
    assert result.exit_code == 0, result.exception
    last = result.output.splitlines()[-1]
    assert "published model_store/net/1 (net and net-mc)" in last
    assert last.endswith("next: make serve or dropserve serve net")
    for name in ("torch-random-state", "dropout-maskable", "parity-onnx", "parity-trunk-and-head"):
        (line,) = [line for line in result.output.splitlines() if line.startswith(f"{name} ")]
        assert " passed " in line
    listed = run("models").output
    assert "accuracy 0.5" in listed
    assert "1 site" in listed
    assert listed.splitlines()[-1] == "next: dropserve serve net"
    stored = json.loads(run("models", "--json").output)["net"]["versions"]["1"]
    assert stored["metrics"] == {"test_accuracy": 0.5}
    assert stored["sites"][0]["name"] == "drop"


def test_a_failure_shows_place_and_remedy_and_keeps_the_figures(store: Store, publish: Publish) -> None:
    publish(("self.drop(torch.relu", "nn.functional.dropout(torch.relu"))
    result = run("export")
    assert isinstance(result.exception, CheckFailedError)
    assert result.exception.exit_status == 1
    assert "net.py:12" in result.output
    assert "failed" in result.output
    figures = json.loads(Path(".run/export-net.json").read_text())
    assert any(check["verdict"] == "failed" for check in figures["checks"])
    assert store.versions("net") == []


def test_another_checks_file_can_be_given(publish: Publish, tmp_path: Path) -> None:
    publish()
    other = tmp_path / "strict.toml"
    other.write_text("tolerance = 7\n")
    result = run("export", "--checks", str(other))
    assert isinstance(result.exception, RecipeError)
    assert "tolerance = 7" in str(result.exception)


def test_which_model_and_which_run(store: Store, publish: Publish) -> None:
    result = run("export")
    assert isinstance(result.exception, UsageError)
    assert "make a run with `dropserve train`" in str(result.exception)
    publish()
    result = run("export", "net", "--run", "yesterday")
    assert isinstance(result.exception, NotInStoreError)
    assert "has no run yesterday; it has" in str(result.exception)
    assert "is empty" not in run("models").output


def test_an_empty_store_says_what_to_do() -> None:
    assert run("models").output.splitlines()[-1] == "model_store is empty; next: dropserve train"
