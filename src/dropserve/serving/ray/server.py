"""The server's process: ``python -m dropserve.serving.ray.server DEPLOYMENT``.

It starts a Ray of its own, on loopback, deploys the application, and ends both on SIGTERM or SIGINT. Clients
are met by Ray's HTTP proxy. A private listener passes questions about health on to it, as a client asks them,
and the metrics of Ray's exporter.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from pathlib import Path
from typing import Any

import httpx
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dropserve.serving.deployment import MODEL_LOG, Deployment
from dropserve.serving.http.launch import ServerSettings
from dropserve.serving.http.server import listener, until_signal
from dropserve.serving.ray.app import application, log_to
from dropserve.serving.ray.launch import APPLICATION, SETTINGS, Scaling
from dropserve.serving.ray.pinned import LocalDeployment
from dropserve.serving.runtime import LOOPBACK

_OBJECTS = 150_000_000  # bytes of shared memory for what is too long for a call
_IDLE = 75  # seconds that a connection may lie idle
_MARGIN = 10.0
_TRIM = 30.0
_WATCH = 0.5
_VITAL = ("gcs_server", "raylet")
_LOG_BYTES, _LOG_FILES = 10_000_000, 3
_RAYS_LOGS = 24  # files of some starts
_ASK = 5.0
_SHOWN = ["/v2/health/live", "/v2/health/ready", "/v2/models/{model}", "/v2/models/{model}/ready"]
log = logging.getLogger("dropserve.serving.ray")


def start(deployment: Deployment) -> None:
    """Start Ray and Serve, deploy the application, and return when it is there."""
    import ray  # noqa: PLC0415  # it takes seconds; what can be said before is said before
    from ray import serve  # noqa: PLC0415
    from ray.serve.schema import LoggingConfig  # noqa: PLC0415

    scaling = Scaling.model_validate_json((deployment.folder / SETTINGS).read_bytes())
    settings = ServerSettings.read(deployment)
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
        namespace=APPLICATION,
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
    source = LocalDeployment(file=deployment.folder / "deployment.json")
    app = application(source, scaling.options)
    serve.run(app, name=APPLICATION, route_prefix="/", logging_config=told)


def _keep_newest(logs: Path) -> None:
    """Ray names its logs by process and replica, so each start makes new ones."""
    for old in sorted(logs.iterdir(), key=lambda path: path.stat().st_mtime)[:-_RAYS_LOGS]:
        old.unlink()


class Private:
    """The private listener: health as clients see it, and the metrics of Ray's exporter.

    Args:
        deployment: whom it asks.
        exporter: the address of Ray's metrics.
    """

    def __init__(self, deployment: Deployment, exporter: str) -> None:
        self._exporter = exporter
        # Our own process on our own machine: there is no name that a certificate could speak for.
        self._http = httpx.AsyncClient(
            base_url=deployment.url,
            headers=deployment.authorization("inference"),
            timeout=_ASK,
            verify=False,  # noqa: S501  # see above
        )
        routes = [Route(path, self._pass, methods=["GET"]) for path in _SHOWN]
        routes.append(Route("/metrics", self._metrics, methods=["GET"]))
        routes.append(Route("/{path:path}", self._refuse, methods=["POST"]))
        self.app = Starlette(routes=routes)

    async def _pass(self, request: Request) -> Response:
        return await self._ask(request.scope["raw_path"].decode("latin-1"))

    async def _metrics(self, _: Request) -> Response:
        return await self._ask(self._exporter)

    async def _ask(self, address: str) -> Response:
        try:
            found = await self._http.get(address)
        except httpx.HTTPError as error:
            return JSONResponse({"error": f"no answer: {type(error).__name__}: {error}"}, 503)
        return Response(found.content, found.status_code, media_type=found.headers.get("content-type"))

    async def _refuse(self, _: Request) -> Response:
        return JSONResponse(
            {"error": "nothing is computed here; ask where clients do"}, 405, {"allow": "GET"}
        )


async def keep(deployment: Deployment) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP."""
    server = listener(Private(deployment, _exporter()).app, host=LOOPBACK, port=deployment.management_port)
    running = asyncio.create_task(server.serve())
    trimming = asyncio.create_task(_trim(deployment.logs / MODEL_LOG))
    dying = asyncio.create_task(_await_death())
    stopped = await until_signal([server], [running, dying])
    trimming.cancel()
    if dying.done():
        raise RuntimeError(f"Ray's {dying.result()} has ended")  # the supervisor starts all of it again
    dying.cancel()
    server.should_exit = True
    await asyncio.gather(running, return_exceptions=True)
    if not stopped:
        raise RuntimeError("the private listener ended")


def _exporter() -> str:
    """Where the node of this Ray tells its metrics."""
    import ray  # noqa: PLC0415  # as above

    (node,) = ray.nodes()
    return f"http://{LOOPBACK}:{node['MetricsExportPort']}/metrics"


async def _await_death() -> str:
    """Wait until a process without which Ray is nothing has ended; its name."""
    import psutil  # noqa: PLC0415  # hosts only

    vital = {child: child.name() for child in psutil.Process().children() if child.name() in _VITAL}
    while True:
        for process, name in vital.items():
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return name
        await asyncio.sleep(_WATCH)


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
    import ray  # noqa: PLC0415  # as above
    from ray import serve  # noqa: PLC0415

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(keep(deployment))
        serve.shutdown()  # replicas finish what they have begun
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
