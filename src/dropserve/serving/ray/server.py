"""The server's process: ``python -m dropserve.serving.ray.server DEPLOYMENT``.

It starts a Ray of its own, on loopback, deploys the application, and ends both on SIGTERM or SIGINT. Clients
are met by Ray's HTTP proxy; here is only a private listener, which asks through the same door as they do.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dropserve.serving.asgi.doors import DRAIN, LEAVE, Server, configured
from dropserve.serving.asgi.engine import Settings
from dropserve.serving.deployment import MODEL_LOG, Deployment
from dropserve.serving.ray import names
from dropserve.serving.ray.app import application
from dropserve.serving.ray.engine import SETTINGS
from dropserve.serving.ray.replica import log_to
from dropserve.serving.ray.scaling import Scaling
from dropserve.serving.ray.source import Unpacked
from dropserve.serving.runtime import LOOPBACK

_OBJECTS = 150_000_000  # bytes of shared memory for what is too long for a call
_IDLE = 75  # seconds that a connection may lie idle
_NEWCOMERS = 2.5  # seconds that the doors may take to hear who has just come in
_MARGIN = 10.0
_LOOK = 0.1
_TRIM = 30.0
_WATCH = 0.5
_VITAL = ("gcs_server", "raylet")
_LOG_BYTES, _LOG_FILES = 10_000_000, 3
_RAYS_LOGS = 24  # files of some starts
_ASK = 5.0
_SHOWN = ["/v2/health/live", "/v2/health/ready", "/v2/models/{model}", "/v2/models/{model}/ready", "/metrics"]
log = logging.getLogger("dropserve.serving.ray")


def start(deployment: Deployment) -> None:
    """Start Ray and Serve, deploy the application, and return when it is there."""
    import ray  # noqa: PLC0415  # it takes seconds; what can be said before is said before
    from ray import serve  # noqa: PLC0415
    from ray.serve.schema import LoggingConfig  # noqa: PLC0415

    scaling = Scaling.model_validate_json((deployment.folder / SETTINGS).read_bytes())
    settings = Settings.read(deployment)
    for name in (names.LEAVE, names.LEFT):  # of an earlier run that was asked to end
        (deployment.folder / name).unlink(missing_ok=True)
    logs = deployment.logs / "ray"
    logs.mkdir(parents=True, exist_ok=True)
    _keep_newest(logs)
    ray.init(
        address="local",  # never another Ray of this machine
        num_cpus=math.ceil(scaling.processors) + 1,
        num_gpus=0,
        object_store_memory=_OBJECTS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        namespace=names.APPLICATION,
        _node_ip_address=LOOPBACK,
        _temp_dir=str(deployment.scratch),
    )
    told = LoggingConfig(enable_access_log=False, log_level="WARNING", logs_dir=str(logs))
    http: dict[str, Any] = {
        "host": deployment.host,
        "port": deployment.port,
        "keep_alive_timeout_s": _IDLE,
        "request_timeout_s": (deployment.longest_silence or 0) + _MARGIN,
    }
    if settings.certificate is not None:
        http |= {"ssl_certfile": settings.certificate, "ssl_keyfile": settings.private_key}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=told)
    source = Unpacked(file=deployment.folder / "deployment.json")
    app = application(source, scaling.options)
    serve.run(app, name=names.APPLICATION, route_prefix="/", logging_config=told)


def _keep_newest(logs: Path) -> None:
    """Ray names its logs by process and replica, so each start makes new ones."""
    for old in sorted(logs.iterdir(), key=lambda path: path.stat().st_mtime)[:-_RAYS_LOGS]:
        old.unlink()


class Private:
    """The private listener: the health and the figures of what clients see.

    Args:
        deployment: whom it asks.
    """

    def __init__(self, deployment: Deployment) -> None:
        # Our own process on our own machine: there is no name that a certificate could speak for.
        self._http = httpx.AsyncClient(
            base_url=deployment.url,
            headers=deployment.authorization("inference"),
            timeout=_ASK,
            verify=False,  # noqa: S501  # see above
        )
        routes = [Route(path, self._pass, methods=["GET"]) for path in _SHOWN]
        routes.append(Route("/{path:path}", self._refuse, methods=["POST"]))
        self.app = Starlette(routes=routes)

    async def _pass(self, request: Request) -> Response:
        try:
            found = await self._http.get(request.scope["raw_path"].decode("latin-1"))
        except httpx.HTTPError as error:
            return JSONResponse({"error": f"no answer: {type(error).__name__}: {error}"}, 503)
        return Response(found.content, found.status_code, media_type=found.headers.get("content-type"))

    async def _refuse(self, _: Request) -> Response:
        return JSONResponse(
            {"error": "nothing is computed here; ask where clients do"}, 405, {"allow": "GET"}
        )


async def keep(deployment: Deployment) -> None:
    """Serve until SIGTERM or SIGINT, then have the doors closed behind the last answer."""
    server = Server(configured(Private(deployment).app, host=LOOPBACK, port=deployment.management_port))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(server.serve())
    trimming = asyncio.create_task(_trim(deployment.logs / MODEL_LOG))
    stopping = asyncio.create_task(stop.wait())
    dying = asyncio.create_task(_await_death())
    await asyncio.wait([stopping, running, dying], return_when=asyncio.FIRST_COMPLETED)
    trimming.cancel()
    if dying.done():
        raise RuntimeError(f"Ray's {dying.result()} has ended")  # the supervisor starts all of it again
    dying.cancel()
    await asyncio.to_thread(_close_doors, deployment)
    server.should_exit = True
    await asyncio.gather(running, return_exceptions=True)
    stopping.cancel()
    if not stop.is_set():
        raise RuntimeError("the private listener ended")


async def _await_death() -> str:
    """Wait until a process without which Ray is nothing has ended; its name."""
    import psutil  # noqa: PLC0415  # hosts only

    vital = {child: child.name() for child in psutil.Process().children() if child.name() in _VITAL}
    while True:
        for process, name in vital.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return name
        await asyncio.sleep(_WATCH)


def _close_doors(deployment: Deployment) -> None:
    """Say so to Ray's proxy, and wait until it has."""
    (deployment.folder / names.LEAVE).touch()
    deadline = time.monotonic() + LEAVE + _NEWCOMERS + DRAIN
    while not (deployment.folder / names.LEFT).exists() and time.monotonic() < deadline:
        time.sleep(_LOOK)


async def _trim(file: Path) -> None:
    """Put a log that is full aside; those who write it notice."""
    while True:
        await asyncio.sleep(_TRIM)
        await asyncio.to_thread(put_aside, file)


def put_aside(file: Path, most: int = _LOG_BYTES, kept: int = _LOG_FILES) -> None:
    """Rename a log that has more than so many bytes to ``.1``, and the older ones on.

    Args:
        file: the log.
        most: bytes that it may have.
        kept: how many older ones stay.
    """
    if not file.is_file() or file.stat().st_size <= most:
        return
    for number in range(kept - 1, 0, -1):
        older = file.with_name(f"{file.name}.{number}")
        if older.is_file():
            older.replace(file.with_name(f"{file.name}.{number + 1}"))
    file.replace(file.with_name(f"{file.name}.1"))


def main() -> None:
    """Read the deployment and serve it."""
    deployment = Deployment.model_validate_json(Path(sys.argv[1]).read_bytes())
    log_to(deployment.logs)
    start(deployment)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(keep(deployment))
    finally:
        import ray  # noqa: PLC0415  # as above

        ray.shutdown()


if __name__ == "__main__":
    main()
