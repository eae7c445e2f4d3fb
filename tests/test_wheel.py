"""What pip users get: one top-level package, the stage folders inside it, and hosts without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_only_top_level_package_is_dropserve(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"dropserve", next(t for t in tops if t.endswith(".dist-info"))}
    assert "dropserve/py.typed" in names
    for stage in (
        "training/recipes/digits.toml",
        "training/models.py",
        "export/checks.toml",
        "serving/handler.py",
    ):
        assert f"dropserve/stage_files/{stage}" in names


def test_a_serving_host_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "host"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(ROOT / "constraints.txt"),
        f"{wheel}[serve]",
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check = (
        "import importlib.util as u, dropserve, dropserve.serving.http.server, dropserve.serving.http.worker;"
        "absent = [n for n in ('torch', 'lightning', 'onnx', 'torchserve', 'ts') if u.find_spec(n) is None];"
        "assert len(absent) == 5, absent; print(dropserve.Client.__name__)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-W", "error", "-c", check],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "Client", done.stderr
    done = subprocess.run(
        [str(home / "bin" / "dropserve"), "train"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "pip install 'dropserve[train]'" in done.stderr
