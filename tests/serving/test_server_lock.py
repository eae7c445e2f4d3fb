"""Whose server runs is told by a lock that it holds, whatever clocks, copies and torn files say."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dropserve.errors import ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Options
from dropserve.serving.process import LockFile, ProcessId
from dropserve.serving.runtime import free_ports, unreachable_address
from dropserve.serving.supervisor import LOCK, STATE, read_state
from dropserve.store import Store, Stored

ROOT = Path(__file__).parents[2]
STAGE = ROOT / "serving"
Version = Stored[VersionManifest]
HOLD = "import sys, fcntl, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True)"


def options(**changes: Any) -> Options:
    files = (STAGE / "model-config.yaml", STAGE / "config.properties", STAGE / "log4j2.xml")
    chosen = {"port": free_ports(1)[0], "engine": "asgi", "monte_carlo": False}
    return Options(*files, **(chosen | changes))  # type: ignore[arg-type]  # a mapping of both kinds


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "project" / ".run"
    yield folder
    lifecycle.stop(folder)


def answers(url: str) -> bool:
    row = json.dumps({"instances": [[0.5, -1.0, 0.25, 2.0, 0.0, 1.0]]})
    try:
        return httpx.post(f"{url}/predictions/mlp", content=row, timeout=20).status_code == 200
    except httpx.TransportError:
        return False


def test_a_lock_is_held_until_the_last_process_that_inherited_it_has_ended(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "lock")
    assert not lock.is_held()
    assert lock.acquire()
    assert lock.is_held()
    assert not LockFile(tmp_path / "lock").acquire(0.1)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor]
    ) as heir:
        os.close(lock.descriptor)
        assert lock.is_held()
        assert [holder.pid for holder in lock.holders()] == [heir.pid]
        heir.kill()
    assert not lock.is_held()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    line = [sys.executable, "-c", f"{HOLD}; time.sleep(60)", str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert LockFile(path).is_held()
        holder.kill()
    taken = LockFile(path)
    assert taken.acquire()
    taken.release()
    assert not path.exists()


def test_the_identity_of_a_process_is_not_the_wall_clock() -> None:
    own = ProcessId.of(os.getpid())
    assert own.alive
    assert not ProcessId(own.pid, own.started + 1).alive
    if sys.platform == "linux":  # in ticks since boot: less than a machine can have run in 100 years
        assert own.started < 100 * 365 * 86400 * os.sysconf("SC_CLK_TCK")
        assert own.started / os.sysconf("SC_CLK_TCK") < time.clock_gettime(time.CLOCK_BOOTTIME) + 1


def test_no_client_can_connect_to_an_unreachable_address() -> None:
    address = unreachable_address()
    if sys.platform == "linux":
        assert address != "127.0.0.1"


@pytest.mark.slow
def test_of_two_that_serve_at_once_one_wins_and_the_other_says_so(
    run_dir: Path, mlp_version: Version
) -> None:
    found: list[Any] = []

    def serve() -> None:
        try:
            found.append(lifecycle.start(run_dir, [mlp_version], options()))
        except ServerError as error:
            found.append(error)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [each for each in found if isinstance(each, ServerError)]
    assert len(errors) == 2, errors
    (won,) = (each for each in found if not isinstance(each, ServerError))
    assert all("is starting a server in this folder" in str(error) for error in errors)
    assert answers(won.url)
    assert len(list(run_dir.glob("server-*"))) == 1
    state = lifecycle.running(run_dir)
    assert state is not None
    assert state.deployment == won
    assert lifecycle.stop(run_dir) == won
    assert not answers(won.url)
    assert [path.name for path in run_dir.iterdir()] == ["logs"]


@pytest.mark.slow
def test_a_state_with_other_times_and_a_torn_one_are_found_all_the_same(
    run_dir: Path, mlp_version: Version
) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options())
    state = read_state(run_dir)
    assert state is not None
    assert state.frontend is not None
    everyone = [psutil.Process(each.pid) for each in (state.supervisor, state.frontend)]
    moved = json.loads((run_dir / STATE).read_text())
    for name in ("supervisor", "frontend"):
        moved[name]["started"] += 1.0
    (run_dir / STATE).write_text(json.dumps(moved))
    found = lifecycle.running(run_dir)
    assert found is not None
    assert found.deployment == deployment
    (run_dir / STATE).write_text('{"supervisor": {"pid"')
    with pytest.raises(
        ServerError, match=rf"process .*{state.supervisor.pid}.*cannot be read.*dropserve stop"
    ):
        lifecycle.running(run_dir)
    assert lifecycle.stop(run_dir) == deployment
    assert not [each for each in everyone if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert [path.name for path in run_dir.iterdir()] == ["logs"]


@pytest.mark.slow
def test_stop_in_a_copy_of_the_folder_names_the_original_and_ends_nothing(
    run_dir: Path, mlp_version: Version, tmp_path: Path
) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options())
    copy = tmp_path / "copy"
    shutil.copytree(run_dir.parent, copy, ignore=lambda *_: ["tmp"])
    with pytest.raises(ServerError, match=rf"copy is a copy of {run_dir.parent}.*{deployment.url}"):
        lifecycle.stop(copy / ".run")
    assert answers(deployment.url)
    assert lifecycle.running(copy / ".run") is None
    assert lifecycle.stop(run_dir) == deployment
    assert lifecycle.stop(copy / ".run") is None, "the original has ended: the copy's leftovers are removed"


@pytest.mark.slow
def test_a_killed_supervisor_leaves_a_server_that_is_still_ours(run_dir: Path, mlp_version: Version) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options())
    state = read_state(run_dir)
    assert state is not None
    os.kill(state.supervisor.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(state.supervisor.pid)], timeout=5)
    assert LockFile(run_dir / LOCK).is_held()
    assert answers(deployment.url)
    assert lifecycle.stop(run_dir) == deployment
    assert not answers(deployment.url)


def test_an_address_that_torchserve_cannot_have_is_refused(run_dir: Path, mlp_version: Version) -> None:
    with pytest.raises(UsageError, match="TorchServe takes IPv4 addresses and names alone"):
        lifecycle.start(run_dir, [mlp_version], options(engine="torchserve", host="::1"))
    assert not list(run_dir.glob("*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere gRPC listens on loopback: docs/serving.md")
def test_torchserve_lets_no_other_user_reach_its_management(run_dir: Path, mlp_version: Version) -> None:
    """Every listener of the Java process is connected to: two answer, for requests and for metrics."""
    deployment = lifecycle.start(run_dir, [mlp_version], options(engine="torchserve"))
    state = read_state(run_dir)
    assert state is not None
    assert state.frontend is not None
    listeners = [
        (each.laddr.ip, each.laddr.port)
        for each in psutil.Process(state.frontend.pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    ]
    assert len(listeners) == 4, listeners  # two are gRPC's
    reached = set()
    for ip, port in listeners:
        with contextlib.suppress(OSError), socket.create_connection((ip.removeprefix("::ffff:"), port), 2):
            reached.add(port)
    assert reached == {deployment.port, deployment.metrics_port}
    assert deployment.management_socket is not None
    assert deployment.management_socket.is_socket()
    assert deployment.management_socket.parent.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_an_altered_handler_of_an_archive_never_runs(
    run_dir: Path, mlp_version: Version, tmp_path: Path
) -> None:
    deployment = lifecycle.start(run_dir, [mlp_version], options(engine="torchserve"))
    assert answers(deployment.url)
    mark = tmp_path / "it-ran"
    handler = deployment.folder / "models" / "mlp" / "handler.py"
    handler.chmod(0o600)
    handler.write_text(f"open({str(mark)!r}, 'w').close()\n{handler.read_text()}")
    state = read_state(run_dir)
    assert state is not None
    assert state.frontend is not None
    (worker,) = psutil.Process(state.frontend.pid).children(recursive=True)
    worker.kill()
    log, deadline = deployment.logs / "model_log.log", time.monotonic() + 60
    while "dropserve cannot load mlp" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "handler.py is not what was published" in log.read_text()
    assert not mark.exists()


@pytest.fixture
def project(tmp_path: Path, publish_version: Callable[..., Version], mlp: Any) -> Path:
    """A folder whose store holds one version."""
    store = Store(tmp_path / "model_store")
    publish_version(store, "mlp", mlp.files(), labels=("a", "b", "c", "d"), sites=(mlp.site,))
    return tmp_path


FULL = """
set -e
mount -t tmpfs -o size=64m none .run
dropserve serve mlp --engine asgi --port {port} --no-mc > /dev/null
pid=$(python -c "import json; print(json.load(open('.run/server.json'))['frontend']['pid'])")
dd if=/dev/zero of=.run/ballast bs=1k 2> /dev/null || true
kill -9 $pid
for i in $(seq 100); do
  curl -sf -o /dev/null localhost:{port}/v2/health/ready && echo back && break
  sleep .3
done
rm .run/ballast
sleep 3
grep -E '"(restarts|phase)"' .run/server.json
dropserve stop
"""

NO_ROOM = """
mount -t tmpfs -o size=20k none .run
dropserve serve mlp --engine asgi --port {port} --no-mc
echo "exit status $?"
find .run -mindepth 1
"""


def on_a_small_disk(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a project whose run-time folder may be mounted."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no private file system of limited size can be mounted here")
    (tmp_path / ".run").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", script.format(port=free_ports(1)[0])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "COLUMNS": "500"},
        check=False,
        timeout=200,
    )


@pytest.mark.slow
def test_a_server_that_is_killed_on_a_full_disk_comes_back(project: Path) -> None:
    done = on_a_small_disk(FULL, project)
    said = done.stdout + done.stderr
    assert "back" in done.stdout, said
    assert '"restarts": 1' in done.stdout, said
    assert '"phase": "ready"' in done.stdout, said
    assert "stopped mlp" in done.stdout, said


@pytest.mark.slow
def test_serve_on_a_full_disk_is_one_line_and_leaves_nothing(project: Path) -> None:
    done = on_a_small_disk(NO_ROOM, project)
    said = done.stdout + done.stderr
    assert "exit status 1" in done.stdout, said
    assert "error: a server cannot be prepared" in done.stderr, said
    assert "No space left on device" in done.stderr
    assert "Traceback" not in said
    assert "server-" not in done.stdout, said
