"""The server of a project: start it in the background or attached, find it, stop it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from pydantic import ValidationError

from dropserve.errors import DropserveError, ServerError
from dropserve.manifest import VersionManifest
from dropserve.serving.deploy import deploy
from dropserve.serving.deployment import MODEL_CONFIG, Deployment, Options
from dropserve.serving.hosts import host_named
from dropserve.serving.loaded import LOAD_FAILED, load_endpoint
from dropserve.serving.process import LockFile, ProcessId
from dropserve.serving.runtime import check_port
from dropserve.serving.supervisor import LOCK, STATE, TOKEN, State, Supervisor, read_state, write_state
from dropserve.store import Stored

PATIENCE = 180.0  # seconds until a server must answer
_PATIENCE = 15.0  # seconds in which a supervisor that has lost patience says so
_STATE_SECONDS = 5.0  # in which a server that has just been started writes its state
_GRACE = 10.0  # seconds that a process may take to end of which nothing is known
_START_LOCK = "start.lock"
_POLL = 0.05
_MORE = 5.0  # seconds that a supervisor may take longer than its server
_started: list[subprocess.Popen[bytes]] = []  # kept, so that they are reaped and not mourned as leaks

Tell = Callable[[State], None]


def running(run_dir: Path) -> State | None:
    """The server of this folder, if one runs; what a dead one left behind is not it.

    Raises:
        ServerError: if a server runs whose state cannot be read.
    """
    lock = LockFile(run_dir / LOCK)
    if not lock.is_held():
        return None
    deadline = time.monotonic() + _STATE_SECONDS  # it may be about to write it
    while (state := read_state(run_dir)) is None and lock.is_held():
        if time.monotonic() > deadline:
            holders = ", ".join(str(process.pid) for process in lock.holders())
            raise ServerError(
                f"a server of this folder runs (process {holders}), but {run_dir / STATE} cannot be read. "
                "End it with: dropserve stop"
            )
        time.sleep(_POLL)
    return state


def start(
    run_dir: Path,
    versions: Sequence[Stored[VersionManifest]],
    options: Options,
    *,
    patience: float = PATIENCE,
    tell: Tell | None = None,
) -> Deployment:
    """Start a server in the background and return when it answers; it replaces the one that runs.

    Args:
        run_dir: the project's folder for run-time files.
        versions: what to serve.
        options: how.
        patience: seconds that it may take.
        tell: called with the state whenever it changes.

    Returns:
        What is served, and where.

    Raises:
        ServerError: if the port is taken, or the server does not come up; nothing is left running.
        UsageError: if a setting is wrong; a server that runs goes on.
    """
    with _only_start(run_dir, options):
        deployment = _prepare(run_dir, versions, options)
        process: subprocess.Popen[bytes] | None = None
        try:
            process = _spawn(run_dir, deployment, patience)
            _await(run_dir, process, patience, tell)
        except BaseException as error:
            if process is not None and process.poll() is None:
                ProcessId.of(process.pid).end(host_named(options.engine).grace + _MORE)
                process.wait()
            deployment.remove()
            if not LockFile(run_dir / LOCK).is_held():
                (run_dir / STATE).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise ServerError(f"the server cannot be started: {error}") from error
            raise
    return deployment


def run(
    run_dir: Path,
    versions: Sequence[Stored[VersionManifest]],
    options: Options,
    *,
    patience: float = PATIENCE,
    tell: Tell | None = None,
) -> None:
    """Serve in this process until SIGTERM, SIGINT or SIGHUP: for containers.

    Raises:
        ServerError: if the server does not come up, or dies again and again.
    """
    with _only_start(run_dir, options):
        deployment = _prepare(run_dir, versions, options)
    Supervisor(run_dir, deployment, patience=patience, tell=tell).run()


def stop(run_dir: Path, *, keep: Path | None = None) -> Deployment | None:
    """Stop the server of this folder, and nothing else; what one that was killed has left is removed.

    Args:
        run_dir: the project's folder for run-time files.
        keep: the folder of a deployment that is about to be started.

    Returns:
        What was stopped; None if nothing ran.

    Raises:
        ServerError: if this folder is a copy of one whose server runs.
    """
    state, lock = read_state(run_dir), LockFile(run_dir / LOCK)
    ran, ours = lock.is_held(), state is not None and _is_of(run_dir, state.deployment)
    if not ran and not ours and state is not None and state.supervisor.alive:
        original = state.deployment.folder.parent.parent
        raise ServerError(
            f"{run_dir.parent.absolute()} is a copy of {original}, whose server runs at "
            f"{state.deployment.url}. Stop it there: cd {original} && dropserve stop"
        )
    deployment = state.deployment if state is not None else _prepared(run_dir) if ran else None
    if state is not None and (ran or ours):
        grace = host_named(state.deployment.engine).grace
        state.supervisor.end(grace + _MORE)
        if state.frontend is not None:
            state.frontend.end(grace)  # where the supervisor was killed, not stopped
    for process in lock.holders() if lock.is_held() else ():  # whatever the state said, or did not say
        process.end(_GRACE)
    if deployment is not None and (ran or ours):
        host_named(deployment.engine).sweep(deployment)
    if deployment is not None and _is_of(run_dir, deployment):
        deployment.remove()
    for folder in run_dir.glob("server-*"):
        if keep is None or folder.name != keep.name:
            shutil.rmtree(folder, ignore_errors=True)
    for name in (STATE, TOKEN, LOCK):
        (run_dir / name).unlink(missing_ok=True)
    _started[:] = [process for process in _started if process.poll() is None]
    return deployment if ran else None


def _prepared(run_dir: Path) -> Deployment | None:
    """What a server whose state cannot be read was started from."""
    for file in run_dir.glob("server-*/deployment.json"):
        with contextlib.suppress(OSError, ValidationError):
            return Deployment.model_validate_json(file.read_bytes())
    return None


def _is_of(run_dir: Path, deployment: Deployment) -> bool:
    """Whether a deployment was made in this folder, and not in one that this is a copy of."""
    return deployment.folder.parent.resolve() == run_dir.resolve()


@contextlib.contextmanager
def _only_start(run_dir: Path, options: Options) -> Generator[None]:
    """Let one command at a time start a server in a folder.

    Raises:
        ServerError: if another one is at it, or the port is taken.
    """
    old = running(run_dir)
    if old is None or old.deployment.port != options.port:
        check_port(options.port, options.host)
    lock = LockFile(run_dir / _START_LOCK)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not lock.acquire():
            holders = ", ".join(str(process.pid) for process in lock.holders())
            raise ServerError(
                f"another dropserve serve (process {holders}) is starting a server in this folder; wait "
                "until it has ended, or end it"
            )
    except OSError as error:
        raise ServerError(f"a server cannot be prepared in {run_dir}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _prepare(run_dir: Path, versions: Sequence[Stored[VersionManifest]], options: Options) -> Deployment:
    """All that can go wrong goes wrong before a server that runs is stopped."""
    old = running(run_dir)
    deployment = deploy(run_dir, versions, options)
    try:
        if old is not None:
            _rehearse(deployment)
        stop(run_dir, keep=deployment.folder)
        check_port(options.port, options.host)
    except DropserveError:
        deployment.remove()
        raise
    return deployment


def _spawn(run_dir: Path, deployment: Deployment, patience: float) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own."""
    deployment.logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dropserve.serving.supervisor"]
    command += [str(deployment.folder / "deployment.json"), str(run_dir.absolute()), str(patience)]
    with (deployment.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own command
            command,
            cwd=run_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C and hang-up are not for it
        )
    _started.append(process)
    return process


def _await(run_dir: Path, process: subprocess.Popen[bytes], patience: float, tell: Tell | None) -> None:
    deadline = time.monotonic() + patience + _PATIENCE
    last: State | None = None
    while time.monotonic() < deadline:
        state = read_state(run_dir)
        if state is not None and state.supervisor.pid == process.pid and state != last:
            last = state
            if tell is not None:
                tell(state)
            if state.phase == "ready":
                return
        if process.poll() == 0:
            raise ServerError("the server was stopped by another command before it answered")
        if process.poll() is not None:
            raise ServerError(last.detail if last and last.phase == "failed" else _silent_end(run_dir))
        time.sleep(_POLL)
    raise ServerError(f"the server did not answer within {patience:.0f} s; see {run_dir / 'logs'}")


def _silent_end(run_dir: Path) -> str:
    log = run_dir / "logs" / "supervisor.log"
    tail = log.read_text("utf-8", "replace").splitlines()[-10:] if log.is_file() else []
    return "\n".join([f"the supervisor ended. The end of {log}:", *(f"  {line}" for line in tail)])


__all__ = ["PATIENCE", "STATE", "Options", "State", "run", "running", "start", "stop", "write_state"]


def _rehearse(deployment: Deployment) -> None:
    """Have every endpoint load its model and answer its example row, here, while what is served still runs.

    Raises:
        ServerError: as the worker would have said it.
    """
    for endpoint in deployment.endpoints:
        folder = deployment.folder / "models" / endpoint.name
        options = json.loads((folder / MODEL_CONFIG).read_bytes()).get("handler") or {}
        try:
            load_endpoint(folder, endpoint.name, options)
        except Exception as error:
            raise ServerError(f"{LOAD_FAILED} {endpoint.name}: {error}. What ran before goes on.") from error
