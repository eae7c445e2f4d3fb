"""Rows of docs/faults.md that the ASGI host and Ray Serve share, done to a real server of each."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest
from attacks import dump
from ruin import DOUBT, PLAIN, STEADY, Row, Server, endure, questions, rows, says
from wire import Request, send
from witness import Witnesses

from dropserve.serving import lifecycle

pytestmark = pytest.mark.slow  # kills servers of its own

ROWS = {engine: rows(engine) for engine in ("asgi", "ray")}
LOG = "model_log.log"
PATIENCE = 15  # longer than a worker takes to load on a busy machine, or waiting requests would be refused


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test on every host that has a row for it."""
    if "engine" in metafunc.fixturenames:
        name = metafunc.function.__name__
        metafunc.parametrize("engine", [e for e in ROWS if name in ROWS[e]], scope="module")


@pytest.fixture
def row(request: pytest.FixtureRequest, engine: str) -> Row:
    return ROWS[engine][request.node.originalname]


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    tests = {name for name in globals() if name.startswith("test_")}
    assert set(ROWS["asgi"]) == tests - {"test_every_row_has_its_test_and_every_test_its_row"}


@pytest.fixture(scope="module")
def project(
    engine: str, tmp_path_factory: pytest.TempPathFactory, mlp: Any, publish_version: Callable[..., Any]
) -> Iterator[Server]:
    """Served once for all tests that leave it whole."""
    server = Server(tmp_path_factory.mktemp("faults"), "--engine", engine, patience=PATIENCE)
    publish_version(server.store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    yield server
    server.command("stop")


@pytest.fixture
def whole(project: Server) -> Server:
    """The same, running and whole."""
    if lifecycle.running(project.run_dir) is None:
        done = project.serve("--version", "1")
        assert done.returncode == 0, done.stdout + done.stderr
    project.wait_whole()
    return project


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> Callable[[], None]:
    return lambda: process.send_signal(number)


def server_process(server: Server) -> psutil.Process:
    frontend = server.state().frontend
    assert frontend is not None
    return psutil.Process(frontend.pid)


def test_a_killed_worker(whole: Server, mlp: Any, row: Row) -> None:
    before = whole.worker("mlp-mc")
    witnesses = endure(whole, mlp, row, kill(before), broken=DOUBT, spared=PLAIN)
    assert set(witnesses.outcomes(DOUBT)) == {"200"}, "what it held was asked again"
    assert whole.worker("mlp-mc").pid != before.pid
    assert says(whole.log(LOG), row.operator)


def test_a_request_that_kills(whole: Server, mlp: Any, row: Row) -> None:
    """Two workers die while they compute one long request; who was in the same batch is answered."""
    many = [[i / 200, -1, 0.25, 2, 0, 1] for i in range(200)]
    long = Request("long", DOUBT, dump({"instances": many, "parameters": {"mc_samples": 1000}}))
    url = whole.deployment.url
    ready = f"http://127.0.0.1:{whole.deployment.management_port}/v2/models/mlp-mc/ready"
    mates = [question for question in questions(mlp) if question.request.path == DOUBT][:4]
    plain = [question for question in questions(mlp) if question.request.path == PLAIN]
    first = whole.worker("mlp-mc")
    with (
        Witnesses(url, plain, timeout=20) as witnesses,
        httpx.Client() as http,
        ThreadPoolExecutor(5) as pool,
    ):
        first.suspend()
        culprit = pool.submit(send, url, long)
        time.sleep(0.5)  # it is the first of the batch, and so the first that is asked again
        beside = [pool.submit(send, url, mate.request) for mate in mates]
        time.sleep(0.5)
        first.kill()
        deadline = time.monotonic() + 30
        while http.get(ready).status_code == 200:
            assert time.monotonic() < deadline
        while http.get(ready).status_code != 200:
            assert time.monotonic() < deadline
        whole.worker("mlp-mc").kill()  # within the tenths of a second that the long request takes
        reply = culprit.result()
        found = [one.result() for one in beside]
    assert str(reply.status) in row.clients
    assert b"its operator finds the cause in the log under" in reply.body
    assert [one.status for one in found] == [200] * len(mates)
    assert [mate.wrong(json.loads(one.text)) for mate, one in zip(mates, found, strict=True)] == [""] * 4
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) == {"200"}
    assert says(whole.log(LOG), row.operator)


def test_a_worker_that_hangs(whole: Server, mlp: Any, row: Row) -> None:
    fault = kill(whole.worker("mlp-mc"), signal.SIGSTOP)
    witnesses = endure(whole, mlp, row, fault, broken=DOUBT, spared=PLAIN)
    assert witnesses.outcomes(DOUBT)["504"] <= 8, "its batch, no more"
    assert says(whole.log(LOG), row.operator)


def test_a_killed_server(whole: Server, mlp: Any, row: Row) -> None:
    before, worker = whole.state().restarts, whole.worker("mlp-mc")
    endure(whole, mlp, row, kill(server_process(whole)), broken=PLAIN)
    whole.wait_whole()
    assert whole.state().restarts == before + 1
    dead = not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE  # nobody may have buried it yet
    assert dead, "a worker does not outlive its server"
    assert says((whole.run_dir / "server.json").read_text(), row.operator)


def test_a_server_that_hangs(whole: Server, mlp: Any, row: Row) -> None:
    before = whole.state().restarts
    endure(whole, mlp, row, kill(server_process(whole), signal.SIGSTOP), broken=PLAIN)
    whole.wait_whole()
    assert whole.state().restarts == before + 1
    assert says(whole.log("supervisor.log"), row.operator)


def test_a_killed_supervisor(whole: Server, mlp: Any, row: Row) -> None:
    state = whole.state()
    witnesses = Witnesses(whole.deployment.url, questions(mlp))
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        witnesses.wait_for(time.monotonic(), PLAIN, STEADY, 60)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) | set(witnesses.outcomes(DOUBT)) == {"200"}
    family = [server_process(whole), *server_process(whole).children(recursive=True)]
    done = whole.command("stop")
    assert says(done.stdout, row.operator)
    assert not [process for process in family if process.is_running()]
    assert lifecycle.running(whole.run_dir) is None


def test_a_stop_under_load(whole: Server, mlp: Any, row: Row) -> None:
    """Everything that was accepted is answered; no connection is cut."""
    family = [server_process(whole), *server_process(whole).children(recursive=True)]
    witnesses = Witnesses(whole.deployment.url, questions(mlp), threads=8)
    with witnesses:
        for path in (PLAIN, DOUBT):
            witnesses.wait_for(0.0, path, STEADY, 60)
        done = whole.command("stop")
    assert says(done.stdout, row.operator)
    assert witnesses.wrong() == []
    for path in (PLAIN, DOUBT):
        assert set(witnesses.outcomes(path)) - {"200"} <= row.clients
        assert witnesses.outcomes(path)["refused"] > 0
    assert not [process for process in family if process.is_running()]


def test_a_damaged_copy(whole: Server, mlp: Any, row: Row) -> None:
    """The unpacked archive that workers load from; the one that runs has it in memory already."""
    (graph,) = whole.run_dir.glob("server-*/models/mlp-mc/head.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    url = whole.deployment.url
    with Witnesses(url, questions(mlp), timeout=20) as witnesses:
        witnesses.wait_for(0.0, DOUBT, STEADY, 60)
        whole.worker("mlp-mc").kill()
        deadline = time.monotonic() + 60
        while not says(whole.log(LOG), row.operator) and time.monotonic() < deadline:
            time.sleep(0.2)
        refused = httpx.post(f"{url}{DOUBT}", content=questions(mlp)[1].request.body)
        state = httpx.get(f"{url}/v2/health/ready")
        witnesses.wait_for(time.monotonic(), PLAIN, STEADY, 60)
    assert says(whole.log(LOG), row.operator)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(DOUBT)) - {"200"} == row.clients
    assert set(witnesses.outcomes(PLAIN)) == {"200"}
    assert refused.status_code == state.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert "head.onnx" in refused.json()["error"]
    assert state.json()["ready"] is False
    assert "mlp-mc: its worker cannot load" in state.json()["error"]
    assert httpx.get(f"{url}/v2/models/mlp/ready").status_code == 200
    assert whole.serve("--version", "1").returncode == 0, "a fresh copy from the store mends it"
    asked = httpx.post(f"{whole.deployment.url}{DOUBT}", content=questions(mlp)[1].request.body)
    assert asked.status_code == 200


def test_a_model_that_fails_to_load(
    whole: Server, mlp: Any, row: Row, publish_version: Callable[..., Any]
) -> None:
    publish_version(whole.store, "mlp", {"model.onnx": b"no graph"}, labels=("a", "b", "c", "d"))
    witnesses = Witnesses(whole.deployment.url, questions(mlp))
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        done = whole.serve("--version", "2")
        witnesses.wait_for(time.monotonic(), PLAIN, STEADY, 20)
    assert done.returncode == 1
    assert says(done.stderr, row.operator)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) == {"200"}
