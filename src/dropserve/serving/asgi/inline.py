"""A model that answers faster than another process could be asked: it runs in the server's own.

While it runs, requests gather in the sockets; they are read together and so computed together. Nothing waits
for company. Where the last requests came alone, the next is computed at once, without another turn of the
loop to see who else has come; now and then one is not, to find out whether that is still so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dropserve.serving.answering import WARM_HEADER, Answering, Message
from dropserve.serving.asgi.lane import Take, Tuning, full, not_ready
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.metadata import describe_model
from dropserve.serving.protocol import Reply, failure_reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.asgi")
SMALL = 65_536  # bytes of a body that is read at once; a longer one must not keep others waiting
_TRIES = 20
_TRUST = 8  # requests that come alone before the next one is answered without a look at who else has come
_PROBE = 16  # of which one is


class Inline:
    """Answers in this process: small requests on the event loop, long ones on a thread beside it.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        tuning: its section of ``model-config.yaml``.

    Attributes:
        seconds: that the example row takes at best, from bytes to bytes.

    Raises:
        DropserveError: as :func:`load_endpoint`.
    """

    def __init__(self, folder: Path, endpoint: str, tuning: Tuning) -> None:
        loaded = load_endpoint(folder, endpoint, tuning.handler)
        self.metadata: dict[str, Any] = describe_model(endpoint, loaded)
        self._answering = Answering(endpoint, loaded)
        self._name = endpoint
        self._tuning = tuning
        self._waiting: deque[tuple[Message, Take]] = deque()
        self._beside = 0
        self._lone = 0  # requests in a row that came alone
        self._thread = ThreadPoolExecutor(1, f"{endpoint}-long")
        self._stopped = False
        example = Message(loaded.predictor.example(), "warm", {WARM_HEADER: "1"})
        self.seconds = min(_time(self._answering, example) for _ in range(_TRIES))
        self._answering.tally.take()

    @property
    def problem(self) -> str | None:
        """It answers from the moment that it is there."""
        return "the server is stopping" if self._stopped else None

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        return len(self._waiting) + self._beside

    restarts = 0

    def ask(self, message: Message, take: Take) -> None:
        """Give the reply to ``take`` when it is there."""
        if self._stopped:
            take(not_ready(self._name, "the server is stopping"))
        elif self.waiting >= self._tuning.queue:
            take(full(self._tuning.queue))
        elif len(message.body) > SMALL:
            self._beside += 1
            loop = asyncio.get_running_loop()
            answer = loop.run_in_executor(self._thread, self._answer_alone, message)
            answer.add_done_callback(lambda found: self._come_back(found.result(), take))
        elif self._lone >= _TRUST and self._lone % _PROBE and not self._waiting:
            self._lone += 1
            take(self._answer([message])[0])
        else:
            if not self._waiting:
                asyncio.get_running_loop().call_soon(self._flush)
            self._waiting.append((message, take))

    def _flush(self) -> None:
        self._lone = self._lone + 1 if len(self._waiting) == 1 else 0
        count = min(self._tuning.batch, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(count)]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        replies = self._answer([message for message, _ in batch])
        for (_, take), reply in zip(batch, replies, strict=True):
            take(reply)

    def _answer(self, messages: Sequence[Message]) -> list[Reply]:
        try:
            return self._answering(messages)
        except Exception:
            log.exception("%s: a whole batch failed", self._name)
            return [failure_reply(message.id) for message in messages]

    def _answer_alone(self, message: Message) -> Reply:
        return self._answer([message])[0]

    def _come_back(self, reply: Reply, take: Take) -> None:
        self._beside -= 1
        take(reply)

    def take(self) -> Sums:
        """What was done since the last time."""
        return self._answering.tally.take()

    async def stop(self) -> None:
        """Answer what waits, then nothing more."""
        self._stopped = True
        while self._waiting:
            self._flush()
        await asyncio.to_thread(self._thread.shutdown)


def _time(answering: Answering, message: Message) -> float:
    start = time.perf_counter()
    answering([message])
    return time.perf_counter() - start
