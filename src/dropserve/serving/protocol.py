"""One codec for every host: bytes in, a query; an answer or an error in, bytes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import orjson

from dropserve.errors import RequestError, ServerError
from dropserve.images import require_pillow
from dropserve.manifest import VersionManifest
from dropserve.serving import v1, v2
from dropserve.serving.doubles import doubled_at_the_top, doubled_names
from dropserve.serving.instances import Vectors, describe, quote
from dropserve.serving.outcome import tolerance_unit
from dropserve.serving.parameters import (
    PREFIX,
    SUFFIX,
    Limits,
    check_size,
    header_settings,
    read_coverage,
    read_settings,
    read_tolerance,
)
from dropserve.serving.pictures import Pictures, describe_body, is_image
from dropserve.serving.query import Answer, Array, Query
from dropserve.serving.tables import table_reader

JSON = "application/json"
_JSON_LENGTH = v2.JSON_LENGTH.lower()
_TELLING = {"content-encoding", _JSON_LENGTH}  # headers that say how a body is to be read
# What a page in a browser may send to any server without asking it first (TorchServe takes forms apart).
_CROSS_SITE = ("multipart/", "application/x-www-form-urlencoded", "text/plain")
NO_HEADERS: Mapping[str, str] = {}  # a dict, since orjson writes no other mapping


class Reply(NamedTuple):
    """What goes back over HTTP."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: Mapping[str, str] = NO_HEADERS


class Call(NamedTuple):
    """A decoded request.

    Attributes:
        query: what to ask the predictor.
        encode: turns its answer into the reply, in the protocol of the request.
        v2: whether that is the Open Inference Protocol.
    """

    query: Query
    encode: Callable[[Answer], Reply]
    v2: bool = False


class Codec:
    """Speaks for one endpoint.

    Args:
        manifest: of the version that it serves.
        monte_carlo: whether it is the endpoint NAME-mc.
        limits: what one request may ask for.

    Raises:
        ServerError: if the labels of the manifest cannot name the classes.
        MissingExtraError: if the model takes images, and Pillow is not installed.
    """

    def __init__(self, manifest: VersionManifest, *, monte_carlo: bool, limits: Limits | None = None) -> None:
        self._manifest = manifest
        self._monte_carlo = monte_carlo
        self._limits = limits or Limits()
        self.labels = class_labels(manifest)
        if manifest.images:
            require_pillow("serve")
        self._table = table_reader(manifest)
        self._vectors = Vectors(manifest.signature)
        self._numbers_alone = self._table is None and not manifest.images
        self._form = describe_body(manifest)
        self._endpoint = manifest.name + (SUFFIX if monte_carlo else "")
        self._usual = read_settings({}, self._limits)
        self._numbers = sum(int(np.prod(spec.sized())) for spec in manifest.signature.outputs)

    def decode(self, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> Call:
        """Read a request, in the protocol that it speaks.

        Args:
            body: as it came.
            headers: of the request, names in any case.

        Raises:
            RequestError: if the request is at fault; :func:`error_reply` turns it into the reply.
        """
        known = {name.lower(): value for name, value in headers.items()}
        document = self._plain_document(body, known)
        usual = None if document is None else self._vectors.read(document.get("instances"))
        # One colon is one name, so none of them can have stood twice.
        if document is not None and usual is not None and len(document) == 1 == body.count(b":"):
            return Call(self._query(usual, {}), self._encode_v1)
        if known.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise RequestError(
                f"the body is encoded ({quote(known['content-encoding'])}); expected it as it is",
                status=415,
                reason="content_type",
            )
        if known.get("content-type", "").lower().startswith(_CROSS_SITE):
            raise self.refuse_form(text=known["content-type"].lower().startswith("text"))
        length = known.get(_JSON_LENGTH)
        pictures = Pictures(self._manifest.images, self._limits.max_image_pixels)
        if length is None and is_image(body, known, self._manifest):
            inputs = pictures.read_body(body, self._manifest)
            return Call(self._query(inputs, header_settings(known)), self._encode_v1)
        if misplaced := header_settings(known):
            raise RequestError(
                f"{next(iter(misplaced)).replace('_', '-')} is a header; with JSON, settings stand in "
                f'"parameters": {{"{next(iter(misplaced))}": ...}}',
                reason="parameters",
            )
        text, binary = _split(body, length)
        document = _without_doubt(text, self._parse(text) if document is None else document)
        if "inputs" in document and "instances" not in document:
            inputs, parameters, wanted = v2.decode(document, binary, self._manifest, pictures, self._table)
            return Call(self._query(inputs, parameters), partial(self._encode_v2, wanted=wanted), v2=True)
        if binary:
            raise RequestError(
                f"{len(binary)} bytes follow the JSON; V1 has no binary tensors", reason="form"
            )
        doubled = doubled_names(text, document)
        inputs, parameters = v1.decode(
            document,
            self._form,
            lambda instances: self._read(instances, pictures, doubled) if usual is None else usual,
        )
        return Call(self._query(inputs, parameters), self._encode_v1)

    def _plain_document(self, body: bytes, known: Mapping[str, str]) -> dict[str, Any] | None:
        """The JSON of a request about numbers and nothing else; None if it takes a closer look."""
        kind = known.get("content-type", JSON)
        if (
            not self._numbers_alone
            or not kind.startswith(JSON)
            or not _TELLING.isdisjoint(known)
            or header_settings(known)
        ):
            return None
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        return document if type(document) is dict else None

    def _read(
        self, instances: Any, pictures: Pictures, doubled: Mapping[int, Sequence[str]]
    ) -> dict[str, Array]:
        if self._table is not None:
            return {self._table.spec.name: self._table.read(instances, doubled)}
        for row, names in doubled.items():
            raise RequestError(
                f"instance {row} has {quote(names[0])} twice; expected it once", reason="input_name"
            )
        return pictures.read_instances(instances, self._manifest.signature)

    def refuse_form(self, *, text: bool = False) -> RequestError:
        """What to tell who sent a form, which a host takes apart before we see it."""
        image = ", or, for an image, image/png or image/jpeg" if self._manifest.images else ""
        file = " or -H 'content-type: image/png' --data-binary @FILE" if self._manifest.images else ""
        return RequestError(
            f"the body arrived as {'text' if text else 'a form'}, not as JSON: "
            f"send the header Content-Type: application/json{image} "
            f"(with curl: -H 'content-type: application/json'{file})",
            status=415,
            reason="content_type",
        )

    def _encode_v1(self, answer: Answer) -> Reply:
        return Reply(200, orjson.dumps(v1.encode(answer, self._manifest, self.labels)))

    def _encode_v2(self, answer: Answer, *, wanted: v2.Wanted) -> Reply:
        document, binary = v2.encode(answer, wanted, self._manifest, self.labels, self._endpoint)
        text = orjson.dumps(document)
        if not binary:
            return Reply(200, text)
        return Reply(200, text + binary, "application/octet-stream", {v2.JSON_LENGTH: str(len(text))})

    def _parse(self, body: bytes) -> dict[str, Any]:
        form = f'{{"instances": {self._form}}}'
        if not body.strip():
            raise RequestError(f"the body is empty; expected JSON: {form}", reason="empty")
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RequestError(
                f"the body is not JSON: {error}; expected {form}. NaN and Infinity are not JSON either",
                reason="json",
            ) from error
        if not isinstance(document, dict):
            raise RequestError(f"the body is {describe(document)}; expected {form}", reason="form")
        return document

    def _query(self, inputs: dict[str, Array], parameters: dict[str, Any]) -> Query:
        asked = parameters and {name: value for name, value in parameters.items() if name.startswith(PREFIX)}
        if not self._monte_carlo:
            if asked:
                raise RequestError(self._refuse_settings(next(iter(asked))), reason="parameters")
            return Query(inputs)
        if not asked:
            check_size(self._usual, len(next(iter(inputs.values()))), self._numbers, self._limits)
            return Query(inputs, self._usual)
        tolerance = read_tolerance(asked)
        if tolerance is not None:
            tolerance_unit(self._manifest)
        settings = read_settings(asked, self._limits)
        query = Query(inputs, settings, read_coverage(asked), tolerance)
        check_size(settings, query.rows, self._numbers, self._limits)
        return query

    def _refuse_settings(self, name: str) -> str:
        endpoint = self._manifest.name
        if not self._manifest.sites:
            return f"{name}: {endpoint} has no dropout, so it has no Monte Carlo endpoint; leave {name} out"
        return (
            f"{name}: the endpoint {endpoint} answers without Monte Carlo; "
            f"send this request to {endpoint}{SUFFIX}, or leave {name} out"
        )


def _without_doubt(text: bytes, document: dict[str, Any]) -> dict[str, Any]:
    """A document whose names stand there once each; parameters that are null are none."""
    if twice := doubled_at_the_top(text, document):
        raise RequestError(f"{quote(twice)} stands twice; expected it once", reason="form")
    if document.get("parameters", ...) is None:
        del document["parameters"]
    return document


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON and what follows it: V2's binary tensors."""
    if length is None:
        return body, b""
    if not length.isascii() or not length.isdigit() or not 0 < int(length[:20]) <= len(body):
        raise RequestError(
            f"{v2.JSON_LENGTH} is {quote(length)}; expected the length of the JSON, 1 to {len(body)}",
            reason="form",
        )
    return body[: int(length)], body[int(length) :]


def error_reply(error: RequestError) -> Reply:
    """The reply to a request that is at fault."""
    return Reply(error.status, orjson.dumps({"error": str(error)}))


def failure_reply(request_id: str) -> Reply:
    """The reply when the model is at fault; what happened stands in the log under the id."""
    text = f"the model failed on this request; its operator finds the cause in the log under {request_id}"
    return Reply(500, orjson.dumps({"error": text}))


def class_labels(manifest: VersionManifest) -> tuple[str, ...]:
    """Names of the classes: the manifest's, or "0", "1", ... where it has none.

    Raises:
        ServerError: if a row of the output is no vector, or the labels are not one for each class.
    """
    if manifest.task != "classification":
        return ()
    sizes = manifest.signature.outputs[0].sized()
    if len(sizes) != 1:
        raise ServerError(
            f"{manifest.name} is a classifier whose output per row is {list(sizes)}; expected [classes]"
        )
    count = sizes[0]
    labels = manifest.labels or tuple(map(str, range(count)))
    if len(labels) != count or len(set(labels)) != count:
        raise ServerError(
            f"{manifest.name} has {count} classes and the labels {', '.join(labels)[:200]}; "
            "expected one label for each class, all different"
        )
    return labels
