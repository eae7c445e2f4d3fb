"""Start the other processes of a team, and end them whatever happens to this one.

Each loads recipe, data and model itself (``dropserve.training.peer``), says that it is ready, and trains. It
holds the reading end of a pipe from us: when that closes, however we ended, it ends too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from dropserve.errors import TrainingError
from dropserve.training.checkpoint import Checkpoint
from dropserve.training.team import ALONE, Team

if TYPE_CHECKING:
    from dropserve.training.recipe_file import RecipeFile

READY = b"ready\n"
_TO_END = 30.0  # seconds, once all is done
_TO_FALL = 5.0  # seconds until the one whose end broke the connection is known to have ended


@contextmanager
def crew(file: RecipeFile, size: int, identity: str, checkpoint: Checkpoint | None) -> Generator[Team]:
    """This process as number 0 of a team whose other processes wait to train.

    Args:
        file: the recipe.
        size: of the team.
        identity: of this training, as its checkpoint is called; the others refuse to train anything else.
        checkpoint: where the training goes on.

    Raises:
        TrainingError: if one of the others cannot begin, or ends while this one waits for it.
    """
    done = checkpoint.read() if checkpoint and size > 1 else None
    if size == 1 or (done and done.finished):
        yield ALONE
        return
    team = Team(0, size, find_free_network_port())
    with ExitStack() as stack:
        peers = [
            stack.enter_context(_peer(file, Team(rank, size, team.port), identity, checkpoint))
            for rank in range(1, size)
        ]
        for peer in peers:
            peer.wait_ready()
        try:
            yield team
        except RuntimeError as error:
            if _is_connection(error) and (fallen := _fallen(peers)):
                raise fallen.failure() from error
            raise
        for peer in peers:
            peer.wait_end()


class _Peer:
    def __init__(self, process: subprocess.Popen[bytes], team: Team, log: IO[bytes], ready: int) -> None:
        self.process, self._team, self._log, self._ready = process, team, log, ready

    def wait_ready(self) -> None:
        """Wait until it has loaded what it will train."""
        if os.read(self._ready, len(READY)) != READY:  # its end of the pipe closes when it ends
            self.process.wait()
            raise self.failure()

    def wait_end(self) -> None:
        """Wait until it has ended well."""
        try:
            status = self.process.wait(_TO_END)
        except subprocess.TimeoutExpired:
            return  # it is killed; what counts has been trained
        if status:
            raise self.failure()

    def failure(self) -> TrainingError:
        """What it said last."""
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        status = self.process.returncode
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        tail = "\n".join(f"  {line}" for line in lines[-15:]) or "  (nothing)"
        return TrainingError(
            f"process {self._team.rank} of {self._team.size} that train (0 is this one) {how}. "
            f"The last it said:\n{tail}"
        )


@contextmanager
def _peer(file: RecipeFile, team: Team, identity: str, checkpoint: Checkpoint | None) -> Generator[_Peer]:
    order = {
        "recipe": str(file.path),
        "content": file.recipe.resolved(),
        "team": [team.rank, team.size, team.port],
        "threads": torch.get_num_threads(),
        "identity": identity,
        "checkpoints": str(checkpoint.path.parent) if checkpoint else None,
    }
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(reading, "rb", 0):
        process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", "dropserve.training.peer", str(writing)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writing,),
            start_new_session=True,  # Ctrl-C is for number 0, which ends the others
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        os.close(writing)
        assert process.stdin is not None  # noqa: S101  # for the type checker
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
            yield _Peer(process, team, log, reading)
        finally:
            process.kill()  # nothing happens to one that has ended
            process.wait()
            process.stdin.close()


def _is_connection(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _fallen(peers: list[_Peer]) -> _Peer | None:
    """The first that has ended badly; it may take a moment longer to end than its connections."""
    deadline = time.monotonic() + _TO_FALL
    while time.monotonic() < deadline:
        if bad := [peer for peer in peers if peer.process.poll()]:
            return bad[0]
        time.sleep(0.05)
    return None
