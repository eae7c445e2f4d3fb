"""The routes that are asked now and then: health, metadata, figures, the description of it all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote as percent

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from dropserve.serving.asgi.desk import Desk
from dropserve.serving.asgi.figures import CONTENT_TYPE
from dropserve.serving.asgi.openapi import describe
from dropserve.serving.asgi.page import page
from dropserve.serving.instances import quote
from dropserve.serving.metadata import describe_server
from dropserve.serving.parameters import SUFFIX

Desks = Mapping[str, Desk]
Tell = Callable[[], Awaitable[bytes]]
_ALL = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]


def pages(desks: Desks, draining: Callable[[], bool], figures: Tell, *, tokens: bool) -> Starlette:
    """All routes but the ones that compute.

    Args:
        desks: what is served, by name.
        draining: whether the server is about to stop.
        figures: the text of ``/metrics``.
        tokens: whether requests must carry a token.
    """
    shown = _Pages(desks, draining, figures, tokens=tokens)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    asked = ["/predictions/{model}", "/predictions/{model}/{version}", "/v1/models/{model}:predict"]
    asked += [f"{model}/infer", f"{version}/infer"]
    routes = [
        *(Route(path, shown.asked_wrongly, methods=_ALL) for path in asked),
        Route("/v2", shown.server),
        Route("/v2/", shown.server),  # as the specification's OpenAPI document has it
        Route("/v2/health/live", shown.live),
        Route("/v2/health/ready", shown.ready),
        Route(model, shown.model),
        Route(version, shown.model),
        Route(f"{model}/ready", shown.model_ready),
        Route(f"{version}/ready", shown.model_ready),
        Route("/v1/models", shown.models_v1),
        Route("/v1/models/{model}", shown.model_v1),
        Route("/metrics", shown.metrics),
        Route("/openapi.json", shown.openapi),
        Route("/", shown.page),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse})
    app.router.redirect_slashes = False
    return app


class _Pages:
    def __init__(self, desks: Desks, draining: Callable[[], bool], figures: Tell, *, tokens: bool) -> None:
        self._desks = desks
        self._draining = draining
        self._tokens = tokens
        self._figures = figures

    async def server(self, _: Request) -> Response:
        return _json(describe_server())

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        """Ready is a server that would answer every one of its models now."""
        if self._draining():
            return _json({"ready": False, "error": "the server is stopping"}, 503)
        problems = [f"{name}: {desk.problem}" for name, desk in self._desks.items() if desk.problem]
        return (
            _json({"ready": False, "error": "; ".join(problems)}, 503) if problems else _json({"ready": True})
        )

    async def model(self, request: Request) -> Response:
        desk = self._desk(request)
        if desk.metadata is None:
            return _json({"error": f"{desk.endpoint.name} is not ready: {desk.problem}"}, 503)
        return _json(desk.metadata)

    async def model_ready(self, request: Request) -> Response:
        return _readiness(self._desk(request))

    async def models_v1(self, _: Request) -> Response:
        return _json({"models": list(self._desks)})

    async def model_v1(self, request: Request) -> Response:
        return _readiness(self._desk(request))

    async def metrics(self, _: Request) -> Response:
        return Response(await self._figures(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        return _json(describe(list(self._desks.values()), tokens=self._tokens))

    async def page(self, _: Request) -> Response:
        return HTMLResponse(page(describe(list(self._desks.values()), tokens=self._tokens)))

    async def asked_wrongly(self, request: Request) -> Response:
        """A path that would compute, but for its method, its model or its version."""
        self._desk(request)
        raise HTTPException(405, headers={"allow": "POST"})

    def _desk(self, request: Request) -> Desk:
        name, version = request.path_params["model"], request.path_params.get("version")
        desk = self._desks.get(name)
        if desk is None:
            plain = self._desks.get(name.removesuffix(SUFFIX))
            why = f" ({plain.endpoint.name} is served without Monte Carlo)" if plain else ""
            served = ", ".join(self._desks)
            raise HTTPException(404, f"there is no model {quote(name)} here{why}; there are {served}")
        if version is not None and version != str(desk.endpoint.version):
            raise HTTPException(
                404, f"{name} has no version {quote(version)} here; there is {desk.endpoint.version}"
            )
        return desk


def _readiness(desk: Desk) -> Response:
    name, problem = desk.endpoint.name, desk.problem
    if problem is None:
        return _json({"name": name, "ready": True})
    return _json({"name": name, "ready": False, "error": problem}, 503)


def _json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status, headers, "application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # it is registered for these
    text = error.detail
    path = quote(percent(request.scope["path"]))  # request.url stumbles over an odd Host header
    if error.status_code == 405:
        allowed = (error.headers or {}).get("allow", (error.headers or {}).get("Allow", ""))
        text = f"{quote(request.method)} is not a method of {path}; expected {allowed}"
    elif error.status_code == 404 and text == "Not Found":
        text = f"there is nothing at {path}; GET / lists what there is"
    return _json({"error": text}, error.status_code, error.headers)
