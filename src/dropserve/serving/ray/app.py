"""The Ray Serve application: ``import_path: dropserve.serving.ray.app:build`` in a Serve config file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.errors import UsageError
from dropserve.serving.graphs import Backend
from dropserve.serving.ray.books import Books
from dropserve.serving.ray.names import APPLICATION, BOOKS
from dropserve.serving.ray.replica import Replica
from dropserve.serving.ray.source import Published, Source

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_PAGES = 64  # requests that a replica takes besides those that compute, so that it can always say how it is


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
    source = Published.find(
        given.store,
        given.models,
        given.settings,
        monte_carlo=given.monte_carlo,
        backend=given.backend,
        token_file=given.token_file,
    )
    return application(source, {})


def application(source: Source, options: dict[str, dict[str, Any]]) -> Any:
    """The application of anything that can be served.

    Args:
        source: what is served.
        options: of Ray's deployments, by name.
    """
    from ray import serve  # noqa: PLC0415  # Ray hosts only

    deployment: Any = serve.deployment  # its overloads have no types
    opened = source.open()
    opened.remove()  # it was looked at, on the node that builds; each replica unpacks its own
    room = opened.room
    books = deployment(
        Books, name=BOOKS, num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000
    )
    replica = deployment(
        serve.ingress(_app)(Replica),
        name=APPLICATION,
        # Its own queues refuse what is too much, in words; Ray must never stop it from saying so.
        max_ongoing_requests=room + _PAGES,
        max_queued_requests=room + _PAGES,
        max_constructor_retry_count=3,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
    )
    shown = [desk.endpoint for desk in opened.desks]
    told = books.options(**options.get(BOOKS, {})).bind(shown)
    return replica.options(**options.get(APPLICATION, {})).bind(source, told)


def _app() -> ASGIApp:
    """Ray calls this in the process of a replica, once that has been made."""
    return Replica.app()
