"""Doing harm to a server while clients ask, and what a page promises of it."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
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
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment
from dropserve.serving.frontend import private_client
from dropserve.serving.hosts import host_named
from dropserve.serving.runtime import free_ports
from dropserve.serving.supervisor import State
from dropserve.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text("utf-8")
SECTIONS = {"torchserve": "", "asgi": "## The ASGI host", "ray": "## Ray Serve"}
PLAIN, DOUBT = "/predictions/mlp", "/predictions/mlp-mc"
SAMPLES = 20
STEADY = 20  # good answers before a fault, and after it


@dataclass(frozen=True)
class Row:
    """A row of the page: what clients may see, how long it may last, what the operator reads."""

    clients: frozenset[str]
    seconds: float
    operator: str


def rows(engine: str) -> dict[str, Row]:
    """Rows of an engine's section of the page, by the name of the test."""
    part = PAGE.partition(SECTIONS[engine])[2] if SECTIONS[engine] else PAGE
    part = re.split(r"^## ", part, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, Row] = {}
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and cells[4].strip("` |").startswith("test_"):
            _, clients, back, operator, test = cells
            seen = frozenset(re.findall(r"`(\d{3}|refused|reset|timeout)`", clients))
            limit = re.search(r"within (\d+) s", back)
            pattern = re.search(r"`([^`]+)`", operator)
            assert pattern, line
            found[test.strip("` |")] = Row(seen, float(limit[1]) if limit else 0.0, pattern[1])
    return found


def says(text: str, pattern: str) -> bool:
    """``...`` in the page stands for any text, and any white space for a line's end."""
    literal = re.sub(r"([*?\[])", r"[\1]", pattern).replace("...", "*")
    return fnmatch.fnmatchcase(" ".join(text.split()), f"*{literal}*")


class Server:
    """A project with a model store, served by the command line as an operator does it.

    Args:
        folder: of the project.
        words: for every ``dropserve serve``.
        patience: seconds until a worker must have answered.
    """

    def __init__(self, folder: Path, *words: str, patience: int = 5) -> None:
        self.folder = folder
        self.words = words
        self.store = Store(folder / "model_store")
        self.run_dir = folder / ".run"
        self.port = free_ports(1)[0]
        shutil.copytree(ROOT / "serving", folder / "serving")
        config = folder / "serving" / "model-config.yaml"
        text, changed = re.subn(
            r"^responseTimeout: \d+", f"responseTimeout: {patience}", config.read_text(), flags=re.MULTILINE
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
        return self.command("serve", "mlp", "--port", str(self.port), *self.words, *words)

    def state(self) -> State:
        state = lifecycle.running(self.run_dir)
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
                if self.state().phase == "ready" and _whole(deployment):
                    return
            except (httpx.HTTPError, AssertionError, KeyError):
                pass
            time.sleep(0.2)
        pytest.fail("the server did not become whole again")


def _whole(deployment: Deployment) -> bool:
    host = host_named(deployment.engine)
    with private_client(deployment, 5) as private:
        return all(host.ready_workers(deployment, e, private) == e.workers for e in deployment.endpoints)


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


def endure(
    server: Server, mlp: Any, row: Row, fault: Callable[[], None], *, broken: str, spared: str | None = None
) -> Witnesses:
    """Let clients ask, do harm, and hold what they saw against the page: no less and no more."""
    witnesses = Witnesses(server.deployment.url, questions(mlp), timeout=20)
    with witnesses:
        for path in (PLAIN, DOUBT):
            witnesses.wait_for(0.0, path, STEADY, 60)
        moment = time.monotonic()
        fault()
        time.sleep(0.3)  # what was already answered does not count
        witnesses.wait_for(time.monotonic(), broken, STEADY, row.seconds + 30)
        if spared is None:
            witnesses.wait_for(
                time.monotonic(), DOUBT if broken == PLAIN else PLAIN, STEADY, row.seconds + 30
            )
    assert witnesses.wrong() == []
    seen = {path: witnesses.outcomes(path) for path in (PLAIN, DOUBT)}
    silence = witnesses.silence(broken, moment)
    print(f"\n{row.operator}: {seen}, {silence:.1f} s without a good answer on {broken}")
    assert set(seen[broken]) - {"200"} <= row.clients
    if row.clients:
        assert seen[broken].total() > seen[broken]["200"], "the fault came too late to be seen"
    assert silence <= row.seconds
    if spared is not None:
        assert set(seen[spared]) == {"200"}, "the other endpoint never fails"
        assert witnesses.silence(spared, moment) < 5, "nor pauses for long"
    return witnesses
