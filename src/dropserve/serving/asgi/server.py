"""The server's process: ``python -m dropserve.serving.asgi.server DEPLOYMENT``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dropserve.serving.asgi.app import App, Policy
from dropserve.serving.asgi.desk import Desk
from dropserve.serving.asgi.engine import Settings
from dropserve.serving.deployment import MODEL_LOG, Deployment
from dropserve.serving.runtime import LOOPBACK

_IDLE = 75  # seconds that a connection may lie idle: longer than clients and balancers keep theirs
_LEAVE = 0.3  # seconds in which clients are told to leave, before the doors are closed
_NEWCOMERS = 100  # moments that a connection without a request yet is waited for
_MOMENT = 0.02
_DRAIN = 7  # seconds for what is still computed; the supervisor kills after ten
_HEAD = 65_536  # bytes of a request before its body
_LOG_BYTES, _LOG_FILES = 10_000_000, 3
log = logging.getLogger("dropserve.serving.asgi")


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on what may come before a body: its own would read headers for ever."""

    _head: int | None = None  # bytes of the headers that are being read

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > _HEAD and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")


class _Server(uvicorn.Server):
    """Signals are ours: both servers stop together, after a pause for clients to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
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
        return _Protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


_configured = partial(
    uvicorn.Config,
    http=_Protocol,
    ws="none",
    lifespan="off",
    log_config=None,
    access_log=False,
    proxy_headers=False,
    server_header=False,
    date_header=False,
    backlog=2048,
    timeout_keep_alive=_IDLE,
    timeout_graceful_shutdown=_DRAIN,
)


async def serve(deployment: Deployment) -> None:
    """Listen at once, be ready when every model is, drain and end on SIGTERM or SIGINT."""
    settings = Settings.read(deployment)
    key = deployment.authorization("inference").get("authorization", "").removeprefix("Bearer ")
    policy = Policy(longest=settings.longest, token=key or None)
    desks = [Desk(e, deployment.folder / "models" / e.name) for e in deployment.endpoints]
    app = App(desks, policy)
    public = _configured(
        app,
        host=deployment.host,
        port=deployment.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    private = _configured(app.pages, host=LOOPBACK, port=deployment.management_port)
    servers = [_Server(public), _Server(private)]
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = [asyncio.create_task(server.serve()) for server in servers]
    opening = [asyncio.create_task(desk.open()) for desk in desks]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    app.draining = True
    if stop.is_set():
        await asyncio.sleep(_LEAVE)  # who asks now is answered, and told to leave
        for server in servers:
            await server.close_doors()
        await asyncio.gather(*(server.hear_newcomers() for server in servers))
    for server in servers:
        server.should_exit = True
    results = await asyncio.gather(*running, return_exceptions=True)
    stopping.cancel()
    await asyncio.gather(*opening, return_exceptions=True)
    await asyncio.gather(*(desk.close() for desk in desks))
    if not stop.is_set():
        raise RuntimeError(f"a listener ended: {results}")


def _log_to(folder: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(
        folder / MODEL_LOG, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s - %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # A request that is no HTTP is answered, and is nothing that an operator must read of.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def main() -> None:
    """Read the deployment and serve it."""
    deployment = Deployment.model_validate_json(Path(sys.argv[1]).read_bytes())
    _log_to(deployment.logs)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(deployment))


if __name__ == "__main__":
    main()
