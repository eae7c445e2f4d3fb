"""``/openapi.json``: every route of this very server, with schemas made from the models that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

from dropserve.manifest import VersionManifest
from dropserve.serving.deployment import Endpoint
from dropserve.serving.http import schemas
from dropserve.serving.http.schemas import TEXT, Schema, closed
from dropserve.serving.parameters import Limits
from dropserve.serving.protocol import class_labels

_ERROR = {"$ref": "#/components/schemas/Error"}
_SAYS = {
    400: "The request is at fault; the message says what was expected and what came.",
    401: "The token is missing or wrong.",
    403: "The Host or the Origin of the request may not ask.",
    408: "The body did not arrive in time.",
    413: "The body, or the answer, is too long.",
    415: "The body is encoded, or is neither JSON nor an image.",
    500: "The model failed; its log says why.",
    503: "Not ready, or the queue is full: try again after Retry-After seconds.",
    504: "The model did not answer in time.",
}
_PICTURES = ("image/png", "image/jpeg")
_REFUSALS = (400, 403, 408, 413, 415, 500, 503, 504)


class Described(Protocol):
    """An endpoint, as far as its description asks it."""

    @property
    def endpoint(self) -> Endpoint:
        """Its names."""
        ...

    @property
    def manifest(self) -> VersionManifest:
        """Of the version that it serves."""
        ...

    @property
    def limits(self) -> Limits:
        """What one request may ask for."""
        ...

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The model as V2 describes it; None until it has been loaded once."""
        ...


def describe(served: Sequence[Described], *, tokens: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        served: what is served.
        tokens: whether requests must carry a token.
    """
    more = (401,) if tokens else ()
    paths = _server_paths(more)
    for each in served:
        paths |= _model_paths(each, more)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "dropserve",
            "version": metadata.version("dropserve"),
            "description": "Answers, and the doubt when someone asks: NAME answers deterministically, "
            "NAME-mc with Monte Carlo dropout.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": closed({"error": TEXT}),
                "Ready": closed(
                    {"name": TEXT, "ready": {"type": "boolean"}, "error": TEXT}, optional=("name", "error")
                ),
                "Metadata": schemas.metadata(),
                **{key: schema for each in served for key, schema in _components(each).items()},
            }
        },
    }
    if tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _components(each: Described) -> dict[str, Schema]:
    endpoint, manifest = each.endpoint, each.manifest
    mc, name = endpoint.monte_carlo, endpoint.name
    outputs = tuple(entry["name"] for entry in (each.metadata or {}).get("outputs", ()))
    if mc and outputs:
        outputs = (*outputs, "samples")  # with a tolerance
    return {
        f"{name}.V1Request": schemas.request_v1(manifest, each.limits, monte_carlo=mc),
        f"{name}.V1Answer": schemas.answer_v1(manifest, class_labels(manifest), monte_carlo=mc),
        f"{name}.V2Request": schemas.request_v2(manifest, each.limits, outputs, monte_carlo=mc),
        f"{name}.V2Answer": schemas.answer_v2(name, endpoint.version, monte_carlo=mc),
    }


def _server_paths(more: tuple[int, ...]) -> dict[str, Any]:
    ready = {"$ref": "#/components/schemas/Ready"}
    server = closed({"name": TEXT, "version": TEXT, "extensions": {"type": "array", "items": TEXT}})
    health = "Server health"
    return {
        "/v2": _get("Server metadata", server, more),
        "/v2/health/live": _get(health, closed({"live": {"const": True}}), ()),
        "/v2/health/ready": _get(f"{health}: every model would answer now", ready, (), not_ready=ready),
        "/v1/models": _get("Names of the models", closed({"models": {"type": "array", "items": TEXT}}), more),
        "/metrics": {
            "get": {
                "summary": "Figures for Prometheus",
                "responses": {
                    "200": {
                        "description": "In its text format.",
                        "content": {"text/plain": {"schema": TEXT}},
                    },
                    **_errors(more),
                },
            }
        },
    }


def _model_paths(each: Described, more: tuple[int, ...]) -> dict[str, Any]:
    name, version = each.endpoint.name, each.endpoint.version
    ready, described = {"$ref": "#/components/schemas/Ready"}, {"$ref": "#/components/schemas/Metadata"}
    paths: dict[str, Any] = {}
    for path in (f"/predictions/{name}", f"/predictions/{name}/{version}", f"/v1/models/{name}:predict"):
        paths[path] = _post(each, "V1", more)
    paths[f"/v1/models/{name}"] = _get("Whether the model is ready", ready, more, not_ready=ready)
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
        paths[path] = _get("Model metadata", described, more, not_ready=_ERROR)
        paths[f"{path}/ready"] = _get("Whether the model is ready", ready, more, not_ready=ready)
        paths[f"{path}/infer"] = _post(each, "V2", more)
    return paths


def _get(
    summary: str, schema: Schema, more: tuple[int, ...], *, not_ready: Schema | None = None
) -> dict[str, Any]:
    responses = {"200": {"description": "So it is.", "content": _json(schema)}, **_errors(more)}
    if not_ready is not None:
        responses["503"] = {"description": "Not now.", "content": _json(not_ready)}
    return {"get": {"summary": summary, "responses": responses}}


def _post(each: Described, protocol: str, more: tuple[int, ...]) -> dict[str, Any]:
    name = each.endpoint.name
    kind = "Monte Carlo dropout" if each.endpoint.monte_carlo else "deterministic"
    request, answer = ({"$ref": f"#/components/schemas/{name}.{protocol}{x}"} for x in ("Request", "Answer"))
    content, body = _json(answer), _json(request)
    if protocol == "V1" and len(each.manifest.images) == 1 == len(each.manifest.signature.inputs):
        body |= {kind: {"schema": {"type": "string", "format": "binary"}} for kind in _PICTURES}
    if protocol == "V2":
        content["application/octet-stream"] = {}
    return {
        "post": {
            "summary": f"Ask {name} ({kind}), protocol {protocol}",
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {"description": "The answer.", "content": content},
                **_errors((*_REFUSALS, *more)),
            },
        }
    }


def _errors(statuses: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for status in sorted(statuses):
        found[str(status)] = {"description": _SAYS[status], "content": _json(_ERROR)}
    return found


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
