"""docs/studies.md: its code runs, and the commands and files that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from dropserve.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/studies.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names["stack"]) == 15  # type: ignore[arg-type]


def test_its_commands_options_and_files_are_there() -> None:
    for command in ("overfit", "tune", "bench uci", "bench ood"):
        assert f"dropserve {command}" in TEXT
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0
    for path in re.findall(r"benchmarks/[\w.]+\.py", TEXT):
        assert (ROOT / path).is_file()
    for picture in re.findall(r"\]\(([\w-]+\.png)\)", TEXT):
        assert (ROOT / "docs" / picture).is_file()
