"""One run of a server: start it, wait until it truly answers, end it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from dropserve.errors import ServerError
from dropserve.serving.answering import WARM_HEADER
from dropserve.serving.deployment import MODEL_LOG, Deployment, Endpoint
from dropserve.serving.hosts import host_named
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.serving.process import ProcessId
from dropserve.serving.runtime import LOOPBACK

Progress = Callable[[str], None]
CONSOLE = "console.log"
_POLL = 0.1
_WARM_REQUESTS = 200  # a cold Java answers in 100 ms and more; after some hundred requests in 3
_WARM_CONNECTIONS = 8
_HEALTH = 2.0


class Frontend:
    """A server's process and its workers.

    Args:
        deployment: what to run.
        lock: descriptor of the lock of a running server, which the process inherits.

    Raises:
        ServerError: if the program cannot be started.
    """

    def __init__(self, deployment: Deployment, lock: int) -> None:
        self.deployment = deployment
        self._host = host_named(deployment.engine)
        self._log_start = {name: _size(deployment.logs / name) for name in (CONSOLE, MODEL_LOG)}
        try:
            deployment.logs.mkdir(parents=True, exist_ok=True)
            with (deployment.logs / CONSOLE).open("ab") as console:
                self._process = subprocess.Popen(  # noqa: S603  # our own command
                    deployment.command,
                    cwd=deployment.folder,
                    env={**_inherited(), **deployment.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=console,
                    pass_fds=[lock],
                )
        except OSError as error:
            raise ServerError(f"{deployment.command[0]} cannot be started: {error}") from error
        self.id = ProcessId.of(self._process.pid)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self._host.title

    def heard(self) -> bool:
        """Whether it answers a question about its health now."""
        try:
            with private_client(self.deployment, _HEALTH) as http:
                return http.get("/v2/health/live").status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def exit_status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Wait for its end at most so long; its exit status, None if it still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace: float | None = None) -> None:
        """Ask it to end, then make sure after so many seconds; workers included."""
        self.id.end(self._host.grace if grace is None else grace)
        self._process.wait()
        self._host.sweep(self.deployment)

    def wait_ready(self, seconds: float, progress: Progress) -> None:
        """Wait until each worker is READY and each endpoint has answered its example row, warm.

        Args:
            seconds: how long at most.
            progress: told in words how far it is.

        Raises:
            ServerError: with the reason, and the end of the log that tells it.
        """
        deadline = time.monotonic() + seconds
        total = sum(endpoint.workers for endpoint in self.deployment.endpoints)
        with private_client(self.deployment, 5) as http:
            while True:
                ready = sum(min(e.workers, self._ready(http, e)) for e in self.deployment.endpoints)
                progress(f"{ready} of {total} workers ready")
                if ready == total:
                    break
                self._check(deadline, seconds, f"{ready} of {total} workers are ready")
                time.sleep(_POLL)
        for endpoint in self.deployment.endpoints:
            progress(f"warming {endpoint.name}")
            self._warm(endpoint, deadline, seconds)

    def _ready(self, http: httpx.Client, endpoint: Endpoint) -> int:
        """READY workers; 0 while nothing listens yet."""
        try:
            return self._host.ready_workers(self.deployment, endpoint, http)
        except (httpx.HTTPError, OSError, ValueError, LookupError, TypeError):
            return 0

    def _warm(self, endpoint: Endpoint, deadline: float, seconds: float) -> None:
        body = self.deployment.example(endpoint)
        url = f"{self.deployment.url}/predictions/{endpoint.name}"
        headers = {"content-type": "application/json", WARM_HEADER: "1"}
        headers |= self.deployment.authorization("inference")
        # Our own process on our own machine: there is no name that a certificate could speak for.
        with httpx.Client(timeout=30, headers=headers, verify=False) as http:  # noqa: S501  # see above
            while (problem := _ask(http, url, body)) is not None:
                self._check(deadline, seconds, f"{endpoint.name} does not answer its example: {problem}")
                time.sleep(_POLL)
            with ThreadPoolExecutor(_WARM_CONNECTIONS) as pool:
                asked = pool.map(lambda _: _ask(http, url, body), range(_WARM_REQUESTS))
                for problem in asked:
                    if problem is not None:  # it may have died or hung; do not wait for every one
                        pool.shutdown(wait=False, cancel_futures=True)
                        break
            self._check(deadline, seconds, f"{endpoint.name} was warmed in vain")

    def _check(self, deadline: float, seconds: float, state: str) -> None:
        """Give up as soon as waiting is in vain."""
        new = list(self._new_lines(MODEL_LOG))
        for line in new:
            if LOAD_FAILED in line:
                raise ServerError(line[line.index(LOAD_FAILED) :])
        if any("Backend worker process died" in line for line in new):
            raise self._failure("a worker died while it loaded its model", MODEL_LOG)
        if self.exit_status is not None:
            raise self._failure(f"{self.title} ended with status {self.exit_status}", CONSOLE)
        if time.monotonic() > deadline:
            raise self._failure(f"after {seconds:.0f} s {state}", MODEL_LOG)

    def _failure(self, what: str, log: str) -> ServerError:
        path = self.deployment.logs / log
        tail = [line for line in self._new_lines(log) if line.strip()][-15:]
        shown = "\n".join(f"  {line}" for line in tail) or "  (empty)"
        return ServerError(f"{what}. The end of {path}:\n{shown}")

    def _new_lines(self, name: str) -> Iterator[str]:
        path = self.deployment.logs / name
        if path.is_file():
            with path.open("rb") as file:
                file.seek(self._log_start[name])
                yield from file.read().decode("utf-8", "replace").splitlines()


def private_client(deployment: Deployment, seconds: float) -> httpx.Client:
    """A client of the server's private address: a socket in its folder, or a port on loopback.

    Args:
        deployment: what runs.
        seconds: how long an answer may take.
    """
    if deployment.management_socket is not None:
        transport = httpx.HTTPTransport(uds=str(deployment.management_socket))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=seconds)
    return httpx.Client(base_url=f"http://{LOOPBACK}:{deployment.management_port}", timeout=seconds)


def _ask(http: httpx.Client, url: str, body: bytes) -> str | None:
    """What was wrong with the answer; None if it was good."""
    try:
        response = http.post(url, content=body)
    except httpx.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return None if response.status_code == 200 else f"{response.status_code} {response.text[:200]}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _inherited() -> dict[str, str]:
    """Our environment without what would steer TorchServe past its configuration."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
