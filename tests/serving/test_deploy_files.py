"""The files of serving/deploy: held against what others publish, and run as far as this machine can."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dropserve.manifest import VersionManifest
from dropserve.serving.runtime import free_ports
from dropserve.store import Stored

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"
CLIENTS = ROOT / ".venv-peers" / "clients" / "bin"
KSERVE = (DEPLOY / "kserve.yaml").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
needs_peers = pytest.mark.skipif(
    not (CLIENTS / "hadolint").is_file(),
    reason="kserve and hadolint are not in .venv-peers/clients; install them with: make peers",
)


def problems(text: str) -> list[str]:
    """What KServe's and Kubernetes' published types say against these documents."""
    line = [str(CLIENTS / "python"), str(ROOT / "tests" / "peers" / "check_manifests.py")]
    done = subprocess.run(line, input=text, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@needs_peers
def test_kserves_types_know_everything_in_it() -> None:
    assert problems(KSERVE) == []


@pytest.mark.slow
@needs_peers
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("supportedModelFormats:", "supportedModelFormat:", "has no 'supportedModelFormat'"),
        ("containerPort: 8080", "containerPort: web", "containerPort: 'web' is no int"),
        ("    - name: kserve-container\n      image", "    - image", "name Field required"),
        ("runAsNonRoot: true", "runAsNonRoot: yep", "runAsNonRoot: 'yep' is no bool"),
        ("minReplicas: 1", "minReplica: 1", "V1beta1PredictorSpec has no 'minReplica'"),
        ("modelFormat: {name: dropserve}", "modelFormat: dropserve", "is no V1beta1ModelFormat"),
        ("failureThreshold: 90", "failureThresholds: 90", "V1Probe has no 'failureThresholds'"),
        ("drop: [ALL]", "drop: ALL", "drop: 'ALL' is no list"),
    ],
)
def test_the_check_finds_what_is_wrong(old: str, new: str, expected: str) -> None:
    assert old in KSERVE
    found = problems(KSERVE.replace(old, new, 1))
    assert expected in " ".join(" ".join(found).split())


def test_the_runtime_and_the_service_fit_each_other_and_the_image() -> None:
    runtime, service = yaml.safe_load_all(KSERVE)
    (container,) = runtime["spec"]["containers"]
    model = service["spec"]["predictor"]["model"]
    assert container["name"] == "kserve-container", "the name that KServe looks for"
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in [f["name"] for f in runtime["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert container["securityContext"]["runAsUser"] == int(user) > 0
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    assert {p["containerPort"] for p in container["ports"]} == {int(port)}
    assert {container[f"{p}Probe"]["httpGet"]["port"] for p in ("startup", "readiness", "liveness")} == {
        int(port)
    }


@pytest.mark.slow
@needs_peers
def test_hadolint_has_nothing_to_say() -> None:
    line = [str(CLIENTS / "hadolint"), "--failure-threshold", "style", str(DEPLOY / "Dockerfile")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    worse = DOCKERFILE.replace("USER 10001", "USER root")
    done = subprocess.run([line[0], "-"], input=worse, capture_output=True, text=True, check=False)
    assert "DL3002" in done.stdout, "it would have said so"


@pytest.mark.slow
def test_what_the_dockerfile_copies_is_enough_to_install(tmp_path: Path) -> None:
    """Its COPY lines, and the build that its RUN line asks pip for."""
    for words in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            place = tmp_path / target.lstrip("/") / ("" if len(sources) == 1 else source)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run([*line, str(tmp_path / "src")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "dist").glob("dropserve-*.whl"))


def json_words(instruction: str, port: int) -> list[str]:
    """The words of an instruction in exec form, as this machine's interpreter runs them."""
    joined = DOCKERFILE.replace("\\\n", " ")
    (text,) = re.findall(rf"^{instruction}[^\[]*(\[.*\])$", joined, re.MULTILINE)
    words: list[str] = [word.replace("8080", str(port)) for word in json.loads(text)]
    tools = Path(sys.executable).parent
    return [str(tools / words[0]), *words[1:]]


@pytest.mark.slow
def test_the_entry_point_serves_and_the_health_check_tells(
    tmp_path: Path, mlp_version: Stored[VersionManifest]
) -> None:
    """As in the container and in KServe's, but on loopback; SIGTERM ends it with status 0."""
    port = free_ports(1)[0]
    line = json_words("ENTRYPOINT", port)
    line[line.index("0.0.0.0")] = "127.0.0.1"
    runtime, _ = yaml.safe_load_all(KSERVE)
    given: list[Any] = runtime["spec"]["containers"][0]["args"]
    assert given[0] == "{{.Name}}"
    assert set(given[2:]) <= {"--host=0.0.0.0", "--no-tls", "--no-token"}
    store = mlp_version.folder.parents[1]
    line += ["mlp", f"--store={store}", "--no-token", "--port", str(port)]
    health = json_words("HEALTHCHECK", port)
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=console, stderr=console, env=os.environ)
    try:
        assert subprocess.run(health, capture_output=True, check=False).returncode != 0, "not yet"
        deadline = time.monotonic() + 60
        while subprocess.run(health, capture_output=True, check=False).returncode != 0:
            assert process.poll() is None, (tmp_path / "console").read_text()
            assert time.monotonic() < deadline
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v2/models/mlp/infer",
            json={"inputs": [{"name": "input", "shape": [1, 6], "datatype": "FP32", "data": [0] * 6}]},
        )
        assert answer.status_code == 200
    finally:
        process.terminate()
        status = process.wait(30)
    assert status == 0


@pytest.mark.slow
def test_rays_own_schema_reads_the_file_whole() -> None:
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema.model_validate(yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text()))
    (application,) = found.applications
    assert application.route_prefix == "/", "the protocol has its routes at the root"
    assert found.logging_config is not None
    assert found.logging_config.enable_access_log is False
