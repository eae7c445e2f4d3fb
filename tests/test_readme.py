"""Every code block of the README runs, in order, in one shell, as a newcomer would type it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUITE = "make test\n"  # the block that runs this very test is the one that it leaves out
MARK = "\x1e"


@dataclass(frozen=True)
class Block:
    language: str
    text: str


BLOCKS = [Block(*match.groups()) for match in FENCE.finditer(README)]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of the checkout, an empty home, a free port; whatever was started is stopped."""
    home = tmp_path_factory.mktemp("home")
    clone = home / "dropserve"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").mkdir()
    (clone / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (clone / ".venv" / ".ready").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # One thread: two would spin against each other wherever other tests run beside this one.
    own = {"HOME": str(home), "DROPSERVE_PORT": port, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own}
    yield clone, environment
    for folder in (clone, home / "wine"):
        if folder.is_dir():
            stop = [str(clone / ".venv" / "bin" / "dropserve"), "stop"]
            subprocess.run(stop, cwd=folder, env=environment, check=False, capture_output=True)


def test_the_readme_has_what_a_newcomer_needs() -> None:
    assert [block.text for block in BLOCKS].count(SUITE) == 1
    assert {"sh", "python", "json"} <= {block.language for block in BLOCKS}
    for name in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / name).exists(), f"the README links to {name}, which is not there"


@pytest.mark.timeout(290)
def test_every_code_block_runs_and_answers_as_shown(newcomer: tuple[Path, dict[str, str]]) -> None:
    clone, environment = newcomer
    runnable = [block for block in BLOCKS if block.language in {"sh", "python"} and block.text != SUITE]
    script = ["set -euo pipefail"]
    for block in runnable:
        text = block.text.replace("localhost:8080", f"localhost:{environment['DROPSERVE_PORT']}")
        script.append(text if block.language == "sh" else f"python - <<'PYTHON'\n{text}PYTHON")
        script.append(f"printf '\\n{MARK}\\n'")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = done.stdout.split(MARK)
    failed = runnable[min(len(outputs), len(runnable)) - 1]
    assert done.returncode == 0, (
        f"this block failed:\n{failed.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    shown = [(before, block) for before, block in itertools.pairwise(BLOCKS) if block.language == "json"]
    for before, answer in shown:
        printed = outputs[runnable.index(before)]
        assert_alike(json.loads(answer.text), json.loads(printed[printed.index("{") :]), "answer")


def assert_alike(shown: Any, got: Any, where: str) -> None:
    """The same keys, labels, whole numbers and lengths; other numbers may differ from machine to machine."""
    if isinstance(shown, dict):
        assert sorted(shown) == sorted(got), where
        for key in shown:
            assert_alike(shown[key], got[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert len(shown) == len(got), where
        for at, (one, other) in enumerate(zip(shown, got, strict=True)):
            assert_alike(one, other, f"{where}[{at}]")
    elif isinstance(shown, float):
        assert isinstance(got, float), where
        assert abs(shown - got) < 0.1, where
    else:
        assert shown == got, where
