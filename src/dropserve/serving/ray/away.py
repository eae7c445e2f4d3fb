"""An endpoint that replicas compute: what waits goes out together, and what is lost is asked again.

Ray takes a millisecond or more for a call, whatever is in it, so a call carries all that waits, up to
``batchSize``. Answers are pure: what a dead replica held is asked again, each request alone, and its caller
sees a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal

from dropserve.serving.answering import Message
from dropserve.serving.asgi.lane import Take, Tuning, full, hung, not_ready, waited
from dropserve.serving.asgi.process import Pending
from dropserve.serving.deployment import Endpoint
from dropserve.serving.protocol import Reply, failure_reply

log = logging.getLogger("dropserve.serving.ray")
_AHEAD = 4  # calls that are with a replica at once
_SEEN = 5.0  # seconds after which a replica that has answered nothing counts no more
_WATCH = 0.2
_MARGIN = 2.0  # seconds that a replica has longer than its own limit, so that it is the one to say so
_DEATHS = 4  # calls that may be lost before a request that was alone in them is the one to blame
_AGAIN = 0.1
_PROBE = 2.0

_SLOW, _TIMES = 1.0, 4.0  # seconds, and times the usual, after which a call is made a second time
_WEIGHT = 0.1  # of the last call in what is usual

Answer = tuple[str, list[Reply] | None]
Call = Callable[[str, int, list[Message]], Awaitable[Answer]]


# How a call ended: nobody had room for it; its replica has gone, or cannot be reached; or another way.
Failure = Literal["busy", "gone", "other"]


class Away:
    """A way to one endpoint, wherever its replicas are.

    Args:
        endpoint: which.
        tuning: its section of ``model-config.yaml``.
        call: asks some replica.
        probe: asks some replica for nothing.
        read: tells how a call failed.
        stale: called when a replica serves something else by now.

    Attributes:
        queued: requests that no replica has been given yet.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tuning: Tuning,
        call: Call,
        probe: Callable[[], Awaitable[object]],
        read: Callable[[Exception], Failure],
        stale: Callable[[], None],
    ) -> None:
        self.endpoint, self._tuning = endpoint, tuning
        self._call, self._probe, self._read, self._stale = call, probe, read, stale
        self._queue: deque[Pending] = deque()
        self._flying: dict[asyncio.Task[None], list[Pending]] = {}
        self._sent: dict[Pending, float] = {}
        self._seen: dict[str, float] = {}
        self._due = False
        self._recovering: asyncio.Task[None] | None = None
        self._usual, self._twice = 0.0, 0
        self._watching = asyncio.create_task(self._watch())

    @property
    def queued(self) -> int:
        """Requests that no replica has been given yet."""
        return len(self._queue)

    def ask(self, message: Message, take: Take) -> None:
        """Give the reply to ``take`` when it is there."""
        if len(self._queue) + len(self._sent) >= self._tuning.queue * max(1, len(self._seen)):
            take(full(self._tuning.queue))
        else:
            self._queue.append(Pending(message, asyncio.get_running_loop().time(), take))
            self._soon()

    def _soon(self) -> None:
        """What comes in the same moment goes out together."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._due = False
        if self._recovering is not None:
            return
        now = asyncio.get_running_loop().time()
        self._seen = {who: at for who, at in self._seen.items() if now - at < _SEEN}
        while self._queue and len(self._flying) < _AHEAD * max(1, len(self._seen)):
            suspect = self._queue[0].deaths > 0
            if suspect and any(batch[0].deaths for batch in self._flying.values()):
                return  # one at a time, or one that kills would have others blamed
            batch = [self._queue.popleft()]
            while not suspect and self._queue and len(batch) < self._tuning.batch:
                if self._queue[0].deaths:
                    break
                batch.append(self._queue.popleft())
            self._sent |= dict.fromkeys(batch, now)
            task = asyncio.create_task(self._carry(batch))
            self._flying[task] = batch
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        for pending in self._flying.pop(task, []):
            self._sent.pop(pending, None)
        self._pump()

    async def _carry(self, batch: list[Pending]) -> None:
        name = self.endpoint.name
        try:
            who, replies = await self._ask_twice([pending.message for pending in batch])
        except Exception as error:  # noqa: BLE001  # whatever it was, its callers are told
            await self._failed(batch, error)
            return
        self._seen[who] = asyncio.get_running_loop().time()
        if replies is None:
            self._stale()
            replies = [not_ready(name, "another version has just taken its place")] * len(batch)
        for pending, reply in zip(batch, replies, strict=True):
            pending.settle(reply)

    async def _ask_twice(self, messages: list[Message]) -> Answer:
        """Ask some replica, and another as well if that takes much longer than usual; one answer will do.

        Ray takes a while to notice that a machine has gone, and what it has been asked is silent until then.
        """
        loop, name, version = asyncio.get_running_loop(), self.endpoint.name, self.endpoint.version
        began = loop.time()
        calls = {asyncio.ensure_future(self._call(name, version, messages))}
        try:
            done, _ = await asyncio.wait(calls, timeout=max(_SLOW, _TIMES * self._usual))
            if not done and len(self._seen) > 1 and self._twice < _AHEAD:
                self._twice += 1
                calls.add(asyncio.ensure_future(self._call(name, version, messages)))
            left = set(calls)
            while True:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                good = [call for call in done if call.exception() is None]
                if good or not left:
                    self._usual += _WEIGHT * (loop.time() - began - self._usual)
                    return (good or [*done])[0].result()
        finally:
            self._twice -= len(calls) - 1
            for call in calls:
                call.add_done_callback(_forget)
                call.cancel()

    async def _failed(self, batch: list[Pending], error: Exception) -> None:
        name, how = self.endpoint.name, self._read(error)
        if how == "busy":
            for pending in batch:
                pending.settle(full(self._tuning.queue))
            return
        if how == "other":
            log.error("%s: a call failed", name, exc_info=error)
            for pending in batch:
                pending.settle(failure_reply(pending.message.id))
            return
        for pending in batch:
            pending.deaths += 1
        if len(batch) == 1 and batch[0].deaths >= _DEATHS:
            log.error("%s: %d replicas died of request %s", name, _DEATHS, batch[0].message.id)
            batch[0].settle(failure_reply(batch[0].message.id))
        self._queue.extendleft(pending for pending in reversed(batch) if not pending.settled)
        if self._recovering is None:
            log.warning("%s: a replica has gone; what it held is asked again", name)
            self._recovering = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Give nobody anything until somebody is there: then what is lost once more is to blame itself."""
        pause = _AGAIN
        while True:
            await asyncio.sleep(pause)
            pause = min(1.0, 1.5 * pause)
            try:
                await asyncio.wait_for(self._probe(), _PROBE)
            except Exception:  # noqa: BLE001, S112  # nobody yet
                continue
            break
        self._recovering = None
        self._pump()

    async def _watch(self) -> None:
        """Refuse what has waited too long, and what nobody has answered in time."""
        loop, limit = asyncio.get_running_loop(), self._tuning.timeout
        while True:
            await asyncio.sleep(_WATCH)
            now = loop.time()
            self._refuse_late(self._queue)
            self._queue = deque(pending for pending in self._queue if not pending.settled)
            for task, batch in list(self._flying.items()):
                if all(now - self._sent.get(pending, now) > limit + _MARGIN for pending in batch):
                    for pending in batch:
                        pending.settle(hung(limit))
                    task.cancel()

    def _refuse_late(self, waiting: Iterable[Pending]) -> None:
        """What was asked too long ago is not begun any more."""
        now, limit = asyncio.get_running_loop().time(), self._tuning.timeout
        for pending in waiting:
            if now - pending.asked > limit:
                pending.settle(waited(limit))

    async def close(self) -> None:
        """Let go; what is with a replica is still answered."""
        self._watching.cancel()
        if self._recovering is not None:
            self._recovering.cancel()
        await asyncio.gather(*self._flying, return_exceptions=True)
        while self._queue:
            self._queue.popleft().settle(not_ready(self.endpoint.name, "the server is stopping"))


def _forget(call: asyncio.Future[Answer]) -> None:
    """Nobody waits for it any more."""
    if not call.cancelled():
        call.exception()
