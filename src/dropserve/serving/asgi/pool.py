"""An endpoint with processes of its own: a queue before them, and nothing lost when one of them is.

Answers are pure: a request whose worker died is asked again, of the next one, and its caller sees a pause.
One that was with a worker that died is computed alone then; if that worker dies too, it was this request, and
it is refused. A worker that does not answer in time is killed, and what it had begun is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

from dropserve.serving.answering import Message
from dropserve.serving.asgi.lane import Take, Tuning, full, hung, not_ready, waited
from dropserve.serving.asgi.process import Pending, Worker
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.serving.protocol import failure_reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.asgi")
_PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before a worker is started again
_STEADY = 60.0  # seconds of service after which an earlier death is forgotten
_WATCH = 0.2


class Pool:
    """Workers of one endpoint, and the queue before them.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        tuning: its section of ``model-config.yaml``.
    """

    def __init__(self, folder: Path, endpoint: str, tuning: Tuning) -> None:
        self._folder, self._name, self._tuning = folder, endpoint, tuning
        self._queue: deque[Pending] = deque()
        self._ready: list[Worker] = []
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._trouble = "its worker is loading"
        self._hopeless = False  # the last attempt to load has failed
        self._stopped = False
        self.metadata: dict[str, Any] | None = None
        self.restarts = 0
        self._tasks = [asyncio.create_task(self._keep()) for _ in range(tuning.workers)]
        self._tasks.append(asyncio.create_task(self._watch()))

    @property
    def problem(self) -> str | None:
        """Ready is who has all its workers."""
        if self._stopped:
            return "the server is stopping"
        return None if len(self._ready) == self._tuning.workers else self._trouble

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._queue) + sum(len(worker.held) for worker in self._ready)

    def ask(self, message: Message, take: Take) -> None:
        """Give the reply to ``take`` when it is there."""
        if self._stopped or (self._hopeless and not self._ready):
            take(not_ready(self._name, self.problem or ""))
        elif len(self._queue) >= self._tuning.queue:
            take(full(self._tuning.queue))
        else:
            self._queue.append(Pending(message, asyncio.get_running_loop().time(), take))
            self._pump()

    def _pump(self) -> None:
        while self._queue:
            takers = [worker for worker in self._ready if worker.takes(self._queue[0])]
            if not takers:
                return
            min(takers, key=lambda worker: len(worker.held)).send(self._queue.popleft())

    def _answered(self, sums: Sums) -> None:
        for key, value in sums.items():
            self._sums[key] += value
        self._pump()

    async def _keep(self) -> None:
        """Keep one worker: start it, and again when it ends."""
        deaths = 0
        loop = asyncio.get_running_loop()
        while not self._stopped:
            worker = Worker(self._folder, self._name, self._tuning, self._answered)
            try:
                problem = await worker.start()
                if problem is None:
                    began = loop.time()
                    self._join(worker)
                    await worker.ended
                    deaths = 1 if loop.time() - began > _STEADY else deaths + 1
                else:
                    log.error("%s %s: %s", LOAD_FAILED, self._name, problem)
                    deaths += 1
                    self._trouble = f"its worker cannot load: {problem}"
                    self._hopeless = worker.refused or deaths > 1  # it may just have been killed
                    if self._hopeless and not self._ready:
                        self._send_away()
                    worker.kill()
            finally:
                self._part(worker)
                how = await worker.end()
            if not self._stopped:
                self.restarts += 1
                log.error("%s: its worker %s; it is started again", self._name, how)
                await asyncio.sleep(_PAUSES[min(deaths, len(_PAUSES)) - 1])

    def _join(self, worker: Worker) -> None:
        self.metadata = worker.metadata
        self._hopeless = False
        self._ready.append(worker)
        self._pump()

    def _part(self, worker: Worker) -> None:
        """What a worker has left undone goes back to the head of the queue, to be tried again."""
        if worker not in self._ready:
            return
        self._ready.remove(worker)
        self._trouble = "its worker has died, and another one is loading"
        begun, again = worker.begun(), list(worker.held)
        worker.held.clear()
        for pending in begun:
            pending.deaths += 1
            if len(begun) == 1 and pending.deaths > 1:
                log.error("%s: a second worker died of request %s", self._name, pending.message.id)
                pending.settle(failure_reply(pending.message.id))
        self._queue.extendleft(pending for pending in reversed(again) if not pending.settled)
        self._pump()

    async def _watch(self) -> None:
        """Refuse what has waited too long, and end a worker that hangs."""
        loop, limit = asyncio.get_running_loop(), self._tuning.timeout
        while True:
            await asyncio.sleep(_WATCH)
            now = loop.time()
            while self._queue and (self._queue[0].settled or now - self._queue[0].asked > limit):
                self._queue.popleft().settle(waited(limit))
            for worker in list(self._ready):
                if worker.held and now - worker.since > limit:
                    log.error("%s: its worker has not answered within %g s", self._name, limit)
                    for pending in worker.begun():
                        pending.settle(hung(limit))
                    worker.kill()

    def take(self) -> Sums:
        """What was done since the last time."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums

    def _send_away(self) -> None:
        """Nobody will answer what waits."""
        while self._queue:
            self._queue.popleft().settle(not_ready(self._name, self.problem or ""))

    async def stop(self) -> None:
        """End the workers; what still waits is refused."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._send_away()
