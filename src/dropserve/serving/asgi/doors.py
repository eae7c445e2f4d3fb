"""uvicorn as our hosts use it: its headers have a bound, and it closes without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from dropserve.serving.asgi.direct import Direct
from dropserve.serving.asgi.front import Front
from dropserve.serving.asgi.linger import Linger

if TYPE_CHECKING:
    from starlette.types import ASGIApp

LEAVE = 0.3  # seconds in which clients are told to leave, before the doors are closed
DRAIN = 7  # seconds for what is still computed; who supervises kills later
_IDLE = 75  # seconds that a connection may lie idle: longer than clients and balancers keep theirs
_NEWCOMERS = 100  # moments that a connection without a request yet is waited for
_MOMENT = 0.02
_HEAD = 65_536  # bytes of a request before its body


class Protocol(Direct):
    """As it is, with a bound on what may come before a body: uvicorn would read headers for ever."""

    # Bytes of the headers that are being read, but for those of the piece in which they began: that one may
    # hold requests before them too.
    _head: int | None = None
    _began = False

    def on_message_begin(self) -> None:
        """The headers of a request begin."""
        self._head, self._began = 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """They are whole."""
        self._head = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._began = False
        super().data_received(data)
        if self._head is not None and not self._began:
            self._head += len(data)
            if self._head > _HEAD and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")


class Server(uvicorn.Server):
    """Signals are not its own: servers stop together, after a pause for clients to leave (:func:`leave`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave them to whoever runs it."""
        yield

    async def close_doors(self) -> None:
        """Let nobody in any more; who is in stays, and so does who stands at the door.

        The system would cut off connections that it has made and the loop has not yet taken.
        """
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        for listener in self.servers:
            for door in listener.sockets:
                with socket.socket(fileno=os.dup(door.fileno())) as taken:
                    taken.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            waiting.append(taken.accept()[0])
            listener.close()
        for connection in waiting:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    async def hear_newcomers(self) -> None:
        """Give who has just come in, and has not asked yet, some time to do so."""
        connections = self.server_state.connections
        for _ in range(_NEWCOMERS):
            if not any(getattr(each, "cycle", None) is None for each in connections):
                return
            await asyncio.sleep(_MOMENT)

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class  # called as uvicorn calls it
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def settings(front: Callable[[], Front | None]) -> dict[str, Any]:
    """What an ASGI server is given here, whoever makes it.

    Args:
        front: knows who computes, once there are connections; None where no request does.
    """
    return {
        "http": partial(Protocol, front=front, linger=Linger()),
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "date_header": False,
        "backlog": 2048,
        "timeout_keep_alive": _IDLE,
        "timeout_graceful_shutdown": DRAIN,
    }


def configured(app: ASGIApp, **given: Any) -> uvicorn.Config:
    """A server for an application.

    Args:
        app: what it serves; a :class:`Front` meets requests where they are parsed.
        given: what else uvicorn is to know.
    """
    front = app if isinstance(app, Front) else None
    return uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, **settings(lambda: front), **given
    )


async def leave(servers: Sequence[Server]) -> None:
    """Have servers end once all that was accepted is answered; clients have been told to leave."""
    await asyncio.sleep(LEAVE)  # who asks now is answered, and told so
    for server in servers:
        await server.close_doors()
    await asyncio.gather(*(server.hear_newcomers() for server in servers))
    for server in servers:
        server.should_exit = True
