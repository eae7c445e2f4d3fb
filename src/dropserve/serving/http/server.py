"""The server's process: ``python -m dropserve.serving.http.server DEPLOYMENT`` runs uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import logging.handlers
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop

from dropserve.serving.deployment import MODEL_LOG, Deployment
from dropserve.serving.http.app import App, ModelEndpoint
from dropserve.serving.http.guard import GuardedConnection, guarded
from dropserve.serving.http.launch import ServerSettings
from dropserve.serving.http.routes import with_cors
from dropserve.serving.runtime import LOOPBACK

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_LEAVE = 0.3  # seconds in which callers are told to leave, before the listener is closed
_NEWCOMERS = 100  # moments that a connection without a request yet is waited for
_DRAIN = 7  # seconds for what is still computed; who supervises kills later
_IDLE = 75  # seconds that a connection may lie idle: longer than clients and balancers keep theirs
_LOG_BYTES, _LOG_FILES = 10_000_000, 3
_LOOK = 0.02
log = logging.getLogger("dropserve.serving.http")


def listener(app: ASGIApp, **given: Any) -> uvicorn.Server:
    """Uvicorn for an application.

    Args:
        app: what it serves.
        given: what else uvicorn is to know.
    """
    config = uvicorn.Config(
        guarded(app),
        http=GuardedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_DRAIN,
        **given,
    )
    return uvicorn.Server(config)


async def until_signal(servers: Sequence[uvicorn.Server], running: Sequence[asyncio.Task[Any]]) -> bool:
    """Wait for SIGTERM, SIGINT or SIGHUP; False if a server has ended by itself before."""
    while not (all(s.started for s in servers) or any(t.done() for t in running)):  # noqa: ASYNC110  # no event
        await asyncio.sleep(_LOOK)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # in place of what uvicorn has installed
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return stop.is_set()


async def serve(deployment: Deployment) -> None:
    """Listen at once, be ready when every model is, drain and end on SIGTERM or SIGINT."""
    settings = ServerSettings.read(deployment)
    endpoints = [ModelEndpoint(e, deployment.folder / "models" / e.name) for e in deployment.endpoints]
    app = App(endpoints, policy := settings.policy(deployment))
    public = listener(
        with_cors(app, policy),
        host=deployment.host,
        port=deployment.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    private = listener(app.private, host=LOOPBACK, port=deployment.management_port)
    servers = [public, private]
    running = [asyncio.create_task(server.serve()) for server in servers]
    opening = [asyncio.create_task(endpoint.open()) for endpoint in endpoints]
    freezing = asyncio.gather(*opening, return_exceptions=True)
    freezing.add_done_callback(lambda _: gc.freeze())  # what stays for good is not looked through again
    stopped = await until_signal(servers, running)
    app.draining = True
    if stopped:
        await _leave(servers)
    for server in servers:
        server.should_exit = True
    results = await asyncio.gather(*running, return_exceptions=True)
    await freezing
    await asyncio.gather(*(endpoint.close() for endpoint in endpoints))
    if not stopped:
        raise RuntimeError(f"a listener ended: {results}")


async def _leave(servers: Sequence[uvicorn.Server]) -> None:
    """Answer whoever asks, with ``Connection: close``; let nobody in any more; answer who has come in."""
    await asyncio.sleep(_LEAVE)
    for server in servers:
        await _close_listeners(server)
    for _ in range(_NEWCOMERS):
        if not GuardedConnection.newcomers:
            return
        await asyncio.sleep(_LOOK)


async def _close_listeners(server: uvicorn.Server) -> None:
    """Take every connection that the system has made: it would cut off those that the loop has not taken."""
    loop = asyncio.get_running_loop()
    accepted: list[socket.socket] = []
    for each in server.servers:
        for listening in each.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as twin:
                twin.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        accepted.append(twin.accept()[0])
        each.close()
    for connection in accepted:
        connection.setblocking(False)
        made = partial(GuardedConnection, server.config, server.server_state, {})
        await loop.connect_accepted_socket(made, connection, ssl=server.config.ssl)


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
        gc.set_threshold(50_000, 20, 100)
        runner.run(serve(deployment))


if __name__ == "__main__":
    main()
