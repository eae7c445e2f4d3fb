"""What meets each request: bounds, the token, and the routes that are asked all the time, by hand.

A request that computes is found by one look-up of its whole path. Going through Starlette's router, request
and response as well would take half as long again as all the rest of an answer.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import orjson

from dropserve.serving.answering import WARM_HEADER, Message
from dropserve.serving.asgi.lane import Take, awaited, refusal
from dropserve.serving.deployment import Endpoint
from dropserve.serving.protocol import Reply
from dropserve.serving.v2 import JSON_LENGTH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_READ_HEADERS = {
    name.lower().encode(): name.lower()
    for name in (JSON_LENGTH, "content-encoding", "content-type", WARM_HEADER)
}
Headers = Sequence[tuple[bytes, bytes]]
CLOSE = (b"connection", b"close")
_ID = b"x-request-id"
_SETTING = b"mc-"  # a setting of a request whose body is an image
_JSON = (b"content-type", b"application/json")
_OPEN = "/v2/health/"  # probes carry no token, and learn nothing


@dataclass(frozen=True)
class Policy:
    """What is asked of every request.

    Attributes:
        longest: bytes that a body may have.
        patience: seconds that a body may take to arrive.
        token: which each request must carry; None lets everybody in.
    """

    longest: int = 6_553_500
    patience: float = 30.0
    token: str | None = None


class Answers(Protocol):
    """What stands behind one name."""

    @property
    def endpoint(self) -> Endpoint:
        """Which it is."""
        ...

    def ask(self, message: Message, take: Take) -> None:
        """As :meth:`dropserve.serving.asgi.lane.Lane.ask`."""
        ...


class Front:
    """Sends each request to who answers it.

    Args:
        desks: who computes.
        policy: what is asked of every request.
        pages: answers all others.
        guarded: whether the token is asked for here on the way to ``pages`` too.
        numbered: whether requests are named here; otherwise what stands before it names them, by the header
            that clients see.

    Attributes:
        draining: the server is about to stop: it lets go of each connection.
        policy: what is asked of every request.
    """

    def __init__(
        self,
        desks: Sequence[Answers],
        policy: Policy,
        pages: ASGIApp,
        *,
        guarded: bool = True,
        numbered: bool = True,
    ) -> None:
        self.draining = False
        self.pages = pages
        self._guarded, self._numbered = guarded, numbered
        self._ids = itertools.count(1)
        self._prefix = secrets.token_hex(4)
        self.exchange(desks, policy)

    def exchange(self, desks: Sequence[Answers], policy: Policy) -> None:
        """Serve these from now on."""
        self.policy = policy
        self._secret = None if policy.token is None else f"Bearer {policy.token}".encode()
        self._hot = {path: desk for desk in desks for path in _paths(desk.endpoint)}

    def desk(self, method: str, path: str) -> Answers | None:
        """Who computes the answer; None where a page answers."""
        return self._hot.get(path) if method == "POST" else None

    def may(self, headers: Headers) -> bool:
        """Whether a request carries the token, if one is asked for."""
        return self._secret is None or any(
            name == b"authorization" and hmac.compare_digest(value, self._secret) for name, value in headers
        )

    def identity(self) -> str:
        """Names a request; empty where what stands before it does."""
        return f"{self._prefix}-{next(self._ids):x}" if self._numbered else ""

    def head(self, reply: Reply, identity: str) -> list[tuple[bytes, bytes]]:
        """The headers of a reply."""
        kind = _JSON if reply.content_type == _JSON_TYPE else (b"content-type", reply.content_type.encode())
        headers = [kind, (b"content-length", b"%d" % len(reply.body))]
        if identity:
            headers.append((_ID, identity.encode()))
        if reply.headers:
            headers += [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        if self.draining:
            headers.append(CLOSE)
        return headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        path = scope["path"]
        desk = self.desk(scope["method"], path)
        guarded = (desk is not None or self._guarded) and not path.startswith(_OPEN)
        if guarded and not self.may(scope["headers"]):
            await self._reply(send, _UNKNOWN, "")
            return
        if desk is None:
            await self.pages(scope, receive, send)
            return
        own = self.identity()
        headers, length = read_headers(scope["headers"])
        # What is too long is refused before it is read. (The parser has made sure that it is a number.)
        body = self._too_long() if length > self.policy.longest else await self._read(receive)
        if body is None:
            return  # nobody is there any more
        if isinstance(body, bytes):
            await self._reply(
                send, await awaited(desk.ask, Message(body, own or given(scope["headers"]), headers)), own
            )
        else:
            await self._reply(send, body, own)

    async def _read(self, receive: Receive) -> bytes | Reply | None:
        """The body; what to say if it is too long or does not come; None if the client has gone."""
        try:
            async with asyncio.timeout(self.policy.patience):
                message = await receive()
                if not message.get("more_body") and message["type"] == "http.request":
                    body = message["body"]
                    return body if len(body) <= self.policy.longest else self._too_long()
                parts: list[bytes] = []
                size = 0
                while message["type"] == "http.request":
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.policy.longest:
                        return self._too_long()
                    if not message.get("more_body"):
                        return b"".join(parts)
                    message = await receive()
                return None
        except TimeoutError:
            return refusal(
                408, f"the body did not arrive within {self.policy.patience:g} s", connection="close"
            )

    def _too_long(self) -> Reply:
        return refusal(413, f"the body has more than {self.policy.longest} bytes; expected at most that many")

    async def _reply(self, send: Send, reply: Reply, identity: str) -> None:
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": self.head(reply, identity)}
        )
        await send({"type": "http.response.body", "body": reply.body})


_JSON_TYPE = "application/json"
_UNKNOWN = Reply(
    401,
    orjson.dumps({"error": "this server asks for a token: send the header Authorization: Bearer TOKEN"}),
    headers={"www-authenticate": "Bearer"},
)


def read_headers(headers: Headers) -> tuple[dict[str, str], int]:
    """What an answer may depend on, and the length of the body; -1 where none is told.

    The parser has made sure that a length is a number.
    """
    found: dict[str, str] = {}
    length = -1
    for name, value in headers:
        if name in _READ_HEADERS:
            found[_READ_HEADERS[name]] = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value)
        elif name.startswith(_SETTING):
            found[name.decode("latin-1")] = value.decode("latin-1")
    return found, length


def given(headers: Headers) -> str:
    """The name that a request has been given on its way here."""
    return next((value.decode("latin-1") for name, value in headers if name == _ID), "")


def _paths(endpoint: Endpoint) -> list[str]:
    """The paths that ask an endpoint to compute, in all protocols, with and without its version."""
    name, version = endpoint.name, endpoint.version
    return [
        f"/predictions/{name}",
        f"/predictions/{name}/{version}",
        f"/v1/models/{name}:predict",
        f"/v2/models/{name}/infer",
        f"/v2/models/{name}/versions/{version}/infer",
    ]
