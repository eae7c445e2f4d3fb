"""The server's process: ``python -m dropserve.serving.asgi.server DEPLOYMENT``."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import signal
import sys
from pathlib import Path

import uvloop

from dropserve.serving.asgi.app import App, Policy
from dropserve.serving.asgi.desk import Desk
from dropserve.serving.asgi.doors import Server, configured, leave
from dropserve.serving.asgi.engine import Settings
from dropserve.serving.deployment import MODEL_LOG, Deployment
from dropserve.serving.runtime import LOOPBACK

_LOG_BYTES, _LOG_FILES = 10_000_000, 3
log = logging.getLogger("dropserve.serving.asgi")


async def serve(deployment: Deployment) -> None:
    """Listen at once, be ready when every model is, drain and end on SIGTERM or SIGINT."""
    settings = Settings.read(deployment)
    key = deployment.authorization("inference").get("authorization", "").removeprefix("Bearer ")
    policy = Policy(longest=settings.longest, token=key or None)
    desks = [Desk(e, deployment.folder / "models" / e.name) for e in deployment.endpoints]
    app = App(desks, policy)
    public = configured(
        app,
        host=deployment.host,
        port=deployment.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.private_key,
    )
    private = configured(app.pages, host=LOOPBACK, port=deployment.management_port)
    servers = [Server(public), Server(private)]
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = [asyncio.create_task(server.serve()) for server in servers]
    opening = [asyncio.create_task(desk.open()) for desk in desks]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
    app.draining = True
    if stop.is_set():
        await leave(servers)
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
