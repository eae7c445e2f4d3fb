"""An endpoint with processes of its own: a queue before them, and nothing lost when one of them is.

Answers have no side effects: a request whose worker died is computed by the next one, and its caller sees a
pause. One that was with a worker that died is computed alone then; if that worker dies too, it was this
request, and it is refused. Every request has its own clock. A worker that gives no sign of life for as long
as a request may take is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import sys
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from dropserve.serving.answering import HttpRequest
from dropserve.serving.http.backends import (
    EndpointConfig,
    OnReply,
    Stats,
    Withdraw,
    queue_full,
    queue_timeout,
    response_timeout,
    unavailable,
)
from dropserve.serving.http.worker import FrameReader, pack, pack_requests, unpack_replies
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.serving.protocol import Reply, failure_reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.http")
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before a worker is started again
_LONG_LIVED = 60.0  # seconds of service after which an earlier death is forgotten
_WATCH = 0.2
_AHEAD = 2  # batches that lie with a worker, so that it need not wait for the next one
_numbers = itertools.count(1)


class _Pending:
    """A request without an answer yet."""

    __slots__ = ("asked", "deaths", "number", "on_reply", "request", "settled")

    def __init__(self, request: HttpRequest, asked: float, on_reply: OnReply) -> None:
        self.number = next(_numbers)
        self.request, self.asked, self.on_reply = request, asked, on_reply
        self.deaths = 0
        self.settled = False

    def settle(self, reply: Reply) -> None:
        """Give the reply, the first one alone."""
        if not self.settled:
            self.settled = True
            self.on_reply(reply)


class WorkerPool:
    """Workers of one endpoint, and the queue before them.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        config: its section of ``model-config.yaml``.
    """

    def __init__(self, folder: Path, endpoint: str, config: EndpointConfig) -> None:
        self._folder, self._name, self._config = folder, endpoint, config
        self._queue: deque[_Pending] = deque()
        self._workers: list[_Worker] = []
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._problem = "its worker is loading"
        self._hopeless = False  # the last attempt to load has failed
        self._closed = False
        self._restarts = 0
        self._loop = asyncio.get_running_loop()
        self._dispatching = False
        self.metadata: dict[str, Any] | None = None
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(config.workers)]
        self._tasks.append(asyncio.create_task(self._watch()))

    @property
    def ready(self) -> str | None:
        """None if all its workers are there."""
        if self._closed:
            return "the server is stopping"
        return None if len(self._workers) == self._config.workers else self._problem

    @property
    def stats(self) -> Stats:
        """How busy it is."""
        waiting = len(self._queue) + sum(len(worker.held) for worker in self._workers)
        return Stats(waiting, self._restarts)

    def submit(self, request: HttpRequest, on_reply: OnReply) -> Withdraw:
        """Compute an answer. What comes in one turn of the loop goes to a worker in one frame."""
        pending = _Pending(request, self._loop.time(), on_reply)
        if self._dispatching and len(self._queue) >= self._config.queue_size:
            self._dispatch()
        if self._closed or (self._hopeless and not self._workers):
            pending.settle(unavailable(self._name, self.ready or ""))
        elif len(self._queue) >= self._config.queue_size:
            pending.settle(queue_full(self._config.queue_size))
        else:
            self._queue.append(pending)
            if not self._dispatching:
                self._dispatching = True
                self._loop.call_soon(self._dispatch)
        return partial(self._cancel, pending)

    def _cancel(self, pending: _Pending) -> None:
        """Its caller has gone: nobody computes it, or goes on with it."""
        if pending.settled:
            return
        pending.settled = True
        with contextlib.suppress(ValueError):
            self._queue.remove(pending)
        self._withdraw(pending)

    def _withdraw(self, pending: _Pending) -> None:
        """Have the worker that holds it drop it."""
        for worker in self._workers:
            worker.drop(pending)
        self._dispatch()

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._queue:
            takers = [worker for worker in self._workers if worker.takes(self._queue[0])]
            if not takers:
                break
            min(takers, key=lambda worker: len(worker.held)).give(self._queue.popleft())
        for worker in self._workers:
            worker.send()

    def _on_progress(self, sums: Sums) -> None:
        for key, value in sums.items():
            self._sums[key] += value
        self._dispatch()

    async def _keep(self) -> None:
        """Keep one worker: start it, and again when it ends."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while not self._closed:
            worker = _Worker(self._folder, self._name, self._config, self._on_progress)
            try:
                problem = await worker.start()
                if problem is None:
                    began = loop.time()
                    self._join(worker)
                    await worker.ended
                    deaths = 1 if loop.time() - began > _LONG_LIVED else deaths + 1
                else:
                    log.error("%s %s: %s", LOAD_FAILED, self._name, problem)
                    deaths += 1
                    self._problem = f"its worker cannot load: {problem}"
                    self._hopeless = worker.refused or deaths > 1  # it may just have been killed
                    if self._hopeless and not self._workers:
                        self._refuse_queue()
                    worker.kill()
            finally:
                self._part(worker)
                how = await worker.end()
            if not self._closed:
                self._restarts += 1
                log.error("%s: its worker %s; it is started again", self._name, how)
                await asyncio.sleep(_PAUSES[min(deaths, len(_PAUSES)) - 1])

    def _join(self, worker: _Worker) -> None:
        self.metadata = worker.metadata
        self._hopeless = False
        self._workers.append(worker)
        self._dispatch()

    def _part(self, worker: _Worker) -> None:
        """What a worker has left undone goes back to the head of the queue, to be tried again."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        self._problem = "its worker has died, and another one is loading"
        again = list(worker.held.values())
        begun = again[: self._config.batch_size]
        worker.held.clear()
        for pending in begun:
            pending.deaths += 1
            if len(begun) == 1 and pending.deaths > 1:
                log.error("%s: a second worker died of request %s", self._name, pending.request.id)
                pending.settle(failure_reply(pending.request.id))
        self._queue.extendleft(pending for pending in reversed(again) if not pending.settled)
        self._dispatch()

    async def _watch(self) -> None:
        """Refuse what has taken too long, and end a worker that hangs."""
        loop, limit = asyncio.get_running_loop(), self._config.response_timeout_s
        while True:
            await asyncio.sleep(_WATCH)
            now = loop.time()
            for worker in self._workers:
                hung = worker.silent_since is not None and now - worker.silent_since > limit
                late = [each for each in worker.held.values() if now - each.asked > limit]
                begun = list(worker.held.values())[: self._config.batch_size]
                for pending in late:
                    if hung and pending not in begun:
                        pending.settle(queue_timeout(limit))
                    else:
                        pending.settle(response_timeout(limit, restarted=hung))
                if hung:
                    log.error("%s: its worker has not answered within %g s", self._name, limit)
                    worker.kill()
                    continue
                for pending in late:
                    worker.drop(pending)
            late = [pending for pending in self._queue if now - pending.asked > limit]
            for pending in late:
                self._queue.remove(pending)
                pending.settle(queue_timeout(limit))
            self._dispatch()

    def _refuse_queue(self) -> None:
        while self._queue:
            self._queue.popleft().settle(unavailable(self._name, self.ready or ""))

    def drain(self) -> Sums:
        """What was done since the last call."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums

    async def close(self) -> None:
        """End the workers; what waits is refused."""
        self._closed = True
        for worker in self._workers:
            for pending in worker.held.values():
                pending.settle(unavailable(self._name, "the server is stopping"))
        self._refuse_queue()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Worker(asyncio.Protocol):
    """A process that computes for one endpoint; :meth:`start` it, then ``ended`` tells when it is gone.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        config: its section of ``model-config.yaml``.
        on_progress: called after each frame with what was done.

    Attributes:
        held: requests that lie with it by number, the oldest first.
        silent_since: when it was given something to do, or last showed a sign of life while it had some; None
            while it has nothing to do.
        metadata: of its model, once it has been loaded.
        refused: whether it has said by itself that it cannot load its model.
    """

    def __init__(
        self, folder: Path, endpoint: str, config: EndpointConfig, on_progress: Callable[[Sums], None]
    ) -> None:
        self._folder, self._endpoint, self._config = folder, endpoint, config
        self._on_progress = on_progress
        self._reader = FrameReader()
        self._outbox: list[tuple[int, HttpRequest]] = []
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[str | None] = self._loop.create_future()
        self._log: asyncio.Task[None] | None = None
        self._killed = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.held: dict[int, _Pending] = {}
        self.silent_since: float | None = None
        self.metadata: dict[str, Any] = {}
        self.refused = False

    async def start(self) -> str | None:
        """Start the process and wait until it has loaded; why it could not, or None."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [str(theirs.fileno()), str(self._folder), self._endpoint]
            words += [json.dumps(self._config.handler), str(self._config.batch_size)]
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "dropserve.serving.http.worker", *words),
                pass_fds=[theirs.fileno()],
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        self._log = asyncio.create_task(self._read_log(self._process))
        await self._loop.create_connection(lambda: self, sock=ours)
        try:
            return await asyncio.wait_for(self._hello, self._config.startup_timeout_s)
        except TimeoutError:
            return f"it was not loaded within {self._config.startup_timeout_s:g} s"

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101  # it was asked for
        while line := await process.stderr.readline():
            log.error("%s: %s", self._endpoint, line.decode("utf-8", "replace").rstrip())

    def takes(self, pending: _Pending) -> bool:
        """Whether it may be given this one now: whom a worker has died of is computed alone."""
        if self._killed or self._transport is None or self._transport.is_closing():
            return False  # it has gone, and nobody has noticed yet
        if not self.held:
            return True
        alone = pending.deaths or next(iter(self.held.values())).deaths
        return not alone and len(self.held) < _AHEAD * self._config.batch_size

    def give(self, pending: _Pending) -> None:
        """Give it a request, which :meth:`send` sends."""
        self.held[pending.number] = pending
        self._outbox.append((pending.number, pending.request))

    def send(self) -> None:
        """Send what it was given, all at once: it is computed together."""
        if self._outbox:
            self._write(pack_requests(self._outbox))
            self._outbox.clear()

    def drop(self, pending: _Pending) -> None:
        """Have it drop a request, if it holds it."""
        if self.held.pop(pending.number, None) is not None:
            self._write(pack({"cancel": pending.number}))

    def _write(self, frame: bytes) -> None:
        assert self._transport is not None  # noqa: S101  # it has said hello
        if self.silent_since is None:
            self.silent_since = self._loop.time()
        self._transport.write(frame)

    def data_received(self, data: bytes) -> None:
        """Replies, or how loading went."""
        for head, rest in self._reader.feed(data):
            if "replies" not in head:
                self.metadata, self.refused = head.get("metadata", {}), "failed" in head
                if not self._hello.done():
                    self._hello.set_result(head.get("failed"))
                continue
            replies, sums = unpack_replies(head, rest)
            for number, reply in replies:
                pending = self.held.pop(number, None)
                if pending is not None:
                    pending.settle(reply)
            self.silent_since = self._loop.time() if self.held else None
            self._on_progress(sums)

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
