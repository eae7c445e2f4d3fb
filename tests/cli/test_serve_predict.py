"""``dropserve serve``, ``stop`` and ``predict`` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dropserve.manifest import VersionManifest
from dropserve.serving.runtime import free_ports
from dropserve.store import Store, Stored

Version = Stored[VersionManifest]
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
Typed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    """Run a command in an empty folder."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from dropserve.cli import main; main()", *words]
        return subprocess.run(command, cwd=tmp_path, input=stdin, capture_output=True, text=True, check=False)

    return run


def test_a_classifiers_answer_is_a_table_with_bars(typed: Typed, server: Any, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(json.dumps({"instances": [ROW]}))
    ask = ["predict", "--url", server.url, "--model", "mlp", "--input"]
    done = typed(*ask, "row.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[0] for line in lines[:4]] == list("abcd")
    document = json.loads(typed(*ask, "row.json", "--json").stdout)["predictions"][0]
    for line in lines[:4]:
        assert f"{document['probabilities'][line[0]]:.4f}" in line
    best = next(line for line in lines if line.startswith(document["label"]))
    assert best.count("█") == max(line.count("█") for line in lines[:4]) > 10
    assert "--mc" in lines[-1]


def test_uncertainty_in_words_and_numbers(typed: Typed, server: Any) -> None:
    ask = ["predict", "--url", server.url, "--model", "mlp", "--mc", "--samples", "60", "--seed", "7"]
    done = typed(*ask, stdin=json.dumps(ROW))
    assert done.returncode == 0, done.stderr
    assert "predictive entropy" in done.stdout
    assert "samples 60, seed 7, scheme balanced" in done.stdout
    assert "unsure" in done.stdout or "sure" in done.stdout
    document = json.loads(typed(*ask, "--json", stdin=json.dumps([ROW])).stdout)
    assert document["parameters"]["mc_seed"] == 7
    assert f"{document['predictions'][0]['uncertainty']['mutual_information']:.3f}" in done.stdout


def test_other_tasks_and_many_rows(typed: Typed, server: Any) -> None:
    done = typed(
        "predict", "--url", server.url, "--model", "words", stdin='{"instances": [0, 1, 2, 3, 4, 5, 6]}'
    )
    assert '{"output": [3.0, 4.0, 5.0]}' in done.stdout
    assert "and 2 more" in done.stdout


@pytest.mark.parametrize(
    ("words", "stdin", "status", "expected"),
    [
        (["--input", "nowhere.json"], "", 2, "nowhere.json: No such file"),
        ([], "{", 2, "not JSON"),
        ([], "[[1, 2]]", 1, "instance 0 has 2 numbers; expected 6 numbers"),
        (["--samples", "9"], "[[1]]", 2, "add mc=True"),
    ],
)
def test_predict_says_what_is_wrong(
    typed: Typed, server: Any, words: list[str], stdin: str, status: int, expected: str
) -> None:
    done = typed("predict", "--url", server.url, "--model", "mlp", *words, stdin=stdin)
    assert done.returncode == status
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_server_or_a_model(
    typed: Typed, tmp_path: Path, publish_version: Callable[..., Version]
) -> None:
    assert "nothing of this project is running" in typed("stop").stdout
    done = typed("serve")
    assert done.returncode == 2
    assert "dropserve train" in done.stderr
    store = Store(tmp_path / "model_store")
    for name in ("one", "two"):
        publish_version(store, name, {"model.onnx": b"graph"})
    done = typed("serve")
    assert done.returncode == 2
    assert "holds one, two: say which" in done.stderr
    done = typed("serve", "three")
    assert done.returncode == 1
    assert "there: one, two" in done.stderr
    done = typed("serve", "one", "--version", "9")
    assert "has no version 9; it has 1" in done.stderr
    done = typed("serve", "one", "--backend", "tensorrt")
    assert done.returncode == 2
    assert "expected onnx or torchscript" in done.stderr
    port = str(free_ports(1)[0])
    done = typed("predict", "--model", "one", "--url", f"http://127.0.0.1:{port}", stdin="[[1]]")
    assert done.returncode == 1
    assert "dropserve serve" in done.stderr


def test_a_flipped_byte_anywhere_refuses_to_serve(
    typed: Typed, tmp_path: Path, publish_version: Callable[..., Version]
) -> None:
    version = publish_version(Store(tmp_path / "model_store"), "one", {"model.onnx": b"graph"})
    archive = version.folder / "one.mar"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.chmod(0o644)
    archive.write_bytes(bytes(content))
    done = typed("serve", "one")
    assert done.returncode == 1
    assert "one.mar is not what was published" in done.stderr
    assert not (tmp_path / ".run").exists()


@pytest.mark.slow
def test_from_serve_to_stop(typed: Typed, tmp_path: Path, mlp_version: Version) -> None:
    (tmp_path / "model_store").symlink_to(mlp_version.folder.parents[1])
    port = str(free_ports(1)[0])
    done = typed("serve", "--port", port)
    try:
        assert done.returncode == 0, done.stderr
        curls = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("curl")]
        assert len(curls) == 2
        for curl in curls:
            answer = subprocess.run(["bash", "-c", curl], cwd=tmp_path, capture_output=True, check=True)
            assert json.loads(answer.stdout)["predictions"]
        assert typed("predict", "--mc", stdin=json.dumps(ROW)).returncode == 0, "it finds its own server"
        again = typed("serve", "--port", port, "--no-mc")
        assert "mlp-mc is switched off" in again.stdout
        assert httpx.post(f"http://127.0.0.1:{port}/predictions/mlp-mc", json={}).status_code == 404
    finally:
        stopped = typed("stop")
    assert "stopped mlp at" in stopped.stdout
    left = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= {".run", "model_store"}, "nothing of ours lies in the user's folder"


def test_an_empty_host_is_refused(typed: Typed, mlp_version: Version) -> None:
    """It would mean all addresses."""
    done = typed("serve", "mlp", "--store", str(mlp_version.folder.parents[1]), "--host", "")
    assert done.returncode == 2
    assert "--host '': expected an address" in done.stderr
