"""What computes the answers of an endpoint: the protocol ``Backend``, and the one in the server's process.

``WorkerPool`` (``pool.py``) is the other one. The application knows no more of them than the protocol says.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from dropserve.errors import UsageError
from dropserve.serving.answering import WARM_HEADER, BatchHandler, HttpRequest
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.metadata import describe_model
from dropserve.serving.protocol import Reply, failure_reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.http")
OnReply = Callable[[Reply], None]
Withdraw = Callable[[], None]  # nothing happens if the request is answered already
Place = Literal["auto", "server", "process"]
PLACES: tuple[Place, ...] = ("auto", "server", "process")
FAST = 0.001  # seconds: asking another process takes some tenth of it
SMALL = 16_384  # bytes of a body that is computed on the event loop; a longer one would keep others waiting
_ENCODED = (b"b64", b"BYTES", b"\\")  # marks of an image file in JSON; the last may hide the others
_TRIES = 20
_BUSY = 1  # seconds after which a refused client may well ask again
_LOADING = 5


@dataclass(frozen=True)
class EndpointConfig:
    """What ``model-config.yaml`` says of one endpoint, as far as this host heeds it.

    Attributes:
        batch_size: most requests that are computed together.
        queue_size: most requests that wait.
        response_timeout_s: seconds until a request must be answered.
        startup_timeout_s: seconds until a worker must have loaded its model.
        workers: processes, where the endpoint has processes of its own.
        place: where it is computed.
        handler: what the endpoint itself reads.
    """

    batch_size: int = 1
    queue_size: int = 100
    response_timeout_s: float = 120.0
    startup_timeout_s: float = 120.0
    workers: int = 1
    place: Place = "auto"
    handler: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, config: dict[str, Any]) -> EndpointConfig:
        """From the content of the file, with TorchServe's own defaults."""
        place = config.get("place", "auto")
        if place not in PLACES:
            raise UsageError(f"model-config.yaml: place {place!r}; expected {', '.join(PLACES)}")
        return cls(
            batch_size=config.get("batchSize", 1),
            queue_size=config.get("jobQueueSize", 100),
            response_timeout_s=config.get("responseTimeout", 120),
            startup_timeout_s=config.get("startupTimeout", 120),
            workers=config.get("minWorkers", 1),
            place=place,
            handler=config.get("handler") or {},
        )


class Stats(NamedTuple):
    """How busy a backend is.

    Attributes:
        waiting: requests without an answer yet.
        restarts: how often a process had to be started again.
    """

    waiting: int
    restarts: int


class Backend(Protocol):
    """Computes the answers of one endpoint."""

    @property
    def ready(self) -> str | None:
        """None if it would answer now; otherwise why not, in words."""
        ...

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The model as the Open Inference Protocol describes it; None until it has been loaded once."""
        ...

    @property
    def stats(self) -> Stats:
        """How busy it is."""
        ...

    def submit(self, request: HttpRequest, on_reply: OnReply) -> Withdraw | None:
        """Compute an answer.

        Args:
            request: as it came.
            on_reply: called with the reply once, perhaps before this returns.

        Returns:
            Withdraws the request; None where its work is too short for that.
        """
        ...

    def drain(self) -> Sums:
        """What was done since the last call."""
        ...

    async def close(self) -> None:
        """Let go of everything; what waits is refused."""
        ...


def refusal(status: int, text: str, **headers: str) -> Reply:
    """A reply of the host's own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, orjson.dumps({"error": text}), headers=named)


def queue_full(queue_size: int) -> Reply:
    """The queue is as long as it may be."""
    return refusal(
        503, f"{queue_size} requests are waiting for this model already; try again", retry_after=f"{_BUSY}"
    )


def unavailable(name: str, problem: str) -> Reply:
    """Nobody is there to answer."""
    return refusal(503, f"{name} is not ready: {problem}", retry_after=f"{_LOADING}")


def queue_timeout(seconds: float) -> Reply:
    """It was not begun in time."""
    return refusal(503, f"no answer could be begun within {seconds:g} s; try again", retry_after=f"{_BUSY}")


def response_timeout(seconds: float, *, restarted: bool) -> Reply:
    """It was begun, and not ended in time."""
    more = "; its worker was started again" if restarted else "; send fewer instances or samples at once"
    return refusal(504, f"the model did not answer within {seconds:g} s{more}")


class InProcessBackend:
    """Computes in the server's process: short requests on the event loop, others on a thread beside it.

    Requests that are read in one turn of the loop are computed together at its end; none waits for others.

    Args:
        folder: the unpacked archive.
        endpoint: the name that it is served under.
        config: its section of ``model-config.yaml``.

    Attributes:
        seconds: that the example row takes at best, from bytes to bytes.

    Raises:
        DropserveError: as :func:`load_endpoint`.
    """

    def __init__(self, folder: Path, endpoint: str, config: EndpointConfig) -> None:
        loaded = load_endpoint(folder, endpoint, config.handler)
        self.metadata: dict[str, Any] | None = describe_model(endpoint, loaded)
        self._handle = BatchHandler(endpoint, loaded)
        self._images = bool(loaded.predictor.manifest.images)
        self._name, self._config = endpoint, config
        self._queue: list[tuple[HttpRequest, OnReply]] = []
        self._beside = 0
        self._thread = ThreadPoolExecutor(1, f"{endpoint}-long")
        self._closed = False
        example = HttpRequest(loaded.predictor.example(), "warm", {WARM_HEADER: "1"})
        self.seconds = min(_time(self._handle, example) for _ in range(_TRIES))
        self._handle.tally.take()

    @property
    def ready(self) -> str | None:
        """It answers from the moment that it is there."""
        return "the server is stopping" if self._closed else None

    @property
    def stats(self) -> Stats:
        """How busy it is."""
        return Stats(len(self._queue) + self._beside, 0)

    def submit(self, request: HttpRequest, on_reply: OnReply) -> None:
        """Compute an answer; its work is too short to be withdrawn."""
        queue = self._queue
        if self._closed:
            on_reply(unavailable(self._name, "the server is stopping"))
        elif len(queue) + self._beside >= self._config.queue_size:
            on_reply(queue_full(self._config.queue_size))
        elif len(request.body) > SMALL or (self._images and _may_hold_image(request.body)):
            self._beside += 1
            answer = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, [request])
            answer.add_done_callback(lambda found: self._come_back(found.result()[0], on_reply))
        else:
            if not queue:
                asyncio.get_running_loop().call_soon(self._flush)
            queue.append((request, on_reply))

    def _flush(self) -> None:
        size = self._config.batch_size
        batch, self._queue = self._queue[:size], self._queue[size:]
        if self._queue:
            asyncio.get_running_loop().call_soon(self._flush)
        replies = self._compute([request for request, _ in batch])
        for (_, on_reply), reply in zip(batch, replies, strict=True):
            on_reply(reply)

    def _compute(self, requests: Sequence[HttpRequest]) -> list[Reply]:
        try:
            return self._handle(requests)
        except Exception:
            log.exception("%s: a whole batch failed", self._name)
            return [failure_reply(request.id) for request in requests]

    def _come_back(self, reply: Reply, on_reply: OnReply) -> None:
        self._beside -= 1
        on_reply(reply)

    def drain(self) -> Sums:
        """What was done since the last call."""
        return self._handle.tally.take()

    async def close(self) -> None:
        """Answer what waits, then nothing more."""
        self._closed = True
        while self._queue:
            self._flush()
        await asyncio.to_thread(self._thread.shutdown)


def _may_hold_image(body: bytes) -> bool:
    """Whether an image file may be in it: some kilobytes of it may be millions of pixels."""
    return body.lstrip()[:1] != b"{" or any(mark in body for mark in _ENCODED)


def _time(handle: BatchHandler, request: HttpRequest) -> float:
    start = time.perf_counter()
    handle([request])
    return time.perf_counter() - start
