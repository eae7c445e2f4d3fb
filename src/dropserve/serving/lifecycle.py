"""The server of a project: start it in the background or attached, find it, stop it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dropserve.errors import ServerError
from dropserve.manifest import VersionManifest
from dropserve.serving.deploy import deploy
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.hosts import host_named
from dropserve.serving.rehearsal import rehearse
from dropserve.serving.runtime import ProcessId, check_port
from dropserve.serving.supervisor import STATE, TOKEN, State, Supervisor, read_state, write_state
from dropserve.store import Stored

PATIENCE = 180.0  # seconds until a server must answer
_PATIENCE = 15.0  # seconds in which a supervisor that has lost patience says so
_POLL = 0.05
_MORE = 5.0  # seconds that a supervisor may take longer than its server
_started: list[subprocess.Popen[bytes]] = []  # kept, so that they are reaped and not mourned as leaks

Tell = Callable[[State], None]


def running(run_dir: Path) -> State | None:
    """The server of this project, if it runs; what a dead one left behind is not it."""
    state = read_state(run_dir)
    if state is None or not (state.supervisor.alive or (state.frontend and state.frontend.alive)):
        return None
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
    deployment = _prepare(run_dir, versions, options)
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
    try:
        _await(run_dir, process, patience, tell)
    except BaseException:
        if process.poll() is None:
            ProcessId.of(process.pid).end(host_named(options.engine).grace + _MORE)
            process.wait()
        deployment.remove()
        (run_dir / STATE).unlink(missing_ok=True)
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
    deployment = _prepare(run_dir, versions, options)
    Supervisor(run_dir, deployment, patience=patience, tell=tell).run()


def stop(run_dir: Path) -> Deployment | None:
    """Stop the server of this project, and nothing else; what one that was killed has left is removed.

    Returns:
        What was stopped; None if nothing ran.
    """
    state = read_state(run_dir)
    if state is None:
        (run_dir / STATE).unlink(missing_ok=True)  # it may be there and say nothing
        return None
    host, ran = host_named(state.deployment.engine), running(run_dir) is not None
    state.supervisor.end(host.grace + _MORE)
    if state.frontend is not None:
        state.frontend.end(host.grace)  # where the supervisor was killed, not stopped
    host.sweep(state.deployment)
    state.deployment.remove()
    for name in (STATE, TOKEN):
        (run_dir / name).unlink(missing_ok=True)
    _started[:] = [process for process in _started if process.poll() is None]
    return state.deployment if ran else None


def _prepare(run_dir: Path, versions: Sequence[Stored[VersionManifest]], options: Options) -> Deployment:
    """All that can go wrong goes wrong before a server that runs is stopped."""
    old = running(run_dir)
    if old is None or old.deployment.port != options.port:
        check_port(options.port, options.host)
    deployment = deploy(run_dir, versions, options)
    try:
        if old is not None:
            rehearse(deployment)
        stop(run_dir)
        check_port(options.port, options.host)
    except ServerError:
        deployment.remove()
        raise
    return deployment


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
        if process.poll() is not None:
            raise ServerError(last.detail if last and last.phase == "failed" else _silent_end(run_dir))
        time.sleep(_POLL)
    raise ServerError(f"the server did not answer within {patience:.0f} s; see {run_dir / 'logs'}")


def _silent_end(run_dir: Path) -> str:
    log = run_dir / "logs" / "supervisor.log"
    tail = log.read_text("utf-8", "replace").splitlines()[-10:] if log.is_file() else []
    return "\n".join([f"the supervisor ended. The end of {log}:", *(f"  {line}" for line in tail)])


__all__ = ["PATIENCE", "STATE", "Options", "State", "run", "running", "start", "stop", "write_state"]
