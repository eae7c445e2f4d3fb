"""Starting, replacing, breaking and stopping a real server; each test looks at what was left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dropserve.client import Client
from dropserve.errors import RequestError, ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deploy import deploy
from dropserve.serving.deployment import Options
from dropserve.serving.process import ProcessId
from dropserve.serving.runtime import LOOPBACK, check_port, free_ports, java
from dropserve.serving.supervisor import State, write_state
from dropserve.store import Store, Stored

pytestmark = pytest.mark.slow  # starts and kills servers of its own

Version = Stored[VersionManifest]
STAGE = Path(__file__).parents[2] / "serving"
ROW = json.dumps({"instances": [[0.5, -1.0, 0.25, 2.0, 0.0, 1.0]]}).encode()
JSON = {"content-type": "application/json"}


def options(**changes: Any) -> Options:
    chosen: dict[str, Any] = {
        "model_config": STAGE / "model-config.yaml",
        "properties": STAGE / "config.properties",
        "log_config": STAGE / "log4j2.xml",
        "port": free_ports(1)[0],
    }
    return Options(**(chosen | changes))


def family(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def workers(state: State, model: str) -> list[psutil.Process]:
    assert state.frontend is not None
    found = [p for p in family(state.frontend.pid) if "model_service_worker.py" in " ".join(p.cmdline())]
    return [p for p in found if Path(p.cwd()).resolve().name == model]


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / ".run"
    yield folder
    lifecycle.stop(folder)


def ask(url: str, endpoint: str = "mlp") -> httpx.Response:
    return httpx.post(f"{url}/predictions/{endpoint}", content=ROW, headers=JSON, timeout=100)


def test_a_killed_worker_comes_back_and_nothing_wrong_is_answered(
    run_dir: Path, mlp_version: Version
) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options(monte_carlo=False, backend="torchscript"))
    expected = ask(deployment.url).json()
    state = lifecycle.running(run_dir)
    assert state is not None
    assert state.phase == "ready"
    (worker,) = workers(state, "mlp")
    worker.send_signal(signal.SIGKILL)
    start = time.monotonic()
    answers = [ask(deployment.url)]
    while answers[-1].status_code != 200 and time.monotonic() - start < 100:
        time.sleep(0.1)
        answers.append(ask(deployment.url))
    assert answers[-1].status_code == 200
    assert {a.status_code for a in answers} <= {200, 500, 503, 507}  # docs/faults.md
    assert all(a.json() == expected for a in answers if a.status_code == 200)

    everyone = family(state.supervisor.pid)
    assert len(everyone) >= 3
    assert lifecycle.stop(run_dir) is not None
    assert not [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert [p.name for p in run_dir.iterdir()] == ["logs"], "stopping leaves nothing but logs"
    assert lifecycle.stop(run_dir) is None


@pytest.mark.slow
def test_a_killed_frontend_is_started_again(run_dir: Path, mlp_version: Version) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options(monte_carlo=False))
    before = lifecycle.running(run_dir)
    assert before is not None
    assert before.frontend is not None
    os.kill(before.frontend.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        after = lifecycle.running(run_dir)
        if after and after.phase == "ready" and after.frontend != before.frontend:
            break
        time.sleep(0.2)
    assert after is not None
    assert after.restarts == 1
    assert ask(deployment.url).status_code == 200


@pytest.mark.slow
def test_serving_again_replaces_the_server(run_dir: Path, mlp_version: Version) -> None:
    chosen = options(monte_carlo=False)
    lifecycle.start(run_dir, [mlp_version], chosen)
    first = lifecycle.running(run_dir)
    lifecycle.start(run_dir, [mlp_version], chosen)
    second = lifecycle.running(run_dir)
    assert first is not None
    assert second is not None
    assert not first.supervisor.alive
    assert second.supervisor.alive
    assert len(list(run_dir.glob("server-*"))) == 1


@pytest.mark.slow
def test_attached_it_stops_on_sigterm(tmp_path: Path, mlp_version: Version) -> None:
    (tmp_path / "model_store").symlink_to(mlp_version.folder.parents[1])
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "dropserve.cli", "serve", "mlp", "--foreground", "--port", str(port)]
    code = "from dropserve.cli import main; main()"
    command = [sys.executable, "-c", code, *command[3:]]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("next:"):
            break
    assert any("curl -s localhost" in line for line in lines)
    assert ask(f"http://{LOOPBACK}:{port}", "mlp-mc").status_code == 200
    everyone = family(process.pid)
    process.terminate()
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "stopped" in rest
    assert not [p for p in everyone if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_model_that_cannot_be_loaded_fails_fast_and_says_why(
    run_dir: Path, publish_version: Callable[..., Version], tmp_path: Path
) -> None:
    broken = publish_version(Store(tmp_path / "store"), "broken", {"model.onnx": b"no graph"})
    start = time.monotonic()
    with pytest.raises(
        ServerError, match=r"dropserve cannot load broken: cannot load .*model\.onnx: it is no ONNX file"
    ):
        lifecycle.start(run_dir, [broken], options())
    assert time.monotonic() - start < 60
    assert lifecycle.running(run_dir) is None
    assert [p.name for p in run_dir.iterdir()] == ["logs"]


def test_a_taken_port_is_named_with_its_owner(run_dir: Path, mlp_version: Version) -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} .* process {os.getpid()} .*--port \d+"):
            lifecycle.start(run_dir, [mlp_version], options(port=port))
    assert not run_dir.exists(), "nothing was prepared"
    check_port(port)


def test_a_stranger_with_the_pid_of_a_dead_server_is_left_alone(run_dir: Path, mlp_version: Version) -> None:
    deployment = deploy(run_dir, [mlp_version], options())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        known = ProcessId.of(stranger.pid)
        stale = ProcessId(known.pid, known.started - 100)
        write_state(run_dir, State(supervisor=stale, frontend=stale, deployment=deployment))
        assert lifecycle.running(run_dir) is None
        assert lifecycle.stop(run_dir) is None
        assert stranger.poll() is None
        assert known.alive
        stranger.communicate(b"\n")
    assert not known.alive


def test_a_wrong_setting_leaves_a_server_alone_and_nothing_behind(
    run_dir: Path, mlp_version: Version, tmp_path: Path
) -> None:
    cases = {
        "batchsize: 4\n": "unknown key batchsize; expected batchSize",
        "batchSize: many\n": "batchSize: 'many'; expected a whole number",
        "maxBatchDelay: 0\n": "maxBatchDelay: 0; expected a whole number of at least 1",
        "asyncCommunication: true\n": "asyncCommunication: with it, requests in flight",
        "minWorkers: 1\nmaxWorkers: 2\n": "make them equal",
        "monteCarlo:\n  batch: 2\n": r"unknown key monteCarlo\.batch",
        "- batchSize\n": "expected keys such as",
        "batchSize: [\n": "cannot be read",
    }
    path = tmp_path / "model-config.yaml"
    for text, expected in cases.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=expected):
            lifecycle.start(run_dir, [mlp_version], options(model_config=path))
    path = tmp_path / "config.properties"
    for text, expected in {
        "inference_address=http://0.0.0.0:80\n": r":1: inference_address is not set here: --port",
        "# fine\nallowed_urls=.*\n": ":2: allowed_urls is not set here",
        "max_request_size\n": "is not KEY=VALUE",
        "max_response_size=12\n": "max_response_size=12; expected bytes",
    }.items():
        path.write_text(text)
        with pytest.raises(UsageError, match=expected):
            lifecycle.start(run_dir, [mlp_version], options(properties=path))
    assert not list(run_dir.glob("server-*"))


def test_each_endpoint_gets_its_own_tuning(run_dir: Path, mlp_version: Version, tmp_path: Path) -> None:
    path = tmp_path / "model-config.yaml"
    path.write_text(
        "batchSize: 16\nhandler: {mc_samples: 30}\nmonteCarlo: {batchSize: 4, minWorkers: 3, maxWorkers: 3}\n"
    )
    deployment = deploy(run_dir, [mlp_version], options(model_config=path, backend="torchscript"))
    configs = [
        json.loads((deployment.folder / "models" / name / "model-config.yaml").read_text())
        for name in ("mlp", "mlp-mc")
    ]
    assert [c["batchSize"] for c in configs] == [16, 4]
    assert [c["minWorkers"] for c in configs] == [1, 3]
    assert [c["handler"]["backend"] for c in configs] == ["torchscript"] * 2
    assert [c["handler"]["mc_samples"] for c in configs] == [30] * 2
    assert [e.workers for e in deployment.endpoints] == [1, 3]
    deployment.remove()


def test_paths_of_any_length_and_letter_are_served_from(tmp_path: Path, mlp_version: Version) -> None:
    folder = tmp_path / ("a long path " * 8) / "ünï\\cödé" / ".run"
    deployment = deploy(folder, [mlp_version], options())
    assert len(str(deployment.scratch).encode()) < 100, "a Unix socket's path is short"
    text = (deployment.folder / "config.properties").read_text("ascii")
    assert "\\u00fc" in text
    assert "\\\\c\\u00f6" in text
    deployment.remove()
    assert not deployment.scratch.exists()
    assert not deployment.folder.exists()


@pytest.mark.slow
def test_a_server_runs_from_a_path_with_spaces_and_umlauts(tmp_path: Path, mlp_version: Version) -> None:
    run_dir = tmp_path / "ein Ördner, mit=Zeichen" / ".run"
    try:
        deployment = lifecycle.start(run_dir, [mlp_version], options(monte_carlo=False))
        assert ask(deployment.url).status_code == 200
    finally:
        lifecycle.stop(run_dir)


def test_other_machines_need_tls_and_a_token(run_dir: Path, mlp_version: Version) -> None:
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0: .* need TLS.*certificate_file.*--no-tls"):
        deploy(run_dir, [mlp_version], options(host="0.0.0.0"))
    assert not list(run_dir.glob("server-*"))
    deployment = deploy(run_dir, [mlp_version], options(host="0.0.0.0", tls=False))
    text = (deployment.folder / "config.properties").read_text("ascii")
    assert "disable_token_authorization=false" in text
    assert "inference_address=http://0.0.0.0:" in text
    assert f"management_address=unix:{deployment.scratch}/" in text
    assert deployment.folder.stat().st_mode & 0o077 == 0, "no other user reaches the socket"
    assert deployment.folder.stat().st_mode & 0o077 == 0, "the token lies in it"
    deployment.remove()


@pytest.mark.slow
def test_with_tls_and_token_only_who_has_both_gets_in(
    run_dir: Path, mlp_version: Version, tmp_path: Path
) -> None:
    keytool = java().with_name("keytool")
    store, certificate = tmp_path / "keys.p12", tmp_path / "server.pem"
    common = ["-alias", "server", "-keystore", str(store), "-storepass", "secret"]
    name = ["-keyalg", "RSA", "-dname", "CN=localhost", "-ext", "SAN=dns:localhost,ip:127.0.0.1"]
    subprocess.run([keytool, "-genkeypair", *common, *name, "-storetype", "PKCS12"], check=True)
    subprocess.run([keytool, "-exportcert", "-rfc", "-file", certificate, *common], check=True)
    properties = tmp_path / "config.properties"
    properties.write_text(f"keystore={store}\nkeystore_pass=secret\n")
    chosen = options(host="0.0.0.0", properties=properties, monte_carlo=False)
    deployment = lifecycle.start(run_dir, [mlp_version], chosen)
    assert deployment.url.startswith("https://127.0.0.1:")
    token = run_dir / "token"
    assert token.stat().st_mode & 0o077 == 0
    row = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
    with Client(deployment.url, token=token.read_text(), certificates=certificate) as client:
        assert client.predict("mlp", [row])[0].label in "abcd"
    with (
        Client(deployment.url, certificates=certificate) as client,
        pytest.raises(ServerError, match="lets nobody in without its token"),
    ):
        client.predict("mlp", [row])
    with Client(deployment.url, token=token.read_text()) as client, pytest.raises(ServerError, match="CERT"):
        client.predict("mlp", [row])
    plain = deployment.url.replace("https", "http")
    with (
        Client(plain, token=token.read_text()) as client,
        pytest.raises(RequestError, match=r"only .* HTTPS"),
    ):
        client.predict("mlp", [row])
    lifecycle.stop(run_dir)
    assert not token.exists()
