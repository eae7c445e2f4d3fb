"""The way of a request to a model: what every way offers, and the answers that no model gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from dropserve.errors import UsageError
from dropserve.serving.answering import Message
from dropserve.serving.protocol import Reply
from dropserve.serving.tally import Sums

Take = Callable[[Reply], None]
Place = Literal["auto", "server", "process"]
PLACES: tuple[Place, ...] = ("auto", "server", "process")
_BUSY = 1  # seconds after which a refused client may well ask again
_LOADING = 5


@dataclass(frozen=True)
class Tuning:
    """What ``model-config.yaml`` says of one endpoint, as far as this host heeds it.

    Attributes:
        batch: most requests that are computed together.
        queue: most requests that wait.
        timeout: seconds until a request must be answered.
        startup: seconds until a worker must have loaded its model.
        workers: processes, where the endpoint has processes of its own.
        place: where it is computed.
        handler: what the endpoint itself reads.
    """

    batch: int = 1
    queue: int = 100
    timeout: float = 120.0
    startup: float = 120.0
    workers: int = 1
    place: Place = "auto"
    handler: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, config: dict[str, Any]) -> Tuning:
        """From the content of the file, with TorchServe's own defaults."""
        place = config.get("place", "auto")
        if place not in PLACES:
            raise UsageError(f"model-config.yaml: place {place!r}; expected {', '.join(PLACES)}")
        return cls(
            batch=config.get("batchSize", 1),
            queue=config.get("jobQueueSize", 100),
            timeout=config.get("responseTimeout", 120),
            startup=config.get("startupTimeout", 120),
            workers=config.get("minWorkers", 1),
            place=place,
            handler=config.get("handler") or {},
        )


class Lane(Protocol):
    """One endpoint's way: a queue, and what answers it."""

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The model as V2 describes it; None until it has been loaded once."""
        ...

    @property
    def problem(self) -> str | None:
        """Why it would not answer now, in words; None when it would."""
        ...

    @property
    def waiting(self) -> int:
        """Requests without an answer yet."""
        ...

    @property
    def restarts(self) -> int:
        """How often a process had to be started again."""
        ...

    def ask(self, message: Message, take: Take) -> None:
        """Give the reply to ``take`` when it is there: once, whatever happens, and perhaps at once."""
        ...

    def take(self) -> Sums:
        """What was done since the last time."""
        ...

    async def stop(self) -> None:
        """Let go of everything; what waits is refused."""
        ...


def refusal(status: int, text: str, **headers: str) -> Reply:
    """A reply of the host's own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, orjson.dumps({"error": text}), headers=named)


def full(queue: int) -> Reply:
    """The queue is as long as it may be."""
    return refusal(
        503, f"{queue} requests are waiting for this model already; try again", retry_after=f"{_BUSY}"
    )


def not_ready(name: str, problem: str) -> Reply:
    """Nobody is there to answer."""
    return refusal(503, f"{name} is not ready: {problem}", retry_after=f"{_LOADING}")


def waited(seconds: float) -> Reply:
    """It was not begun in time."""
    return refusal(503, f"no answer could be begun within {seconds:g} s; try again", retry_after=f"{_BUSY}")


def hung(seconds: float) -> Reply:
    """It was begun, and not ended in time."""
    return refusal(504, f"the model did not answer within {seconds:g} s; its worker was started again")


def awaited(ask: Callable[[Message, Take], None], message: Message) -> asyncio.Future[Reply]:
    """The reply to a request, to be awaited."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    ask(message, lambda reply: None if future.done() else future.set_result(reply))  # or it was cancelled
    return future
