"""Each row of docs/faults.md, done to a real server or store: the page and the server cannot part.

Clients ask all the while. Every answer with status 200 is computed again in numpy and compared; every other
one must be of a kind that the page names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ruin import DOUBT, PLAIN, ROOT, STEADY, Row, Server, endure, questions, rows, says
from witness import Witnesses

from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment

pytestmark = pytest.mark.slow  # kills servers of its own

ROWS = rows("torchserve")
EVERY_ENGINE = pytest.mark.parametrize("engine", ["torchserve", "asgi", "ray"])  # none has started yet


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.node.originalname]


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    tests = {name for name in globals() if name.startswith("test_")}
    assert len(ROWS) >= 9
    assert set(ROWS) == tests - {"test_every_row_has_its_test_and_every_test_its_row"}


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, mlp: Any, publish_version: Callable[..., Any]
) -> Iterator[Server]:
    """Served once for all tests that leave it whole."""
    server = Server(tmp_path_factory.mktemp("faults"))
    publish_version(server.store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    yield server
    server.command("stop")


@pytest.fixture
def served(project: Server) -> Server:
    """The same, running and whole."""
    if lifecycle.running(project.run_dir) is None:
        done = project.serve("--version", "1")
        assert done.returncode == 0, done.stdout + done.stderr
    project.wait_whole()
    return project


@pytest.mark.slow
def test_a_killed_worker(served: Server, mlp: Any, row: Row) -> None:
    fault = lambda: served.worker("mlp").send_signal(signal.SIGKILL)  # noqa: E731  # done later
    witnesses = endure(served, mlp, row, fault, broken=PLAIN, spared=DOUBT)
    assert witnesses.outcomes(PLAIN).total() - witnesses.outcomes(PLAIN)["200"] <= 16, "its batch, no more"
    assert says(served.log("ts_log.log"), row.operator)


@pytest.mark.slow
def test_a_killed_monte_carlo_worker(served: Server, mlp: Any, row: Row) -> None:
    fault = lambda: served.worker("mlp-mc").send_signal(signal.SIGKILL)  # noqa: E731  # done later
    endure(served, mlp, row, fault, broken=DOUBT, spared=PLAIN)
    assert says(served.log("ts_log.log"), row.operator)


@pytest.mark.slow
def test_a_worker_that_hangs(served: Server, mlp: Any, row: Row) -> None:
    fault = lambda: served.worker("mlp").send_signal(signal.SIGSTOP)  # noqa: E731  # done later
    endure(served, mlp, row, fault, broken=PLAIN, spared=DOUBT)
    assert says(served.log("ts_log.log"), row.operator)


@pytest.mark.slow
def test_a_killed_frontend(served: Server, mlp: Any, row: Row) -> None:
    before = served.state()
    assert before.frontend is not None
    workers = [served.worker(name) for name in ("mlp", "mlp-mc")]
    pid = before.frontend.pid
    endure(served, mlp, row, lambda: os.kill(pid, signal.SIGKILL), broken=PLAIN)
    served.wait_whole()
    after = served.state()
    assert after.restarts == before.restarts + 1
    assert not [worker for worker in workers if worker.is_running()], "the old workers are gone"
    assert says((served.run_dir / "server.json").read_text(), row.operator)


@pytest.mark.slow
def test_a_killed_supervisor(served: Server, mlp: Any, row: Row) -> None:
    state = served.state()
    assert state.frontend is not None
    witnesses = Witnesses(served.deployment.url, questions(mlp))
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        witnesses.wait_for(time.monotonic(), PLAIN, STEADY, 60)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) | set(witnesses.outcomes(DOUBT)) == {"200"}
    family = psutil.Process(state.frontend.pid).children(recursive=True)
    done = served.command("stop")
    assert says(done.stdout, row.operator)
    assert not [process for process in family if process.is_running()]
    assert lifecycle.running(served.run_dir) is None


@pytest.mark.slow
def test_a_damaged_copy(served: Server, mlp: Any, row: Row) -> None:
    """The unpacked archive that workers load from; the one that runs has it in memory already."""
    (graph,) = served.run_dir.glob("server-*/models/mlp/model.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    witnesses = Witnesses(served.deployment.url, questions(mlp), timeout=5)
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        moment = time.monotonic()
        served.worker("mlp").send_signal(signal.SIGKILL)
        deadline = moment + 60
        while not says(served.log("model_log.log"), row.operator) and time.monotonic() < deadline:
            time.sleep(0.2)
        witnesses.wait_for(time.monotonic(), DOUBT, STEADY, 60)
    assert says(served.log("model_log.log"), row.operator)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) - {"200"} <= row.clients
    assert set(witnesses.outcomes(DOUBT)) == {"200"}
    assert not [
        e for e in witnesses.events if e.endpoint == PLAIN and e.asked > moment + 1 and e.outcome == "200"
    ]
    assert served.serve("--version", "1").returncode == 0, "a fresh copy from the store mends it"
    assert (
        httpx.post(f"{served.deployment.url}{PLAIN}", content=questions(mlp)[0].request.body).status_code
        == 200
    )


@pytest.mark.slow
def test_a_model_that_fails_to_load(
    served: Server, mlp: Any, row: Row, publish_version: Callable[..., Any]
) -> None:
    files = {"model.onnx": b"no graph"}
    publish_version(served.store, "mlp", files, labels=("a", "b", "c", "d"))
    witnesses = Witnesses(served.deployment.url, questions(mlp))
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, STEADY, 60)
        done = served.serve("--version", "2")
        time.sleep(0.5)
        failed = time.monotonic()
        assert done.returncode == 1
        witnesses.wait_for(failed, PLAIN, STEADY, 20)
    assert says(done.stderr, row.operator)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) - {"200"} <= row.clients


@EVERY_ENGINE
def test_a_corrupted_file_in_the_store(
    engine: str, tmp_path: Path, mlp: Any, row: Row, publish_version: Callable[..., Any]
) -> None:
    server = Server(tmp_path, "--engine", engine)
    publish_version(server.store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    victim = tmp_path / "model_store" / "mlp" / "1" / "head.onnx"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(content)
    done = server.serve()
    assert done.returncode == 1
    assert says(done.stderr, row.operator), done.stderr
    assert not server.run_dir.exists(), "nothing was prepared"


@EVERY_ENGINE
def test_a_port_in_use(
    engine: str,
    server: Deployment,
    tmp_path: Path,
    mlp: Any,
    row: Row,
    publish_version: Callable[..., Any],
) -> None:
    """The port of a server that answers; it goes on."""
    other = Server(tmp_path, "--engine", engine)
    other.port = server.port
    publish_version(other.store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    witnesses = Witnesses(server.url, questions(mlp), threads=1)
    with witnesses:
        done = other.serve()
        witnesses.wait_for(time.monotonic(), PLAIN, 5, 30)
    assert done.returncode == 1
    assert says(done.stderr, row.operator), done.stderr
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) == {"200"}
    assert lifecycle.running(other.run_dir) is None


DISK = """
mount -t tmpfs -o size={size}k none model_store && cp -r kept/. model_store
dropserve {command}
echo "exit status $?"
dropserve models 2>&1 | cat
find model_store -name '.staging*'
"""


@pytest.mark.slow
def test_a_full_disk_at_publish(tmp_path: Path, row: Row) -> None:
    """A real file system with room for ever more of a version: each step of an export meets the end."""
    probe = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"no private file system of limited size can be mounted here: {probe.stderr.decode()}")
    project = Server(tmp_path)
    source = tmp_path / "net.py"
    source.write_text((ROOT / "benchmarks" / "stock" / "net.py").read_text())
    code = f"import torch, sys; sys.path.insert(0, {str(tmp_path)!r}); from net import Net; "
    subprocess.run(
        [sys.executable, "-c", f"{code}torch.save(Net().state_dict(), 'w.pt')"], cwd=tmp_path, check=True
    )
    words = "import net.py:Net --weights w.pt --input 64 --task classification --name mlp"
    assert project.command(*words.split()).returncode == 0
    run_size = _kilobytes(tmp_path / "model_store")
    assert project.command("export", "mlp").returncode == 0
    whole = _kilobytes(tmp_path / "model_store")
    (tmp_path / "model_store").rename(tmp_path / "kept")
    (tmp_path / "model_store").mkdir()
    commands = {"export mlp": whole, words: whole}
    version, run = whole - run_size, run_size
    room = {"export mlp": [version * part // 100 for part in (10, 50, 90)], words: [run // 2]}
    for command, start in commands.items():
        for more in room[command]:
            script = DISK.format(size=start + more + 60, command=command)
            environment = os.environ | {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "COLUMNS": "500",
            }
            line = ["unshare", "-rm", "bash", "-c", script]
            done = subprocess.run(
                line, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
            )
            said = done.stdout + done.stderr
            assert "exit status 1" in done.stdout, said
            assert says(done.stderr, row.operator), said
            assert ".staging" not in done.stdout, "nothing is left behind"
            assert "Traceback" not in said


def _kilobytes(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*"))
