"""Keeps a server running: starts it, says in a file how it is, starts it again when it dies."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.errors import ServerError
from dropserve.serving.deployment import Deployment
from dropserve.serving.frontend import Frontend
from dropserve.serving.process import LockFile, ProcessId

STATE = "server.json"
LOCK = "server.lock"
TOKEN = "token"  # noqa: S105  # the name of the file that holds it
_BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY = 60.0  # seconds of good service after which an earlier death is forgotten
_HUNG = 1.0  # seconds that a server is given to end that does not answer
_ASK = 2.0  # seconds between questions about its health
_STABLE_TRIES = len(_BACKOFF) + 4
_LOCK_SECONDS = 5.0  # somebody may just be asking whether a server runs

log = logging.getLogger("dropserve.serving.supervisor")
Phase = Literal["starting", "ready", "restarting", "failed"]


class State(BaseModel):
    """What stands in ``.run/server.json``.

    Attributes:
        supervisor: the process that keeps the server running.
        frontend: the server's own process, if there is one now.
        phase: how it is.
        detail: the same in words.
        restarts: how often it had to be started again.
        deployment: what it serves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    supervisor: ProcessId
    frontend: ProcessId | None = None
    phase: Phase = "starting"
    detail: str = ""
    restarts: int = 0
    deployment: Deployment


def read_state(run_dir: Path) -> State | None:
    """The state of the server of this project; None if there is none, or it cannot be read."""
    try:
        return State.model_validate_json((run_dir / STATE).read_bytes())
    except (OSError, ValidationError):
        return None


def write_state(run_dir: Path, state: State) -> None:
    """Replace the state in one step: a reader never sees half of it."""
    draft = run_dir / f"{STATE}.{os.getpid()}"
    try:
        draft.write_text(state.model_dump_json(indent=1), "utf-8")
        draft.replace(run_dir / STATE)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


class Supervisor:
    """Runs one deployment until it is told to stop.

    Args:
        run_dir: where the state is written.
        deployment: what to run.
        patience: seconds that the server may take until it answers.
        tell: called with the state whenever it changes.
    """

    def __init__(
        self,
        run_dir: Path,
        deployment: Deployment,
        *,
        patience: float,
        tell: Callable[[State], None] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._patience = patience
        self._tell = tell
        self._stop = threading.Event()
        self._lock = LockFile(run_dir / LOCK)
        self._unwritten = False
        self._state = State(supervisor=ProcessId.of(os.getpid()), deployment=deployment)

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, then stop everything that was started.

        Raises:
            ServerError: if the server did not come up at first, or dies again and again.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._stop.set())
        try:
            if not self._lock.acquire(_LOCK_SECONDS):
                raise ServerError(f"another server runs in {self._run_dir}; stop it first: dropserve stop")
            write_state(self._run_dir, self._state)
        except OSError as error:
            self._lock.release()
            raise ServerError(f"the state of the server cannot be written: {error}") from error
        try:
            self._keep(self._start())
        except ServerError as error:
            self._write(phase="failed", detail=str(error), frontend=None)
            raise
        finally:
            self._state.deployment.remove()
            if self._stop.is_set():
                _remove_own(self._run_dir, self._state)
            self._lock.release()

    def _start(self) -> Frontend:
        frontend = Frontend(self._state.deployment, self._lock.descriptor)
        self._write(frontend=frontend.id)
        try:
            frontend.wait_ready(self._patience, self._progress)
        except _StoppedError:
            pass
        except BaseException:
            frontend.end()
            raise
        if not self._stop.is_set():
            self._keep_token()
            self._write(phase="ready", detail="")
        return frontend

    def _keep_token(self) -> None:
        """Write clients' token into a file of mode 0600; a frontend that is started again has a new one."""
        if found := self._state.deployment.authorization("inference"):
            path = self._run_dir / TOKEN
            try:
                path.touch(mode=0o600)
                path.write_text(found["authorization"].removeprefix("Bearer "), "ascii")
            except OSError as error:
                raise ServerError(f"clients' token cannot be written: {error}") from error

    def _progress(self, text: str) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if text != self._state.detail:
            self._write(detail=text)

    def _keep(self, frontend: Frontend) -> None:
        deaths, silence = 0, _Silence(frontend)
        try:
            since = time.monotonic()
            while not self._stop.wait(0.2):
                if self._unwritten:
                    self._write()
                status = frontend.exit_status
                if status is None and not silence.too_long():
                    continue
                if status is None:
                    reason = f"{frontend.title} has not answered for {silence.limit:g} s"
                    frontend.end(_HUNG)
                else:
                    reason = f"{frontend.title} ended with status {status}"
                    frontend.end()  # its workers
                deaths = 1 if time.monotonic() - since > _STEADY else deaths + 1
                frontend = self._again(frontend, reason, deaths)
                silence = _Silence(frontend)
                since = time.monotonic()
        finally:
            frontend.end()

    def _again(self, frontend: Frontend, reason: str, deaths: int) -> Frontend:
        """Start anew, with growing pauses; the caller ends whatever comes back."""
        while not self._stop.is_set():
            if deaths > _STABLE_TRIES and not self._unwritten:  # on a full disk it goes on trying
                raise ServerError(
                    f"{reason}, for the {deaths}th time in a row; see {frontend.deployment.logs}"
                )
            log.warning("%s; it is started again", reason)
            self._write(phase="restarting", detail=reason, frontend=None, restarts=self._state.restarts + 1)
            if self._stop.wait(_BACKOFF[min(deaths, len(_BACKOFF)) - 1]):
                break
            try:
                return self._start()
            except ServerError as error:
                reason, deaths = str(error), deaths + 1
        return frontend

    def _write(self, **changes: object) -> None:
        """Keep the state, and write it down; where that fails, on a full disk say, the server goes on."""
        self._state = self._state.model_copy(update=changes)
        try:
            write_state(self._run_dir, self._state)
        except OSError as error:
            if not self._unwritten:
                log.warning("the state of the server cannot be written: %s; it is tried again", error)
            self._unwritten = True
        else:
            self._unwritten = False
        if self._tell is not None:
            self._tell(self._state)


class _Silence:
    """How long a server that runs has said nothing."""

    def __init__(self, frontend: Frontend) -> None:
        self.limit = frontend.deployment.longest_silence
        self._frontend = frontend
        self._asked = self._heard = time.monotonic()

    def too_long(self) -> bool:
        """Ask now and then; whether it has been silent for longer than it may."""
        now = time.monotonic()
        if self.limit is None or now - self._asked < _ASK:
            return False
        if self._frontend.heard():
            self._heard = time.monotonic()
        self._asked = time.monotonic()
        return self._asked - self._heard > self.limit


class _StoppedError(Exception):
    """Waiting for readiness was interrupted by a request to stop."""


def _remove_own(run_dir: Path, own: State) -> None:
    """Remove the state, unless a successor has written its own."""
    found = read_state(run_dir)
    if found is not None and found.supervisor == own.supervisor:
        for name in (STATE, TOKEN):
            (run_dir / name).unlink(missing_ok=True)


def main() -> None:
    """``python -m dropserve.serving.supervisor DEPLOYMENT RUN_DIR PATIENCE``: the background process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("deployment", type=Path)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("patience", type=float)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    deployment = Deployment.model_validate_json(arguments.deployment.read_bytes())
    try:
        Supervisor(arguments.run_dir, deployment, patience=arguments.patience).run()
    except ServerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
