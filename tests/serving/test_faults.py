"""Each row of docs/faults.md, done to a real server or store: the page and the server cannot part.

Clients ask all the while. Every answer with status 200 is computed again in numpy and compared; every other
one must be of a kind that the page names.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from scipy.special import softmax
from wire import Request
from witness import Question, Witnesses

from dropserve.dropout.masks import draw
from dropserve.serving import torchserve
from dropserve.serving.deployment import Deployment
from dropserve.serving.runtime import free_ports
from dropserve.serving.supervisor import State
from dropserve.store import Store

pytestmark = pytest.mark.slow  # kills servers of its own

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text("utf-8")
PLAIN, DOUBT = "/predictions/mlp", "/predictions/mlp-mc"
SAMPLES = 20
_STEADY = 20  # good answers before a fault, and after it


@dataclass(frozen=True)
class Row:
    """A row of the page: what clients may see, how long it may last, what the operator reads."""

    clients: frozenset[str]
    seconds: float
    operator: str


def rows() -> dict[str, Row]:
    """By the name of the test."""
    found: dict[str, Row] = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and cells[4].strip("` |").startswith("test_"):
            _, clients, back, operator, test = cells
            seen = frozenset(re.findall(r"`(\d{3}|refused|reset|timeout)`", clients))
            limit = re.search(r"within (\d+) s", back)
            pattern = re.search(r"`([^`]+)`", operator)
            assert pattern, line
            found[test.strip("` |")] = Row(seen, float(limit[1]) if limit else 0.0, pattern[1])
    return found


ROWS = rows()


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.node.name]


def says(text: str, pattern: str) -> bool:
    """``...`` in the page stands for any text, and any white space for a line's end."""
    literal = re.sub(r"([*?\[])", r"[\1]", pattern).replace("...", "*")
    return fnmatch.fnmatchcase(" ".join(text.split()), f"*{literal}*")


def test_every_row_has_its_test_and_every_test_its_row() -> None:
    tests = {name for name in globals() if name.startswith("test_")}
    assert len(ROWS) >= 9
    assert set(ROWS) == tests - {"test_every_row_has_its_test_and_every_test_its_row"}


class Server:
    """A project with a model store, served by the command line as an operator does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "model_store")
        self.run_dir = folder / ".run"
        self.port = free_ports(1)[0]
        shutil.copytree(ROOT / "serving", folder / "serving")
        config = folder / "serving" / "model-config.yaml"
        text, changed = re.subn(
            r"^responseTimeout: \d+", "responseTimeout: 5", config.read_text(), flags=re.MULTILINE
        )
        assert changed == 1
        config.write_text(text)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        line = [str(Path(sys.executable).parent / "dropserve"), *words]
        environment = os.environ | {"COLUMNS": "500"}
        return subprocess.run(
            line, cwd=self.folder, capture_output=True, text=True, env=environment, check=False
        )

    def serve(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.command("serve", "mlp", "--port", str(self.port), *words)

    def state(self) -> State:
        state = torchserve.running(self.run_dir)
        assert state is not None
        return state

    @property
    def deployment(self) -> Deployment:
        return self.state().deployment

    def worker(self, endpoint: str) -> psutil.Process:
        frontend = self.state().frontend
        assert frontend is not None
        children = psutil.Process(frontend.pid).children(recursive=True)
        (found,) = [process for process in children if Path(process.cwd()).name == endpoint]
        return found

    def log(self, name: str) -> str:
        return (self.run_dir / "logs" / name).read_text("utf-8", "replace")

    def wait_whole(self, seconds: float = 60) -> None:
        """Until every worker is READY."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                deployment = self.deployment
                url = f"http://127.0.0.1:{deployment.management_port}/models"
                books = [httpx.get(f"{url}/{e.name}").json()[0]["workers"] for e in deployment.endpoints]
                if all(worker["status"] == "READY" for workers in books for worker in workers):
                    return
            except (httpx.HTTPError, AssertionError, KeyError):
                pass
            time.sleep(0.2)
        pytest.fail("the server did not become whole again")


def questions(mlp: Any) -> list[Question]:
    """Plain and Monte Carlo, each with its recomputation in numpy."""
    x = np.random.default_rng(7).normal(size=(8, 6)).round(3).astype(np.float32)
    plain = softmax(mlp(x).astype(np.float64), axis=-1)
    masks = draw([mlp.site], SAMPLES, seed=3)["drop.scale"]
    samples = softmax(np.stack([mlp(x, mask) for mask in masks]).astype(np.float64), axis=-1)
    found: list[Question] = []
    for i, row in enumerate(x.astype(float).round(3).tolist()):
        body = {"instances": [row]}
        found.append(Question(_post(PLAIN, body), _judge(plain[i])))
        settings = {"mc_samples": SAMPLES, "mc_seed": 3}
        asked = _post(DOUBT, body | {"parameters": settings})
        found.append(Question(asked, _judge(samples.mean(0)[i], samples.std(0)[i])))
    return found


def _post(path: str, document: Mapping[str, Any]) -> Request:
    return Request("good", path, json.dumps(document).encode())


def _judge(mean: np.ndarray, std: np.ndarray | None = None) -> Callable[[Mapping[str, Any]], str]:
    def wrong(document: Mapping[str, Any]) -> str:
        (prediction,) = document["predictions"]
        found = list(prediction["probabilities"].values())
        if not np.allclose(found, mean, rtol=1e-5, atol=1e-7):
            return f"{found} where numpy gives {mean}"
        if std is None:
            return "" if "uncertainty" not in prediction else "uncertainty that nobody asked for"
        spread = list(prediction["uncertainty"]["standard_deviation"].values())
        return "" if np.allclose(spread, std, rtol=1e-4, atol=1e-7) else f"{spread} where numpy gives {std}"

    return wrong


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
    if torchserve.running(project.run_dir) is None:
        done = project.serve("--version", "1")
        assert done.returncode == 0, done.stdout + done.stderr
    project.wait_whole()
    return project


def endure(
    server: Server, mlp: Any, row: Row, fault: Callable[[], None], *, broken: str, spared: str | None = None
) -> Witnesses:
    """Let clients ask, do harm, and hold what they saw against the page."""
    witnesses = Witnesses(server.deployment.url, questions(mlp), timeout=20)
    with witnesses:
        for path in (PLAIN, DOUBT):
            witnesses.wait_for(0.0, path, _STEADY, 60)
        moment = time.monotonic()
        fault()
        time.sleep(0.3)  # what was already answered does not count
        witnesses.wait_for(time.monotonic(), broken, _STEADY, row.seconds + 30)
        if spared is None:
            witnesses.wait_for(
                time.monotonic(), DOUBT if broken == PLAIN else PLAIN, _STEADY, row.seconds + 30
            )
    assert witnesses.wrong() == []
    seen = {path: witnesses.outcomes(path) for path in (PLAIN, DOUBT)}
    silence = witnesses.silence(broken, moment)
    print(f"\n{row.operator}: {seen}, {silence:.1f} s without a good answer on {broken}")
    assert set(seen[broken]) - {"200"} <= row.clients
    assert seen[broken].total() > seen[broken]["200"], "the fault came too late to be seen"
    assert silence <= row.seconds
    if spared is not None:
        assert set(seen[spared]) == {"200"}, "the other endpoint never fails"
        assert witnesses.silence(spared, moment) < 5, "nor pauses for long"
    return witnesses


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
        witnesses.wait_for(0.0, PLAIN, _STEADY, 60)
        os.kill(state.supervisor.pid, signal.SIGKILL)
        witnesses.wait_for(time.monotonic(), PLAIN, _STEADY, 60)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) | set(witnesses.outcomes(DOUBT)) == {"200"}
    family = psutil.Process(state.frontend.pid).children(recursive=True)
    done = served.command("stop")
    assert says(done.stdout, row.operator)
    assert not [process for process in family if process.is_running()]
    assert torchserve.running(served.run_dir) is None


@pytest.mark.slow
def test_a_damaged_copy(served: Server, mlp: Any, row: Row) -> None:
    """The unpacked archive that workers load from; the one that runs has it in memory already."""
    (graph,) = served.run_dir.glob("server-*/models/mlp/model.onnx")
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    witnesses = Witnesses(served.deployment.url, questions(mlp), timeout=5)
    with witnesses:
        witnesses.wait_for(0.0, PLAIN, _STEADY, 60)
        moment = time.monotonic()
        served.worker("mlp").send_signal(signal.SIGKILL)
        deadline = moment + 60
        while not says(served.log("model_log.log"), row.operator) and time.monotonic() < deadline:
            time.sleep(0.2)
        witnesses.wait_for(time.monotonic(), DOUBT, _STEADY, 60)
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
        witnesses.wait_for(0.0, PLAIN, _STEADY, 60)
        done = served.serve("--version", "2")
        time.sleep(0.5)
        failed = time.monotonic()
        assert done.returncode == 1
        witnesses.wait_for(failed, PLAIN, _STEADY, 20)
    assert says(done.stderr, row.operator)
    assert witnesses.wrong() == []
    assert set(witnesses.outcomes(PLAIN)) - {"200"} <= row.clients


def test_a_corrupted_file_in_the_store(
    tmp_path: Path, mlp: Any, row: Row, publish_version: Callable[..., Any]
) -> None:
    server = Server(tmp_path)
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


def test_a_port_in_use(
    server: Deployment, tmp_path: Path, mlp: Any, row: Row, publish_version: Callable[..., Any]
) -> None:
    """The port of a server that answers; it goes on."""
    other = Server(tmp_path)
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
    assert torchserve.running(other.run_dir) is None


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
