"""Clients that nobody here wrote ask a real server of each host, as far as its routes allow.

tritonclient and kserve pin other versions than we do, so they live in an environment of their own:
``make peers`` makes it. curl is the system's.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from python_hosts import PYTHON_HOSTS
from scipy.special import softmax

from dropserve.dropout.masks import draw
from dropserve.serving.deployment import Deployment

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "clients" / "bin" / "python"
LABELS = np.array(list("abcd"))
ROWS = np.random.default_rng(5).normal(size=(3, 6)).round(3).astype(np.float32)
BODY = json.dumps({"instances": ROWS.astype(float).round(3).tolist()})
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["server", *PYTHON_HOSTS])
def host(request: pytest.FixtureRequest) -> Deployment:
    """TorchServe, and the hosts in Python."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=PYTHON_HOSTS)
def python_host(request: pytest.FixtureRequest) -> Deployment:
    """The ASGI host, and Ray Serve."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain(mlp: Any) -> np.ndarray:
    """Probabilities [3, 4], computed in numpy."""
    return softmax(mlp(ROWS).astype(np.float64), axis=-1)


@pytest.fixture(scope="module")
def samples(mlp: Any) -> np.ndarray:
    """Samples [20, 3, 4] of seed 3, computed in numpy."""
    masks = draw([mlp.site], 20, seed=3)["drop.scale"]
    return softmax(np.stack([mlp(ROWS, mask) for mask in masks]).astype(np.float64), axis=-1)


@cache
def ask(script: str, package: str, url: str) -> dict[str, Any]:
    """What a peer's client, in its own environment, makes of our answers."""
    probe = [str(PYTHON), "-c", f"import {package}"]
    if not PYTHON.is_file() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed in .venv-peers/clients; install it with: make peers")
    line = [str(PYTHON), str(ROOT / "tests" / "peers" / script), url]
    rows = json.dumps(ROWS.tolist())
    done = subprocess.run(line, input=rows, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def near(found: object, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-7)


def is_plain(case: dict[str, Any], plain: np.ndarray) -> None:
    near(case["values"]["probabilities"], plain)
    if "label" in case["values"]:
        assert case["values"]["label"] == LABELS[plain.argmax(-1)].tolist()


def is_doubt(case: dict[str, Any], samples: np.ndarray) -> None:
    near(case["values"]["probabilities"], samples.mean(0))
    np.testing.assert_allclose(case["values"]["standard_deviation"], samples.std(0), rtol=1e-4)


def test_tritonclient(host: Deployment, plain: np.ndarray, samples: np.ndarray) -> None:
    found = ask("ask_triton.py", "tritonclient.http", host.url)
    for name in ("binary", "json", "binary, outputs named", "binary in, json out", "aio binary"):
        is_plain(found[name], plain)
    assert len(found["async_infer"]) == 4
    for answer in found["async_infer"]:
        is_plain(answer, plain)
    for name in ("mc", "mc json", "aio mc"):
        is_doubt(found[name], samples)
        echoed = found[name]["response"]["parameters"]
        assert (echoed["mc_samples"], echoed["mc_seed"]) == (20, 3)
    assert found["binary"]["dtypes"]["probabilities"] == "float64"
    assert found["binary"]["response"] == {"model_name": "mlp", "model_version": "1"}
    assert found["mc"]["response"]["id"] == found["aio mc"]["response"]["id"] == "seven"
    assert found["binary, outputs named"]["response"]["id"] == "é7"
    assert list(found["binary, outputs named"]["values"]) == ["probabilities"]


def test_tritonclient_shows_what_was_wrong(host: Deployment) -> None:
    found = ask("ask_triton.py", "tritonclient.http", host.url)
    for name in ("wrong shape", "aio wrong shape"):
        assert found[name] == {
            "error": "input input: shape is [3, 4]; expected [rows, 6], at least one row",
            "status": "400",
        }
    assert 'datatype is a string ("FP64"); expected FP32' in found["wrong datatype"]["error"]
    assert 'there is no output "x"; expected' in found["unknown output"]["error"]
    assert 'the body is encoded ("gzip")' in found["compressed"]["error"]


def test_what_torchserve_does_not_route_is_refused_and_not_made_up(server: Deployment) -> None:
    """Versions in the path, metadata and model readiness: 404 from the frontend, with no error that the
    client could show; a client that asks is told no, never something wrong."""
    triton = ask("ask_triton.py", "tritonclient.http", server.url)
    assert [triton[name]["status"] for name in ("unknown model", "with a version", "metadata")] == ["404"] * 3
    assert [triton[name] for name in ("live", "ready", "model ready")] == [False] * 3
    kserve = ask("ask_kserve.py", "kserve", server.url)
    assert [kserve[name]["status"] for name in ("unknown model", "live", "ready")] == [404] * 3
    assert kserve["model ready"] is False


def test_hosts_in_python_route_everything(python_host: Deployment, plain: np.ndarray) -> None:
    triton = ask("ask_triton.py", "tritonclient.http", python_host.url)
    assert [triton[name] for name in ("live", "ready", "model ready")] == [True] * 3
    is_plain(triton["with a version"], plain)
    assert triton["metadata"]["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 6]}]
    kserve = ask("ask_kserve.py", "kserve", python_host.url)
    assert [kserve[name] for name in ("live", "ready", "model ready")] == [True] * 3
    for found in (triton, kserve):
        assert 'there is no model "nobody" here; there are mlp,' in found["unknown model"]["error"]


def test_kserve(host: Deployment, plain: np.ndarray, samples: np.ndarray) -> None:
    found = ask("ask_kserve.py", "kserve", host.url)
    near([list(p["probabilities"].values()) for p in found["v1"]["predictions"]], plain)
    near([list(p["probabilities"].values()) for p in found["v1 mc"]["predictions"]], samples.mean(0))
    for name in ("v2 json", "v2 binary", "v2 binary in, json out"):
        is_plain(found[name], plain)
        assert (found[name]["id"], found[name]["model"]) == ("seven", "mlp")
    for name in ("v2 mc", "v2 mc binary"):
        is_doubt(found[name], samples)
        assert found[name]["parameters"]["mc_samples"] == 20
    assert found["v1 wrong shape"]["status"] == found["v2 wrong shape"]["status"] == 400
    assert "instance 0 has 2 numbers; expected 6 numbers" in found["v1 wrong shape"]["error"]
    assert "shape is [3, 4]; expected [rows, 6]" in found["v2 wrong shape"]["error"]


def curl(host: Deployment, path: str, *words: str) -> tuple[int, bytes]:
    """Status and body."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed on this machine")
    line = ["curl", "-s", "-w", "%{stderr}%{http_code}", host.url + path, *words]
    done = subprocess.run(line, capture_output=True, check=True, timeout=60)
    return int(done.stderr), done.stdout


JSON: Sequence[str] = ("-H", "content-type: application/json")


def test_curl(host: Deployment, plain: np.ndarray, samples: np.ndarray, tmp_path: Path) -> None:
    for path in ("/predictions/mlp", "/predictions/mlp/1", "/v1/models/mlp:predict"):
        status, body = curl(host, path, *JSON, "-d", BODY)
        assert status == 200
        near([list(p["probabilities"].values()) for p in json.loads(body)["predictions"]], plain)
    document = json.loads(BODY) | {"parameters": {"mc_samples": 20, "mc_seed": 3}}
    (tmp_path / "body.json").write_text(json.dumps(document))
    _, body = curl(host, "/predictions/mlp-mc", *JSON, "-d", f"@{tmp_path / 'body.json'}")
    near([list(p["probabilities"].values()) for p in json.loads(body)["predictions"]], samples.mean(0))


def test_curl_with_v2_json_and_binary(host: Deployment, plain: np.ndarray, tmp_path: Path) -> None:
    tensor = {"name": "input", "shape": [3, 6], "datatype": "FP32"}
    document = {"id": "7", "inputs": [tensor | {"data": ROWS.astype(float).ravel().tolist()}]}
    status, body = curl(host, "/v2/models/mlp/infer", *JSON, "-d", json.dumps(document))
    answer = json.loads(body)
    assert (status, answer["id"]) == (200, "7")
    outputs = {output["name"]: output for output in answer["outputs"]}
    near(np.reshape(outputs["probabilities"]["data"], outputs["probabilities"]["shape"]), plain)
    raw = struct.pack("<18f", *ROWS.ravel().tolist())
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    (tmp_path / "body").write_bytes(head + raw)
    words = ("-H", f"Inference-Header-Content-Length: {len(head)}", "--data-binary", f"@{tmp_path / 'body'}")
    status, body = curl(host, "/v2/models/mlp/infer", "-H", "content-type: application/octet-stream", *words)
    assert status == 200
    assert {output["name"]: output for output in json.loads(body)["outputs"]} == outputs


def test_curl_as_people_type_it_first(host: Deployment) -> None:
    """Without the header curl sends a form, which any page could send: it is told what to add."""
    for words in (("-d", BODY), ("-F", f"data={BODY}")):
        status, body = curl(host, "/predictions/mlp", *words)
        assert status == 415
        assert "-H 'content-type: application/json'" in json.loads(body)["error"]
