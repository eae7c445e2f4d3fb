"""One replica: the ASGI application as Ray Serve's ingress; its desks can be asked for many in one call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from dropserve.errors import ServerError
from dropserve.serving.answering import Message
from dropserve.serving.asgi.app import App
from dropserve.serving.asgi.desk import Desk
from dropserve.serving.asgi.front import Policy
from dropserve.serving.asgi.lane import Tuning, awaited
from dropserve.serving.deployment import MODEL_LOG, Endpoint
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.serving.protocol import Reply
from dropserve.serving.ray.books import Entries, Entry
from dropserve.serving.ray.inside import keep_inside

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

    from dropserve.serving.ray.source import Source

log = logging.getLogger("dropserve.serving.ray")
_TELL = 1.0  # seconds between two reports to the books
_LOOK = 0.05


@dataclass(frozen=True)
class Description:
    """What a door must know.

    Attributes:
        replica: who says so.
        endpoints: what is served, with its tuning.
        policy: what is asked of every request.
    """

    replica: str
    endpoints: list[tuple[Endpoint, Tuning]]
    policy: Policy


class Replica:
    """Loads every endpoint before it is ready; Ray asks nobody else.

    Args:
        source: what it serves.
        books: a handle to the deployment that adds up figures.

    Raises:
        ServerError: if a model cannot be loaded.
        CorruptStoreError: if a file is not what was published.
    """

    _here: Replica | None = None

    async def __init__(self, source: Source, books: Any) -> None:
        keep_inside()
        opened = await asyncio.to_thread(source.open)
        log_to(opened.logs)
        self._id = uuid.uuid4().hex[:8]
        self._policy, self._books = opened.policy, books
        self._restarts: dict[str, int] = {}
        self._telling = asyncio.Lock()
        self._host = App(opened.desks, opened.policy, self._figures, numbered=False)
        await asyncio.gather(*(desk.open() for desk in opened.desks))
        for desk in opened.desks:
            await _loaded(desk)
        Replica._here = self
        self._reporting = asyncio.create_task(self._report())

    @classmethod
    def app(cls) -> ASGIApp:
        """The application of the replica that lives in this process."""
        if cls._here is None:
            raise RuntimeError("no replica lives here")
        return cls._here._host

    async def answer(
        self, name: str, version: int, messages: list[Message]
    ) -> tuple[str, list[Reply] | None]:
        """Who answers, and one reply a message; None if it does not serve this version."""
        desk = self._host.desks.get(name)
        if desk is None or desk.endpoint.version != version:
            return self._id, None
        return self._id, await asyncio.gather(*(awaited(desk.ask, message) for message in messages))

    async def describe(self, door: str, waiting: dict[str, int]) -> Description:
        """Tell a door what is served.

        Args:
            door: who asks.
            waiting: requests that wait there, by endpoint.
        """
        if waiting:
            await self._books.add.remote(door, {name: Entry(waiting=n) for name, n in waiting.items()})
        desks = self._host.desks.values()
        return Description(self._id, [(desk.endpoint, desk.tuning) for desk in desks], self._policy)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_TELL)
            with contextlib.suppress(Exception):  # the books may be away for a moment; what is untold stays
                await self._tell()

    async def _tell(self) -> None:
        async with self._telling:
            entries: Entries = {}
            for name, desk in self._host.desks.items():
                new = desk.restarts - self._restarts.get(name, 0)
                entries[name] = Entry(desk.take(), desk.waiting, new)
                self._restarts[name] = desk.restarts
            await self._books.add.remote(self._id, entries)

    async def _figures(self) -> bytes:
        try:
            await self._tell()
            return await self._books.text.remote()
        except Exception as error:
            raise HTTPException(503, "the figures are not there now; try again") from error


async def _loaded(desk: Desk) -> None:
    """Wait until it answers.

    Raises:
        ServerError: if it never will.
    """
    deadline = time.monotonic() + desk.tuning.startup
    while (problem := desk.problem) is not None:
        if "cannot" in problem or time.monotonic() > deadline:
            raise ServerError(f"{LOAD_FAILED} {desk.endpoint.name}: {problem}")
        await asyncio.sleep(_LOOK)


def log_to(folder: Path | None) -> None:
    """Write our log into a file that all processes of this machine share, or where Ray keeps its own."""
    ours = logging.getLogger("dropserve")
    if ours.handlers:
        return
    # Each line is appended in one step; the server's process puts full files aside.
    handler = (
        logging.StreamHandler() if folder is None else logging.handlers.WatchedFileHandler(folder / MODEL_LOG)
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s - %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.WARNING)
    ours.propagate = False


__all__ = ["Description", "Replica", "log_to"]
