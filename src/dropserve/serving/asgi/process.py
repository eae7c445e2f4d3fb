"""One worker process as the server sees it: started, asked, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dropserve.serving.answering import Message
from dropserve.serving.asgi.frames import Reader, pack_message, replies_of
from dropserve.serving.asgi.lane import Take, Tuning
from dropserve.serving.protocol import Reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.asgi")
_AHEAD = 2  # batches that lie with a worker, so that it never waits for the server


@dataclass(eq=False)
class Pending:
    """A request that waits for its answer.

    Attributes:
        message: what was asked.
        asked: when, by the loop's clock.
        take: is given the reply.
        deaths: how many workers have died while they computed it.
        settled: whether the reply was given.
    """

    message: Message
    asked: float
    take: Take = field(repr=False)
    deaths: int = 0
    settled: bool = False

    def settle(self, reply: Reply) -> None:
        """Give the reply, the first one alone."""
        if not self.settled:
            self.settled = True
            self.take(reply)


class Worker(asyncio.Protocol):
    """A process that answers for one endpoint; :meth:`start` it, then ``ended`` tells when it is gone.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        tuning: its section of ``model-config.yaml``.
        answered: called after each batch with what was done.

    Attributes:
        held: requests that lie with it, the oldest first.
        since: when it began on the oldest of them, by the loop's clock.
        metadata: of its model, once it has been loaded.
        refused: whether it has said by itself that it cannot load its model.
    """

    def __init__(self, folder: Path, endpoint: str, tuning: Tuning, answered: Callable[[Sums], None]) -> None:
        self._folder, self._endpoint, self._tuning = folder, endpoint, tuning
        self._answered = answered
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._hello: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._log: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held: deque[Pending] = deque()
        self.since = 0.0
        self.metadata: dict[str, Any] = {}
        self.refused = False
        self._killed = False

    async def start(self) -> str | None:
        """Start the process and wait until it has loaded; why it could not, or None."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [str(theirs.fileno()), str(self._folder), self._endpoint]
            words += [json.dumps(self._tuning.handler), str(self._tuning.batch)]
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "dropserve.serving.asgi.worker", *words),
                pass_fds=[theirs.fileno()],
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        self._log = asyncio.create_task(self._read_log(self._process))
        await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        try:
            return await asyncio.wait_for(self._hello, self._tuning.startup)
        except TimeoutError:
            return f"it was not loaded within {self._tuning.startup:g} s"

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101  # it was asked for
        while line := await process.stderr.readline():
            log.error("%s: %s", self._endpoint, line.decode("utf-8", "replace").rstrip())

    def takes(self, pending: Pending) -> bool:
        """Whether it may be given this one now: whom a worker has died of is computed alone."""
        if self._killed or self._transport is None or self._transport.is_closing():
            return False  # it has gone, and nobody has noticed yet
        if not self.held:
            return True
        alone = pending.deaths or self.held[0].deaths
        return not alone and len(self.held) < _AHEAD * self._tuning.batch

    def send(self, pending: Pending) -> None:
        """Give it a request."""
        assert self._transport is not None  # noqa: S101  # it has said hello
        if not self.held:
            self.since = asyncio.get_running_loop().time()
        self.held.append(pending)
        self._transport.write(pack_message(pending.message))

    def begun(self) -> Sequence[Pending]:
        """What it may be computing now."""
        return list(self.held)[: self._tuning.batch]

    def data_received(self, data: bytes) -> None:
        """Replies, or how loading went."""
        for head, rest in self._reader.feed(data):
            if "replies" in head:
                replies, sums = replies_of(head, rest)
                for reply in replies:
                    self.held.popleft().settle(reply)
                self.since = asyncio.get_running_loop().time()
                self._answered(sums)
                continue
            self.metadata, self.refused = head.get("metadata", {}), "failed" in head
            if not self._hello.done():
                self._hello.set_result(head.get("failed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        """The process has gone: it never closes the socket while it lives."""
        if not self._hello.done():
            self._hello.set_result("its process ended while it loaded")
        if not self.ended.done():
            self.ended.set_result(None)

    def kill(self) -> None:
        """End it at once; a process that hangs or is stopped ends too."""
        self._killed = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> str:
        """Make sure that it is gone; how it ended, in words."""
        if self._transport is not None:
            self._transport.close()  # it ends by itself when its socket does
        if self._process is None:
            return "never started"
        try:
            await asyncio.wait_for(self._process.wait(), 2)
        except TimeoutError:
            self.kill()
        status = await self._process.wait()
        if self._log is not None:
            await self._log
        return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
