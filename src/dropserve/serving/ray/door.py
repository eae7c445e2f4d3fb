"""What stands in Ray Serve's HTTP proxy, on every node: our bounds, our answers, and our way to the replicas.

Ray's proxy passes a request on by a call to a replica, and its body by another call back. It tells errors in
plain text, reads headers for ever, loses what a dead replica held, and ends with connections open. So
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=dropserve.serving.ray.door:middlewares`` puts this before it:
requests that compute are met here and go out in batches; all others take Ray's way, and its refusals are told
in our words. Without it the application answers the same, more slowly, and Ray's errors are Ray's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.middleware import Middleware

from dropserve.serving.answering import Message
from dropserve.serving.asgi.doors import Server, leave, settings
from dropserve.serving.asgi.front import Front, Policy
from dropserve.serving.asgi.lane import not_ready, refusal
from dropserve.serving.protocol import Reply
from dropserve.serving.ray import names
from dropserve.serving.ray.away import Answer, Away, Failure
from dropserve.serving.ray.replica import Description, log_to

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as Event

log = logging.getLogger("dropserve.serving.ray")
_FOLLOW = 1.0  # seconds between two looks at what is served
_TOLD = 5.0  # seconds that a replica may take to say it
_LOOK = 0.1
_TRIES = 3
_OURS = ("/v1/", "/v2", "/predictions/", "/metrics", "/openapi.json")
_READY = "/v2/health/ready"
_RAYS = {404, 408, 429, 500, 503}  # what Ray says in plain text; ours is JSON
_servers: list[Server] = []


class _Server(Server):
    """In place of the one that Ray makes."""

    def __init__(self, config: uvicorn.Config) -> None:
        for name, value in settings(Door.front).items():
            setattr(config, name, value)
        super().__init__(config)
        _servers.append(self)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if folder := _local():
            (folder / names.LEFT).touch()


def middlewares() -> list[Middleware]:
    """Ray's proxy calls this before it listens."""
    uvicorn.Server = _Server
    folder = _local()
    log_to(folder and folder.parent / "logs")
    return [Middleware(Door)]


def _local() -> Path | None:
    """The folder of the deployment, where ``dropserve serve`` started this Ray."""
    found = os.environ.get(names.DEPLOYMENT)
    return Path(found) if found else None


def _how(error: Exception) -> Failure:
    """What Ray's exceptions mean."""
    from ray.exceptions import RayActorError  # noqa: PLC0415  # Ray's processes only
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError  # noqa: PLC0415

    if isinstance(error, BackPressureError):
        return "busy"
    return "gone" if isinstance(error, RayActorError | DeploymentUnavailableError) else "other"


class Door:
    """ASGI middleware around Ray's proxy.

    Args:
        app: the proxy.
    """

    _here: Front | None = None

    @classmethod
    def front(cls) -> Front | None:
        """Meets the requests of this process."""
        return cls._here

    def __init__(self, app: ASGIApp) -> None:
        self._proxy = app
        self._name = f"door-{uuid.uuid4().hex[:8]}"
        self._front = Door._here = Front((), Policy(), self._page, guarded=False)
        self._served: Description | None = None
        self._ways: list[Away] = []
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._await_leave())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._front(scope, receive, send)

    async def _follow(self) -> None:
        """Know what is served, from a moment after it is."""
        handle: Any = None
        while True:
            try:
                handle = handle or await asyncio.to_thread(_handle)
                waiting = {way.endpoint.name: way.queued for way in self._ways}
                told: Description = await asyncio.wait_for(handle.describe.remote(self._name, waiting), _TOLD)
                self._take(told, handle)
            except Exception as error:  # noqa: BLE001  # nothing is served now, or Ray is busy with it
                log.debug("nothing is served yet: %s", error)
                handle = handle if self._served else None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _FOLLOW)

    def _take(self, told: Description, handle: Any) -> None:
        if self._served is not None and (told.endpoints, told.policy) == (
            self._served.endpoints,
            self._served.policy,
        ):
            return
        self._served = told

        async def call(name: str, version: int, messages: list[Message]) -> Answer:
            return await handle.answer.remote(name, version, messages)

        async def probe() -> object:
            return await handle.describe.remote(self._name, {})

        old = self._ways
        self._ways = [
            Away(endpoint, tuning, call, probe, _how, self._changed.set)
            for endpoint, tuning in told.endpoints
        ]
        self._front.exchange(self._ways, told.policy)
        for way in old:
            task = asyncio.create_task(way.close())
            self._tasks.append(task)
            task.add_done_callback(self._tasks.remove)

    async def _await_leave(self) -> None:
        """Close when the server's process says so, and lose nothing."""
        folder = _local()
        while folder is not None:
            await asyncio.sleep(_LOOK)
            if (folder / names.LEAVE).exists():
                self._front.draining = True
                await leave(_servers)
                return

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What does not compute: by Ray's way, and its refusals in our words."""
        path: str = scope["path"]
        if self._front.draining and path == _READY:
            await _say(send, refusal(503, "the server is stopping"))
            return
        if path != "/" and not path.startswith(_OURS):
            await self._proxy(scope, receive, send)
            return
        tries = _TRIES if scope["method"] in {"GET", "HEAD"} else 1
        for turn in range(tries):
            found = _Listener(send)
            await self._proxy({**scope, "headers": list(scope["headers"])}, receive, found)
            if found.passed:
                return
            if found.status == 404:  # every path is ours once the application is there
                await _say(send, not_ready("the server", "nothing is served yet"))
                return
            await asyncio.sleep(_LOOK * (turn + 1))
        await _say(send, not_ready("the server", "no replica has answered"))


class _Listener:
    """Passes on what the application says, and keeps back what Ray says in its place."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.passed = False
        self.status = 500  # Ray says nothing at all where a replica has died

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            kinds = [value for name, value in event["headers"] if bytes(name).lower() == b"content-type"]
            plain = any(bytes(kind).startswith(b"text/plain") for kind in kinds)
            self.passed = not (plain and self.status in _RAYS)
        if self.passed:
            await self._send(event)


async def _say(send: Send, reply: Reply) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply.body))]
    headers += [(name.encode(), value.encode()) for name, value in (reply.headers or {}).items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _handle() -> Any:
    from ray import serve  # noqa: PLC0415  # Ray's processes only

    return serve.get_app_handle(os.environ.get(names.ROUTED, names.APPLICATION))


__all__ = ["Door", "middlewares"]
