"""Every code block of docs/serving.md runs, and every answer on the page is what comes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ASKED = [(text, answer) for (kind, text), (_, answer) in pairwise(BLOCKS) if kind == "sh"]


def run(language: str, text: str, server: Any, folder: Path = ROOT) -> str:
    text = text.replace("localhost:8080", server.url.removeprefix("http://"))
    command = ["bash", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("request_", "shown"), ASKED)
def test_answers_are_as_shown(server: Any, request_: str, shown: str, tmp_path: Path) -> None:
    assert alike(json.loads(shown), json.loads(run("sh", request_, server, tmp_path)))


def alike(shown: Any, got: Any) -> bool:
    """Equal, but for numbers with a fraction: those to the four decimals of the page."""
    if isinstance(shown, dict) and isinstance(got, dict):
        return list(shown) == list(got) and all(alike(shown[key], got[key]) for key in shown)
    if isinstance(shown, list) and isinstance(got, list):
        return len(shown) == len(got) and all(map(alike, shown, got))
    if isinstance(shown, float):
        return isinstance(got, float) and abs(shown - got) < 1e-4
    return shown == got


def test_the_python_of_the_page_runs(server: Any) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "python"]
    first, second = run("python", text, server).splitlines()
    assert first.startswith("b 0.1018")
    assert second.startswith("(3, 4) [")


def test_links_and_files_of_the_page_are_there() -> None:
    for name in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / "docs" / name).is_file(), name
    for name in re.findall(r"`((?:serving|benchmarks|tests)/[\w./-]+\.\w+)`", PAGE):
        assert (ROOT / name).is_file(), name
    assert len(ASKED) == 5
