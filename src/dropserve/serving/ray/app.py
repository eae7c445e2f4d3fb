"""The Ray Serve application: ``import_path: dropserve.serving.ray.app:build`` in a Serve config file.

A deployment with an ASGI ingress, as Ray's documentation has it: each replica runs the application of the
ASGI host. Versions are pinned when the application is built: a replica that starts later serves no other one.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.errors import ServerError, UsageError
from dropserve.serving.deployment import MODEL_LOG
from dropserve.serving.graphs import Backend
from dropserve.serving.http.app import App, ModelEndpoint
from dropserve.serving.http.routes import with_cors
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.serving.metrics import Counted, MetricsCollector
from dropserve.serving.ray.launch import APPLICATION
from dropserve.serving.ray.pinned import PinnedVersions, Source
from dropserve.serving.tally import FIGURES

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_PAGES = 64  # requests that a replica takes besides those that compute, so that it can always say how it is
_EXPORT = 1.0  # seconds between two reports to Ray's exporter
_LOOK = 0.05
_WAITING, _RESTARTS = "dropserve_waiting_requests", "dropserve_worker_restarts_total"
_ENDPOINT = ("endpoint", "version")
_LABELS = {**FIGURES, _WAITING: _ENDPOINT, _RESTARTS: _ENDPOINT}


class Arguments(BaseModel):
    """``args`` of the application in a Serve config file.

    Attributes:
        store: the model store; every node must see it at this path.
        models: names, or ``name:version``; all of the store by default, each in its newest version.
        monte_carlo: whether models get their ``-mc`` endpoint.
        backend: onnx or torchscript; overrides the one in ``model-config.yaml``.
        settings: a folder with ``model-config.yaml`` and ``config.properties``, on the node that builds the
            application; those that are shipped by default.
        token_file: holds the token that requests must carry, on every node; none by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: Path
    models: tuple[str, ...] = ()
    monte_carlo: bool = True
    backend: Backend | None = None
    settings: Path | None = None
    token_file: Path | None = None


def build(args: dict[str, Any]) -> Any:
    """The application of versions of a store; Ray calls this with the ``args`` of its config file.

    Args:
        args: as :class:`Arguments` has them.

    Raises:
        UsageError: if a setting is wrong.
        StoreError: if a version is not there, or not what was published.
    """
    try:
        given = Arguments.model_validate(args)
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("\n".join(["args of the Serve config file:", *lines])) from error
    source = PinnedVersions.find(
        given.store,
        given.models,
        given.settings,
        monte_carlo=given.monte_carlo,
        backend=given.backend,
        token_file=given.token_file,
    )
    return application(source, {})


def application(source: Source, options: dict[str, Any]) -> Any:
    """The application of anything that can be served.

    Args:
        source: what is served.
        options: of Ray's deployment.
    """
    from ray import serve  # noqa: PLC0415  # Ray hosts only

    deployment: Any = serve.deployment  # its overloads have no types
    opened = source.open()
    opened.remove()  # it was looked at, on the node that builds; each replica unpacks its own
    room = opened.room
    replica = deployment(
        serve.ingress(_app)(Replica),
        name=APPLICATION,
        # The queues of the application refuse what is too much, in words, so Ray's must not be full first.
        max_ongoing_requests=room + _PAGES,
        max_queued_requests=room + _PAGES,
        max_constructor_retry_count=3,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return replica.options(**options).bind(source)


class Replica:
    """Loads every endpoint before it is ready; Ray sends it no request before.

    Args:
        source: what it serves.

    Raises:
        ServerError: if a model cannot be loaded.
        CorruptStoreError: if a file is not what was published.
    """

    app: ASGIApp | None = None  # of the replica that lives in this process

    async def __init__(self, source: Source) -> None:
        opened = await asyncio.to_thread(source.open)
        log_to(opened.logs)
        app = App(opened.endpoints, opened.policy, numbered=False)
        await asyncio.gather(*(endpoint.open() for endpoint in opened.endpoints))
        for endpoint in opened.endpoints:
            await _wait_loaded(endpoint)
        self._metrics = RayMetrics(app.metrics, opened.endpoints)
        self._exporting = asyncio.create_task(self._export())
        Replica.app = with_cors(app, opened.policy)

    async def _export(self) -> None:
        while True:
            await asyncio.sleep(_EXPORT)
            self._metrics.export()


def _app() -> ASGIApp:
    """Ray calls this in the process of a replica, once that has been made."""
    if Replica.app is None:
        raise RuntimeError("no replica lives in this process")
    return Replica.app


class RayMetrics:
    """Our metrics in Ray's exporter: the same names with its prefix ``ray_``, and its labels of the replica.

    Args:
        metrics: what the replica has done.
        endpoints: what it serves.
    """

    def __init__(self, metrics: MetricsCollector, endpoints: Sequence[Counted]) -> None:
        from ray.serve.metrics import Counter, Gauge  # noqa: PLC0415  # Ray's processes only

        self._collector, self._endpoints = metrics, endpoints
        counter, gauge = cast("Any", Counter), cast("Any", Gauge)  # their types allow one tag
        # Ray appends _total to the name of a counter, so the histogram, already summed, goes as gauges.
        self._metrics = {
            name: (counter if name.endswith("_total") else gauge)(name, tag_keys=labels)
            for name, labels in _LABELS.items()
        }
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._told: dict[str, int] = {}

    def export(self) -> None:
        """Add what was done since the last time."""
        for (name, *labels), value in self._collector.drain().items():
            self._add(name, value, *labels)
        for (name, *labels), value in self._sums.items():  # a gauge that is not set is told no more
            self._metrics[name].set(value, tags=dict(zip(_LABELS[name], labels, strict=True)))
        for each in self._endpoints:
            name, version = each.endpoint.name, str(each.endpoint.version)
            self._metrics[_WAITING].set(each.stats.waiting, tags={"endpoint": name, "version": version})
            self._add(_RESTARTS, each.stats.restarts - self._told.get(name, 0), name, version)
            self._told[name] = each.stats.restarts

    def _add(self, name: str, value: float, *labels: str) -> None:
        if not name.endswith("_total"):
            self._sums[name, *labels] += value
        elif value > 0:
            self._metrics[name].inc(value, tags=dict(zip(_LABELS[name], labels, strict=True)))


async def _wait_loaded(endpoint: ModelEndpoint) -> None:
    """Wait until an endpoint answers.

    Raises:
        ServerError: if it never will.
    """
    deadline = time.monotonic() + endpoint.config.startup_timeout_s
    while (problem := endpoint.ready) is not None:
        if "cannot" in problem or time.monotonic() > deadline:
            raise ServerError(f"{LOAD_FAILED} {endpoint.endpoint.name}: {problem}")
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
