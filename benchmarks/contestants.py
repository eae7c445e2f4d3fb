"""Who takes turns under load: our endpoints, stock TorchServe, and what a user might take instead.

All are started before anyone is measured, so that a round meets all of them under the same weather. While
one is under load the others wait. Two of them use a tenth of a core for that, so their processes are
stopped (SIGSTOP) between their turns, supervisors too; the others are not, since some learn from how long
things take.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import answers
import started
from load import Group
from peers.catalogue import Peer
from served import NAME, SAMPLES, Subject, prepare, server_processes, serving
from stock import server

from dropserve.serving import lifecycle
from dropserve.serving.deployment import EngineName
from dropserve.serving.runtime import free_ports

LIMIT_FILES = Path(__file__).parent / "limits"


@dataclass(frozen=True)
class Contestant:
    """An address that answers, and how to know that it answers rightly.

    Attributes:
        name: how it is called in figures.
        label: how it is called in tables.
        about: what runs, in a line.
        url: where it is asked.
        bodies: the questions.
        problem: what is wrong with the document that answers a question; empty if nothing is.
        spent: processor seconds so far, by part.
        steady: whether the same question must get the same bytes.
        family: what is stopped while others are under load; None where it goes on.
    """

    name: str
    label: str
    about: str
    url: str
    bodies: list[str]
    problem: Callable[[Any, int], str]
    spent: Callable[[], dict[str, float]]
    steady: bool = False
    family: started.Family | None = None

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let its processes go on for a while."""
        if self.family:
            self.family.thaw()
        try:
            yield
        finally:
            if self.family:
                self.family.freeze()

    @property
    def key(self) -> str:
        """The name in a key of JSON."""
        return self.name.replace(" ", "_")

    def group(self, connections: int, filed: str = "") -> Group:
        """A load; every different answer is kept, to be compared."""
        return Group(filed or self.name, self.url, self.bodies, connections, kept=None)


@dataclass
class Field:
    """The contestants, and who is left out for which reason."""

    contestants: list[Contestant] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Who shall run: everyone unless names are given."""

    names: Collection[str] = ()

    def __call__(self, *names: str) -> bool:
        """Whether any of them shall."""
        return not self.names or bool(set(names) & set(self.names))


@contextlib.contextmanager
def everyone(
    folder: Path, subject: Subject, peers: Sequence[Peer], wanted: Wanted = Wanted()
) -> Iterator[Field]:
    """Start all that are wanted and installed; at the end none is left."""
    entered = Field()
    oracle = answers.Oracle(subject.probabilities(), subject.samples())
    with contextlib.ExitStack() as stack:
        for host in HOSTS:
            if wanted(*host.names):
                entered.contestants += stack.enter_context(_ours(folder / host.engine, subject, oracle, host))
        for stock in STOCK:
            if wanted(*stock.names):
                entered.contestants += stack.enter_context(
                    _stock(folder / stock.names[0], subject, oracle, stock)
                )
        for name, limit in LIMITS.items():
            if wanted(name):
                entered.contestants.append(stack.enter_context(limit(folder / name, subject)))
        for peer in peers:
            if not wanted(peer.name):
                continue
            if peer.missing:
                entered.left_out[peer.name] = f"{peer.label} is {peer.missing}"
            else:
                entered.contestants.append(
                    stack.enter_context(_peer(folder / peer.name, subject, oracle, peer))
                )
        entered.contestants = [c for c in entered.contestants if wanted(c.name)]
        yield entered


@dataclass(frozen=True)
class Host:
    """A host of ours: its endpoints' names (Monte Carlo's, if it takes part, is the second) and what runs."""

    engine: EngineName
    names: tuple[str, ...]
    label: str
    about: str
    restless: bool = False


HOSTS = (
    Host("torchserve", ("plain", "mc"), "dropserve on TorchServe", "one worker, the shipped settings"),
    Host(
        "asgi",
        ("asgi", "asgi mc"),
        "dropserve on ASGI",
        "one process of uvicorn, the shipped settings; Monte Carlo has a worker beside it",
    ),
    Host(
        "ray",
        ("ray",),
        "dropserve on Ray Serve",
        "one replica behind Ray's proxy, the shipped settings",
        restless=True,
    ),
)


@contextlib.contextmanager
def _ours(folder: Path, subject: Subject, oracle: answers.Oracle, host: Host) -> Iterator[list[Contestant]]:
    with serving(folder, subject.version, engine=host.engine) as deployment:
        url = f"{deployment.url}/predictions/{NAME}"

        def spent(endpoint: str) -> dict[str, float]:
            found = server_processes(folder / ".run")
            if host.engine == "ray":  # one request passes through several processes, and others watch them
                parts = {"server": [process for processes in found.values() for process in processes]}
            else:
                parts = {"frontend": found["frontend"], "workers": found.get(endpoint, [])}
            return {key: started.processor_seconds(processes) for key, processes in parts.items()}

        state = lifecycle.running(folder / ".run")
        family = started.Family(state.supervisor.pid) if state and host.restless else None
        try:
            yield [
                Contestant(
                    name,
                    f"{host.label}, MC of {SAMPLES}" if doubt else host.label,
                    "the Monte Carlo endpoint of the same server" if doubt else host.about,
                    f"{url}-mc" if doubt else url,
                    subject.bodies,
                    answers.mc(oracle) if doubt else answers.plain(oracle),
                    partial(spent, f"{NAME}-mc" if doubt else NAME),
                    steady=True,
                    family=family,
                )
                for name, doubt in zip(host.names, (False, True), strict=False)
            ]
        finally:
            if family:
                family.thaw()


@dataclass(frozen=True)
class Stock:
    """TorchServe as its examples lead to it, with so many workers for each model (None: its default)."""

    names: tuple[str, str]
    label: str
    about: str
    workers: int | None


STOCK = (
    Stock(
        ("stock", "stock mc"), "stock TorchServe", "default configuration and logging: a worker a core", None
    ),
    Stock(
        ("stock one", "stock one mc"),
        "stock TorchServe, one worker",
        "default configuration and logging, but one worker, as ours and the peers have",
        1,
    ),
)


@contextlib.contextmanager
def _stock(
    folder: Path, subject: Subject, oracle: answers.Oracle, stock: Stock
) -> Iterator[list[Contestant]]:
    with server.running(folder, subject.weights, stock.workers) as running:
        yield [
            Contestant(
                stock.names[0],
                stock.label,
                f"a handler on BaseHandler and an eager model, {stock.about}",
                f"{running.url}/predictions/plain",
                subject.bodies,
                answers.read_by(lambda document: document["predictions"][0], oracle),
                running.processor_seconds,
                steady=True,
            ),
            Contestant(
                stock.names[1],
                f"{stock.label}, loop of {SAMPLES}",
                f"the same with dropout on and a loop of {SAMPLES} passes",
                f"{running.url}/predictions/mc",
                subject.bodies,
                answers.drawn_anew(oracle),
                running.processor_seconds,
            ),
        ]


@contextlib.contextmanager
def _torchserve_limit(folder: Path, subject: Subject) -> Iterator[Contestant]:
    """What no handler can exceed under our settings."""
    folder.mkdir()
    constant = prepare(folder, LIMIT_FILES / "constant_handler.py")
    with serving(folder, constant.version) as deployment:
        yield Contestant(
            "limit",
            "TorchServe's limit",
            "our settings, and a worker that answers everything with the same 18 bytes",
            f"{deployment.url}/predictions/{NAME}",
            subject.bodies,
            _constant,
            lambda: {
                part: started.processor_seconds(processes)
                for part, processes in server_processes(folder / ".run").items()
                if not part.endswith("-mc")
            },
            steady=True,
        )


@contextlib.contextmanager
def _uvicorn_limit(folder: Path, subject: Subject) -> Iterator[Contestant]:
    """What no application can exceed in one process of uvicorn; our host answers before uvicorn calls one."""
    folder.mkdir()
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).parent / "uvicorn"), "constant_app:app", "--port", str(port)]
    command += ["--app-dir", str(LIMIT_FILES), "--host", "127.0.0.1", "--lifespan", "off", "--no-access-log"]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-server-header", "--no-date-header"]
    with started.server(command, folder) as process:
        url = f"http://127.0.0.1:{port}/predict"
        process.await_answer(url, {})
        yield Contestant(
            "uvicorn limit",
            "uvicorn's limit",
            "one process that answers everything with the same 18 bytes",
            url,
            subject.bodies,
            _constant,
            process.processor_seconds,
            steady=True,
        )


def _constant(document: Any, _: int) -> str:
    return "" if document == {"predictions": []} else f"not the constant: {document}"


LIMITS = {"limit": _torchserve_limit, "uvicorn limit": _uvicorn_limit}


@contextlib.contextmanager
def _peer(folder: Path, subject: Subject, oracle: answers.Oracle, peer: Peer) -> Iterator[Contestant]:
    peer.place(folder, subject.version.path("model.onnx"))
    port, other, third = free_ports(3)
    words = {"bin": peer.programs, "port": port, "other": other, "third": third}
    environment = {key: text.format(**words) for key, text in peer.environment.items()}
    with started.server([part.format(**words) for part in peer.command], folder, environment) as process:
        url = f"http://127.0.0.1:{port}{peer.path}"
        questions = [peer.ask(row) for row in subject.rows.tolist()]
        process.await_answer(url, questions[0])
        yield Contestant(
            peer.name,
            peer.label,
            peer.about,
            url,
            [json.dumps(question) for question in questions],
            answers.read_by(peer.read, oracle),
            process.processor_seconds,
            family=process.family if peer.restless else None,
        )
