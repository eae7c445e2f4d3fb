"""Rows of Ray Serve's own in docs/faults.md, done to a real server."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruin import DOUBT, PLAIN, STEADY, Row, Server, endure, questions, rows, says
from witness import Witnesses

from dropserve.serving import lifecycle

pytestmark = pytest.mark.slow  # kills servers of its own

ROWS = rows("ray")
PATIENCE = 15


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.node.originalname]


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    here = {name for name in globals() if name.startswith("test_a_")}
    assert here <= set(ROWS)
    files = [Path(__file__).with_name(name).read_text() for name in ("test_faults_asgi.py", "test_faults.py")]
    assert set(ROWS) - here <= set(re.findall(r"def (test_a_\w+)", "".join(files)))


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, mlp: Any, publish_version: Callable[..., Any]
) -> Iterator[Server]:
    """Served once for all tests."""
    server = Server(tmp_path_factory.mktemp("faults"), "--engine", "ray", patience=PATIENCE)
    publish_version(server.store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    yield server
    server.command("stop")


@pytest.fixture
def whole(project: Server) -> Server:
    """The same, running and whole."""
    if lifecycle.running(project.run_dir) is None:
        done = project.serve()
        assert done.returncode == 0, done.stdout + done.stderr
    project.wait_whole()
    return project


def rays(server: Server, kind: str) -> psutil.Process:
    """Ray's process of this kind: ServeReplica:dropserve:dropserve, ProxyActor, raylet."""
    frontend = server.state().frontend
    assert frontend is not None
    family = psutil.Process(frontend.pid).children(recursive=True)
    (found,) = [p for p in family if p.cmdline() and re.search(rf"(^ray::|/){kind}\b", p.cmdline()[0])]
    return found


def rays_logs(server: Server) -> str:
    files = (server.run_dir / "logs" / "ray").iterdir()
    return "".join(path.read_text("utf-8", "replace") for path in files)


def test_a_killed_replica(whole: Server, mlp: Any, row: Row) -> None:
    before = rays(whole, "ServeReplica:dropserve:dropserve")
    worker = whole.worker("mlp-mc")
    witnesses = endure(whole, mlp, row, before.kill, broken=PLAIN)
    assert set(witnesses.outcomes(DOUBT)) - {"200"} <= row.clients
    whole.wait_whole()
    assert not before.is_running()
    assert not worker.is_running(), "a worker does not outlive its replica"
    assert whole.state().restarts == 0, "Ray has started it again, not the supervisor"
    assert says(rays_logs(whole), row.operator)


def test_a_replica_that_hangs(whole: Server, mlp: Any, row: Row) -> None:
    before = rays(whole, "ServeReplica:dropserve:dropserve")
    fault = lambda: before.send_signal(signal.SIGSTOP)  # noqa: E731  # done later
    endure(whole, mlp, row, fault, broken=PLAIN)
    whole.wait_whole()
    assert not before.is_running()
    assert says(whole.log("supervisor.log"), row.operator)


def test_a_killed_proxy(whole: Server, mlp: Any, row: Row) -> None:
    before, restarts = rays(whole, "ProxyActor"), whole.state().restarts
    endure(whole, mlp, row, before.kill, broken=PLAIN)
    assert rays(whole, "ProxyActor").pid != before.pid
    assert whole.state().restarts == restarts, "Ray has started it again, not the supervisor"
    assert says(rays_logs(whole), row.operator)


def test_a_killed_raylet(whole: Server, mlp: Any, row: Row) -> None:
    """What runs goes on for a while; then all is started again."""
    before = whole.state().restarts
    with Witnesses(whole.deployment.url, questions(mlp), timeout=20) as witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        moment = time.monotonic()
        rays(whole, "raylet").kill()
        while whole.state().restarts == before:
            assert time.monotonic() < moment + row.seconds
            time.sleep(0.1)
        whole.wait_whole(row.seconds)
        for path in (PLAIN, DOUBT):
            witnesses.wait_for(time.monotonic(), path, STEADY, 60)
    assert witnesses.wrong() == []
    for path in (PLAIN, DOUBT):
        assert set(witnesses.outcomes(path)) - {"200"} <= row.clients
        assert witnesses.silence(path, moment) <= row.seconds
    print(f"\n{row.operator}: {witnesses.silence(PLAIN, moment):.1f} s without a good answer")
    assert says(whole.log("supervisor.log"), row.operator)
