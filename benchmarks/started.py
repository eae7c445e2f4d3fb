"""A server that a benchmark starts: a process, what descends from it, what they cost, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

_PATIENCE = 90.0  # seconds until it must answer
_MANNERS = 5.0  # seconds that it may take to end when asked to


@dataclass(frozen=True)
class Family:
    """A process that leads a session, and all that it has started."""

    root: int

    def members(self) -> list[psutil.Process]:
        """The process, its descendants, and those of its session whose parent has gone."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self.root)
            found = {p.pid: p for p in (head, *head.children(recursive=True))}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.getsid(process.pid) == self.root:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def freeze(self) -> None:
        """Stop all processes where they are: some servers look for work a thousand times a second."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._send(signal.SIGCONT)

    def _send(self, what: signal.Signals) -> None:
        for process in self.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(what)


@dataclass(frozen=True)
class Server:
    """A running server: the process that all of its own descend from, and what it says."""

    process: subprocess.Popen[bytes]
    console: Path

    @property
    def family(self) -> Family:
        """All of its processes."""
        return Family(self.process.pid)

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far, of all processes together."""
        return {"server": processor_seconds(self.family.members())}

    def last_words(self) -> str:
        """The end of what it has printed."""
        return self.console.read_text("utf-8", errors="replace")[-3000:]

    def await_answer(self, url: str, document: object) -> httpx.Response:
        """Ask until the status is 200.

        Raises:
            RuntimeError: with the server's last words, if it ends or takes too long.
        """
        deadline, came = time.monotonic() + _PATIENCE, "no answer"
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                answer = httpx.post(url, json=document, timeout=10)
                if answer.status_code == httpx.codes.OK:
                    return answer
                came = f"status {answer.status_code}: {answer.text[:500]}"
            except httpx.HTTPError as error:
                came = type(error).__name__
            time.sleep(0.1)
        raise RuntimeError(f"{self.process.args!r} does not answer at {url} ({came}):\n{self.last_words()}")


def processor_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time of processes and of their children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


@contextlib.contextmanager
def server(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server in a session of its own; at the end nothing of it is left.

    Args:
        command: the program and its arguments.
        folder: where it runs, and where ``console.log`` is written.
        environment: variables to set besides ours.
    """
    console = folder / "console.log"
    with console.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    found = Server(process, console)
    try:
        yield found
    finally:
        _end(found)


def _end(ending: Server) -> None:
    """Ask the first process to end, as a service manager would; then end what is left."""
    ending.family.thaw()
    family = ending.family.members()
    ending.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        ending.process.wait(_MANNERS)
    known = {process.pid for process in family}
    family += [process for process in ending.family.members() if process.pid not in known]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # by psutil, which tells a process from a later one of the same number
    ending.process.wait()
    deadline = time.monotonic() + _MANNERS
    while any(map(_runs, family)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # an orphan's; not every init collects them
    except psutil.NoSuchProcess:
        return False
