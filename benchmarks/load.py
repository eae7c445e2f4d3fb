"""A load generator in a process of its own: keep-alive connections, each with one request in flight.

The library side describes a load and reads its result; ``python load.py`` is the process. Sockets are read
and written by hand around one selector, because the cores are shared with the server under test: a request
costs 13 microseconds, a fifth of what asyncio's protocols take.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

_PAUSE = 0.05  # seconds before a lost connection is made again


@dataclass(frozen=True)
class Group:
    """Connections that ask the same questions.

    Attributes:
        name: what the figures are filed under.
        url: where they ask.
        bodies: the questions, asked in turn.
        connections: how many ask at once.
        expected: the status of a good answer.
        pause: seconds between an answer and the next question of the same connection.
        kept: different answers to one question that are kept for inspection; None: all of them.
    """

    name: str
    url: str
    bodies: list[str]
    connections: int
    expected: int = 200
    pause: float = 0.0
    kept: int | None = 3


@dataclass(frozen=True)
class Figures:
    """What one group saw.

    Attributes:
        requests: answers of the expected status.
        rate: the same per second.
        errors: what else came, by status or by the name of the failure.
        latency: milliseconds at the 50th, 90th, 99th percentile and the worst.
        answers: for each question, the different bodies that came, at most ``kept``.
        varying: answers that were not the first answer to their question, byte for byte.
        asked: questions that were sent, while warming up too.
    """

    requests: int
    rate: float
    errors: dict[str, int]
    latency: dict[str, float]
    answers: list[list[str]] = field(repr=False)
    varying: int
    asked: int


class Work:
    """Groups at work at the same time, in another process.

    Args:
        groups: who asks what.
        seconds: how long is measured.
        warmup: how long they work before that.
    """

    def __init__(self, groups: list[Group], seconds: float, *, warmup: float = 0.5) -> None:
        plan = {"groups": [asdict(group) for group in groups], "seconds": seconds, "warmup": warmup}
        # A pipe would fill up before anyone reads it.
        self._figures = tempfile.TemporaryFile()  # noqa: SIM115  # closed by figures()
        with tempfile.TemporaryFile() as given:
            given.write(json.dumps(plan).encode())
            given.seek(0)
            self._process = subprocess.Popen([sys.executable, __file__], stdin=given, stdout=self._figures)

    @property
    def done(self) -> bool:
        """Whether the figures are there."""
        return self._process.poll() is not None

    def figures(self) -> dict[str, Figures]:
        """Wait for the end; what each group saw, by its name."""
        with self._figures:
            if self._process.wait():
                raise RuntimeError("the load generator failed")
            self._figures.seek(0)
            return {name: Figures(**found) for name, found in json.load(self._figures).items()}


def apply(groups: list[Group], seconds: float, *, warmup: float = 0.5) -> dict[str, Figures]:
    """:class:`Work`, waited for."""
    return Work(groups, seconds, warmup=warmup).figures()


class _Tally:
    """What one group has seen since the window of measurement was opened."""

    def __init__(self, group: Group) -> None:
        parts = urlsplit(group.url)
        self.expected = group.expected
        self.pause = group.pause
        self.address = parts.hostname or "127.0.0.1", parts.port or 80
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self.requests = [
            f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode() for body in group.bodies
        ]
        self.open = False
        self.errors: dict[str, int] = {}
        self.latencies: list[float] = []
        self.answers: list[dict[bytes, None]] = [{} for _ in group.bodies]
        self.kept = sys.maxsize if group.kept is None else group.kept
        self.varying = 0
        self.asked = 0

    def error(self, kind: str) -> None:
        if self.open:
            self.errors[kind] = self.errors.get(kind, 0) + 1

    def answer(self, question: int, status: int, body: bytes, seconds: float) -> None:
        if not self.open:
            return
        if status != self.expected:
            self.error(str(status))
            return
        self.latencies.append(seconds)
        seen = self.answers[question]
        if not seen:
            seen[body] = None
        elif body != next(iter(seen)):
            self.varying += 1
            if len(seen) < self.kept:
                seen[body] = None

    def figures(self, seconds: float) -> Figures:
        times = sorted(self.latencies)
        at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "worst": 1.0}
        latency = {k: 1e3 * times[min(len(times) - 1, int(q * len(times)))] for k, q in at.items() if times}
        texts = [[body.decode() for body in seen] for seen in self.answers]
        rate = len(times) / seconds
        return Figures(len(times), rate, self.errors, latency, texts, self.varying, self.asked)


class _Connection:
    """One connection: asks, waits for the whole answer, asks again."""

    def __init__(self, tally: _Tally, first: int) -> None:
        self.tally = tally
        self.socket: socket.socket | None = None
        self.due = 0.0  # when to act next, while nothing is in flight
        self._question = first
        self._sent = 0.0
        self._buffer = b""

    def act(self, selector: selectors.BaseSelector) -> bool:
        """Connect if needed, and ask; whether an answer is now awaited."""
        try:
            if self.socket is None:
                self.socket = socket.create_connection(self.tally.address)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.socket.setblocking(False)
                selector.register(self.socket, selectors.EVENT_READ, self)
            self._ask(self.socket)
        except OSError as error:
            return self._lose(selector, type(error).__name__)
        return True

    def _ask(self, connected: socket.socket) -> None:
        self._question = (self._question + 1) % len(self.tally.requests)
        self.tally.asked += 1
        self._sent = time.perf_counter()
        connected.sendall(self.tally.requests[self._question])

    def read(self, selector: selectors.BaseSelector) -> bool:
        """Take what has come; whether an answer is still, or again, awaited."""
        assert self.socket is not None  # noqa: S101  # it has just been selected
        try:
            data = self.socket.recv(65536)
        except OSError as error:
            return self._lose(selector, type(error).__name__)
        if not data:
            return self._lose(selector, "closed without an answer")
        self._buffer = self._buffer + data if self._buffer else data
        return not self._whole(selector) or self._next()

    def _whole(self, selector: selectors.BaseSelector) -> bool:
        """Whether an answer is complete; it is filed."""
        data = self._buffer
        head = data.find(b"\r\n\r\n")
        headers = data[: max(head, 0)].lower()
        at = headers.find(b"content-length:")
        if at < 0 <= head:
            raise RuntimeError(f"an answer without Content-Length cannot be read here: {data[:head]!r}")
        end = headers.find(b"\r", at)
        if head < 0 or len(data) < head + 4 + int(headers[at + 15 : end if end > 0 else head]):
            return False
        self.due = time.perf_counter()
        self.tally.answer(self._question, int(headers[9:12]), data[head + 4 :], self.due - self._sent)
        self._buffer = b""
        if b"connection: close" in headers:
            self._close(selector)
        return True

    def _next(self) -> bool:
        if self.socket is None or self.tally.pause:
            self.due += self.tally.pause
            return False
        self._ask(self.socket)
        return True

    def _lose(self, selector: selectors.BaseSelector, reason: str) -> bool:
        self.tally.error(reason)
        self._close(selector)
        self.due = time.perf_counter() + _PAUSE
        return False

    def _close(self, selector: selectors.BaseSelector) -> None:
        self._buffer = b""
        if self.socket is not None:
            selector.unregister(self.socket)
            self.socket.close()
            self.socket = None


def _work(groups: list[Group], seconds: float, warmup: float) -> dict[str, Figures]:
    tallies = [_Tally(group) for group in groups]
    idle: list[_Connection] = []
    for tally, group in zip(tallies, groups, strict=True):
        idle += [
            _Connection(tally, i * len(group.bodies) // group.connections) for i in range(group.connections)
        ]
    with selectors.DefaultSelector() as selector:
        begin = time.perf_counter()
        _run(selector, idle, begin + warmup)
        for tally in tallies:
            tally.open = True
        opened = time.perf_counter()
        _run(selector, idle, opened + seconds)
        elapsed = time.perf_counter() - opened
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return {group.name: tally.figures(elapsed) for group, tally in zip(groups, tallies, strict=True)}


def _run(selector: selectors.BaseSelector, idle: list[_Connection], until: float) -> None:
    """Serve every connection until then; ``idle`` holds those with nothing in flight."""
    while (now := time.perf_counter()) < until:
        due = until
        if idle:
            idle[:] = [c for c in idle if c.due > now or not c.act(selector)]
            due = min([until, *(c.due for c in idle)])
        for key, _ in selector.select(max(due - now, 0.0)):
            if not key.data.read(selector):
                idle.append(key.data)


def main() -> None:
    """Read a plan from stdin, carry it out, write the figures to stdout."""
    plan = json.load(sys.stdin)
    gc.disable()  # nothing here makes cycles
    groups = [Group(**group) for group in plan["groups"]]
    figures = _work(groups, plan["seconds"], plan["warmup"])
    json.dump({name: asdict(found) for name, found in figures.items()}, sys.stdout)


if __name__ == "__main__":
    main()
