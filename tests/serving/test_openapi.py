"""schemathesis holds a host against its own description: statuses, content types, schemas, methods."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from python_hosts import PYTHON_HOSTS

from dropserve.serving.deployment import Deployment

FOLDER = Path(__file__).parents[1] / "hosts"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("host", PYTHON_HOSTS)
def test_the_description_is_true(host: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Valid requests are accepted, invalid ones refused, and every answer is of the form described."""
    deployment: Deployment = request.getfixturevalue(host)
    line = [
        str(Path(sys.executable).parent / "schemathesis"),
        "--config-file",
        str(FOLDER / "schemathesis.toml"),
    ]
    line += ["run", f"{deployment.url}/openapi.json", "--checks", "all", "--phases", "coverage,fuzzing"]
    line += ["--max-examples", "25", "--continue-on-failure", "--no-color", "--generation-database", "none"]
    line += ["--exclude-path-regex", "photos", "--suppress-health-check", "filter_too_much"]
    hooks = os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(line, capture_output=True, text=True, env=hooks, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    generated = re.search(r"(\d+) generated", done.stdout)
    assert tested
    assert generated
    assert int(tested[1]) >= 30
    assert int(generated[1]) > 1000
