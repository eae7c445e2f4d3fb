"""The ASGI application: checks a request, finds its endpoint by one look-up, asks the backend.

All other paths (health, metadata, metrics, OpenAPI) go through Starlette's routing (``routes.py``).
Any ASGI server runs it and any ASGI middleware may stand before it.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from dropserve.manifest import VersionManifest
from dropserve.serving.answering import WARM_HEADER, HttpRequest
from dropserve.serving.deployment import MODEL_CONFIG, Endpoint
from dropserve.serving.http.backends import (
    FAST,
    Backend,
    EndpointConfig,
    InProcessBackend,
    OnReply,
    Stats,
    Withdraw,
    refusal,
    unavailable,
)
from dropserve.serving.http.guard import Patience
from dropserve.serving.http.launch import Policy
from dropserve.serving.http.pool import WorkerPool
from dropserve.serving.http.routes import make_routes
from dropserve.serving.loaded import LOAD_FAILED, read_options
from dropserve.serving.metrics import MetricsCollector
from dropserve.serving.protocol import Reply
from dropserve.serving.tally import Sums
from dropserve.serving.v2 import JSON_LENGTH
from dropserve.store import open_folder

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = logging.getLogger("dropserve.serving.http")
CLOSE = (b"connection", b"close")
_CODEC_HEADERS = {n.lower().encode(): n.lower() for n in (JSON_LENGTH, "content-encoding", "content-type")}
_CODEC_HEADERS[WARM_HEADER.encode()] = WARM_HEADER
_SETTING = b"mc-"  # a setting of a request whose body is an image
_ID = b"x-request-id"
_JSON = "application/json"
_JSON_HEADER = (b"content-type", _JSON.encode())
_HEALTH = "/v2/health/"  # probes carry no token, and learn nothing
_PATIENT_S = 0.25  # seconds after which a caller is watched, who may go
_KNOWN_HOSTS = 64  # values of Host that are remembered
_LOOPBACK = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
_UNKNOWN = Reply(
    401,
    orjson.dumps({"error": "this server asks for a token: send the header Authorization: Bearer TOKEN"}),
    headers={"www-authenticate": "Bearer"},
)


class ModelEndpoint:
    """One endpoint of the server: loads its model, and chooses the backend that computes it.

    Where ``place`` is ``auto``, a deterministic model whose example row takes at most :data:`FAST` is
    computed in the server's own process. Monte Carlo and all others have processes of their own, so that they
    delay nobody.

    Args:
        endpoint: what it serves.
        folder: the unpacked archive.

    Attributes:
        manifest: of the version that it serves.
        config: its section of ``model-config.yaml``.
        limits: what one request may ask for.

    Raises:
        CorruptStoreError: if a file is not what was published.
        UsageError: if a setting is wrong.
    """

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint = endpoint
        self.manifest = open_folder(folder, VersionManifest, strict=False).manifest
        self._folder = folder
        self.config = EndpointConfig.of(json.loads((folder / MODEL_CONFIG).read_bytes()))
        self.limits = read_options(self.config.handler).limits
        self._backend: Backend | None = None
        self._problem = "its model is loading"

    async def open(self) -> None:
        """Load the model; what goes wrong is logged, and :attr:`ready` says it."""
        name, config = self.endpoint.name, self.config
        in_process = config.place == "server" or (config.place == "auto" and config.workers == 1)
        if in_process and not self.endpoint.monte_carlo:
            try:
                backend = await asyncio.to_thread(InProcessBackend, self._folder, name, config)
            except Exception as error:
                text = " ".join(f"{error}".split()) or type(error).__name__
                log.exception("%s %s: %s", LOAD_FAILED, name, text)
                self._problem = f"it cannot be loaded: {text}"
                return
            if config.place == "server" or backend.seconds <= FAST:
                self._backend = backend
                return
            await backend.close()
        self._backend = WorkerPool(self._folder, name, config)

    def submit(self, request: HttpRequest, on_reply: OnReply) -> Withdraw | None:
        """As :meth:`Backend.submit`."""
        if self._backend is None:
            on_reply(unavailable(self.endpoint.name, self._problem))
            return None
        return self._backend.submit(request, on_reply)

    @property
    def ready(self) -> str | None:
        """None if it would answer now; otherwise why not, in words."""
        return self._problem if self._backend is None else self._backend.ready

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The model as V2 describes it; None until it has been loaded once."""
        return None if self._backend is None else self._backend.metadata

    @property
    def stats(self) -> Stats:
        """How busy it is."""
        return Stats(0, 0) if self._backend is None else self._backend.stats

    def drain(self) -> Sums:
        """What was done since the last call."""
        return {} if self._backend is None else self._backend.drain()

    async def close(self) -> None:
        """Let go of the model."""
        if self._backend is not None:
            await self._backend.close()

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that ask it to compute, in all protocols, with and without its version."""
        name, version = self.endpoint.name, self.endpoint.version
        return (
            f"/predictions/{name}",
            f"/predictions/{name}/{version}",
            f"/v1/models/{name}:predict",
            f"/v2/models/{name}/infer",
            f"/v2/models/{name}/versions/{version}/infer",
        )


class App:
    """Serves endpoints.

    Args:
        endpoints: what is served.
        policy: what is asked of every request.
        numbered: whether requests are named here; otherwise what stands before it names them, by the header
            that clients see.

    Attributes:
        draining: the server is about to stop: it is not ready any more, and closes each connection.
        metrics: what the endpoints have done.
        private: the same without what computes and without a token, for the private listener.
    """

    def __init__(self, endpoints: Sequence[ModelEndpoint], policy: Policy, *, numbered: bool = True) -> None:
        self.draining = False
        self.metrics = MetricsCollector(endpoints)
        self._policy = policy
        self._secret = None if policy.token is None else policy.token.encode()
        self._routes = make_routes(
            {each.endpoint.name: each for each in endpoints},
            lambda: self.draining,
            self.metrics.text,
            tokens=policy.token is not None,
        )
        self._by_path = {path: endpoint for endpoint in endpoints for path in endpoint.paths}
        self._reading = Patience(policy.body_timeout_s)
        self._computing = Patience(_PATIENT_S)
        self._numbered = numbered
        self._ids = itertools.count(1)
        self._prefix = secrets.token_hex(4)
        self._hosts = _LOOPBACK | {name.lower().encode() for name in policy.allowed_hosts}
        self._good_hosts: set[bytes | None] = set()
        self._any_host = not (policy.loopback or policy.allowed_hosts)
        self._origins = {origin.lower().encode() for origin in policy.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        problem = self._refuse(scope, headers)
        if problem is not None:
            await self._send(send, problem, "", close=_has_body(headers))
            return
        endpoint = self._by_path.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._answer_page(scope, headers, receive, send)
            return
        identity = f"{self._prefix}-{next(self._ids):x}" if self._numbered else ""
        body = await self._read(headers, receive)
        if isinstance(body, bytes):
            request = HttpRequest(body, identity or _given_id(headers), _codec_headers(headers))
            reply = await self._compute(endpoint, request, receive)
            if reply is not None:
                await self._send(send, reply, identity)
        elif body is not None:
            await self._send(send, body, identity, close=True)

    async def private(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to the private listener, which is on loopback."""
        if scope["type"] == "http":
            headers: dict[bytes, bytes] = dict(scope["headers"])
            if _host(headers) not in self._hosts:
                await self._send(send, _foreign_host(headers), "", close=True)
                return
        await self._routes(scope, receive, send)

    def _refuse(self, scope: Scope, headers: dict[bytes, bytes]) -> Reply | None:
        """What is said to who may not ask."""
        if not self._any_host and headers.get(b"host") not in self._good_hosts:
            if b"host" in headers and _host(headers) not in self._hosts:
                return _foreign_host(headers)
            if len(self._good_hosts) < _KNOWN_HOSTS:
                self._good_hosts.add(headers.get(b"host"))
        if b"origin" in headers and not self._may_origin(scope, headers):
            origin = headers[b"origin"].decode("latin-1")[:100]
            text = f"a page of {origin!r} asks, which is not of this server; --cors {origin} lets it ask"
            return refusal(403, text)
        if self._secret is not None and not scope["path"].startswith(_HEALTH):
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._secret):
                return _UNKNOWN
        return None

    def _may_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        origin = headers[b"origin"].lower()
        if origin in self._origins or b"*" in self._origins:
            return True
        return origin == scope["scheme"].encode() + b"://" + headers.get(b"host", b"").lower()

    async def _answer_page(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        if _has_body(headers):  # it is read to its end, so that the next request can be found behind it
            body = await self._read(headers, receive)
            if not isinstance(body, bytes):
                if body is not None:
                    await self._send(send, body, "", close=True)
                return
        await self._routes(scope, receive, send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | Reply | None:
        """The body; what to say if it is too long or does not come; None if the caller has gone."""
        most = self._policy.max_body_bytes
        length = headers.get(b"content-length")
        if length is not None and int(length) > most:  # the server has made sure that it is a number
            return _body_too_long(most)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one
        self._reading.wait(task, task.cancel)
        try:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                body: bytes = message["body"]
                return body if len(body) <= most else _body_too_long(most)
            parts: list[bytes] = []
            size = 0
            while message["type"] == "http.request":
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    return _body_too_long(most)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
        except asyncio.CancelledError:
            if self._reading.end(task):
                raise
            task.uncancel()
            return refusal(408, f"the body did not arrive within {self._policy.body_timeout_s:g} s")
        finally:
            self._reading.end(task)
        return None

    async def _compute(self, endpoint: ModelEndpoint, request: HttpRequest, receive: Receive) -> Reply | None:
        """The reply; None if the caller has gone, and then nobody goes on computing it."""
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def on_reply(reply: Reply | None) -> None:
            if not future.done():
                future.set_result(reply)

        withdraw = endpoint.submit(request, on_reply)
        if withdraw is None or future.done():
            return await future
        watching: list[asyncio.Task[None]] = []  # only what takes a while is worth a task of its own
        self._computing.wait(
            future, lambda: watching.append(asyncio.create_task(_until_gone(receive, on_reply)))
        )
        try:
            reply = await future
        finally:
            self._computing.end(future)
            for task in watching:
                task.cancel()
        if reply is None:
            withdraw()
        return reply

    async def _send(self, send: Send, reply: Reply, identity: str, *, close: bool = False) -> None:
        kind = _JSON_HEADER if reply.content_type == _JSON else (b"content-type", reply.content_type.encode())
        headers = [kind, (b"content-length", b"%d" % len(reply.body))]
        if identity:
            headers.append((_ID, identity.encode()))
        if reply.headers:
            headers += [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        if close or self.draining:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


async def _until_gone(receive: Receive, on_gone: Callable[[None], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    on_gone(None)


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


def _body_too_long(most: int) -> Reply:
    return refusal(413, f"the body has more than {most} bytes; expected at most that many")


def _host(headers: dict[bytes, bytes]) -> bytes:
    """The name in ``Host`` without its port."""
    host = headers.get(b"host", b"").lower()
    return host[: host.find(b"]") + 1] if host.startswith(b"[") else host.partition(b":")[0]


def _foreign_host(headers: dict[bytes, bytes]) -> Reply:
    name = _host(headers).decode("latin-1")[:100]
    return refusal(
        403, f"the header Host names {name!r}, which is not this server; --allowed-host {name} adds it"
    )


def _codec_headers(headers: dict[bytes, bytes]) -> dict[str, str]:
    """What an answer may depend on."""
    found = {_CODEC_HEADERS[n]: headers[n].decode("latin-1") for n in _CODEC_HEADERS.keys() & headers.keys()}
    if _SETTING in b" ".join(headers):
        settings = ((n, value) for n, value in headers.items() if n.startswith(_SETTING))
        found |= {name.decode("latin-1"): value.decode("latin-1") for name, value in settings}
    return found


def _given_id(headers: dict[bytes, bytes]) -> str:
    """The name that a request has been given on its way here."""
    return headers.get(_ID, b"").decode("latin-1")
