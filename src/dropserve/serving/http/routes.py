"""Routes that do not compute: health, metadata, metrics, the OpenAPI document and a page of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, Protocol
from urllib.parse import quote as percent

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dropserve.serving.http.launch import Policy
from dropserve.serving.http.openapi import Described, describe
from dropserve.serving.instances import quote
from dropserve.serving.metadata import describe_server
from dropserve.serving.metrics import CONTENT_TYPE
from dropserve.serving.parameters import SUFFIX
from dropserve.serving.v2 import JSON_LENGTH


class Served(Described, Protocol):
    """An endpoint, as far as these routes ask it."""

    @property
    def ready(self) -> str | None:
        """None if it would answer now; otherwise why not, in words."""
        ...


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: 0.9em; }
pre { overflow-x: auto; padding: 0.5rem; border: 1px solid #8885; border-radius: 0.3rem; }
details { border-top: 1px solid #8885; padding: 0.4rem 0; }
summary { cursor: pointer; }
summary b { display: inline-block; width: 3.5rem; }
"""
_ALL = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"]


def make_routes(
    endpoints: Mapping[str, Served],
    draining: Callable[[], bool],
    metrics: Callable[[], bytes],
    *,
    tokens: bool,
) -> Starlette:
    """All routes but the ones that compute.

    Args:
        endpoints: what is served, by name.
        draining: whether the server is about to stop.
        metrics: the text of ``/metrics``.
        tokens: whether requests must carry a token.
    """
    shown = _Routes(endpoints, draining, metrics, tokens=tokens)
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


def with_cors(app: ASGIApp, policy: Policy) -> ASGIApp:
    """The application behind Starlette's CORS middleware, if pages of other origins may ask."""
    if not policy.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=policy.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("x-request-id", JSON_LENGTH, "retry-after"),
    )


class _Routes:
    def __init__(
        self,
        endpoints: Mapping[str, Served],
        draining: Callable[[], bool],
        metrics: Callable[[], bytes],
        *,
        tokens: bool,
    ) -> None:
        self._endpoints = endpoints
        self._draining = draining
        self._tokens = tokens
        self._metrics = metrics

    async def server(self, _: Request) -> Response:
        return _json(describe_server())

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        """Ready is a server that would answer every one of its models now."""
        if self._draining():
            return _json({"ready": False, "error": "the server is stopping"}, 503)
        problems = [
            f"{name}: {endpoint.ready}" for name, endpoint in self._endpoints.items() if endpoint.ready
        ]
        return (
            _json({"ready": False, "error": "; ".join(problems)}, 503) if problems else _json({"ready": True})
        )

    async def model(self, request: Request) -> Response:
        endpoint = self._endpoint(request)
        if endpoint.metadata is None:
            return _json({"error": f"{endpoint.endpoint.name} is not ready: {endpoint.ready}"}, 503)
        return _json(endpoint.metadata)

    async def model_ready(self, request: Request) -> Response:
        return _readiness(self._endpoint(request))

    async def models_v1(self, _: Request) -> Response:
        return _json({"models": list(self._endpoints)})

    async def model_v1(self, request: Request) -> Response:
        return _readiness(self._endpoint(request))

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics(), media_type=CONTENT_TYPE)

    async def openapi(self, _: Request) -> Response:
        return _json(describe(list(self._endpoints.values()), tokens=self._tokens))

    async def page(self, _: Request) -> Response:
        return HTMLResponse(_html(describe(list(self._endpoints.values()), tokens=self._tokens)))

    async def asked_wrongly(self, request: Request) -> Response:
        """A path that would compute, but for its method, its model or its version."""
        self._endpoint(request)
        raise HTTPException(405, headers={"allow": "POST"})

    def _endpoint(self, request: Request) -> Served:
        name, version = request.path_params["model"], request.path_params.get("version")
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            plain = self._endpoints.get(name.removesuffix(SUFFIX))
            why = f" ({plain.endpoint.name} is served without Monte Carlo)" if plain else ""
            served = ", ".join(self._endpoints)
            raise HTTPException(404, f"there is no model {quote(name)} here{why}; there are {served}")
        if version is not None and version != str(endpoint.endpoint.version):
            raise HTTPException(
                404, f"{name} has no version {quote(version)} here; there is {endpoint.endpoint.version}"
            )
        return endpoint


def _readiness(endpoint: Served) -> Response:
    name, problem = endpoint.endpoint.name, endpoint.ready
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


def _html(document: dict[str, Any]) -> str:
    """An OpenAPI document as HTML: a line for each route, its schemas folded behind it."""
    info = document["info"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])}</p>",
            '<p>The same for machines: <a href="openapi.json">openapi.json</a>.</p>',
            *_html_routes(document),
            "</body></html>",
        ]
    )


def _html_routes(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
            yield f"{escape(operation['summary'])}</summary>"
            if "requestBody" in operation:
                yield f"<h3>Body</h3>{_html_content(operation['requestBody']['content'], document)}"
            for status, response in operation["responses"].items():
                yield f"<h3>{status}</h3><p>{escape(response['description'])}</p>"
                yield _html_content(response["content"], document)
            yield "</details>"


def _html_content(content: dict[str, Any], document: dict[str, Any]) -> str:
    parts: list[str] = []
    for kind, entry in content.items():
        schema = entry.get("schema", {})
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        shown = f"<pre>{escape(json.dumps(schema, indent=1))}</pre>" if schema else ""
        parts.append(f"<p><code>{escape(kind)}</code></p>{shown}")
    return "".join(parts)
