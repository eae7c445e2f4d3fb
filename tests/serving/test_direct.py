"""The short way of usual requests, against the way of all others: the same bytes come back by both."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from dropserve.serving.answering import Message
from dropserve.serving.asgi.doors import Server, configured
from dropserve.serving.asgi.front import Front, Policy
from dropserve.serving.asgi.lane import Take
from dropserve.serving.deployment import Endpoint
from dropserve.serving.protocol import Reply

PATH = "/predictions/mlp"
KEY = "0123456789abcdef"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MLP = Endpoint(name="mlp", model="mlp", version=3, monte_carlo=False, workers=1)


@dataclass
class Echo:
    """Says what it was asked, after some seconds."""

    seconds: float | None = None
    asked: list[Message] = field(default_factory=list)
    endpoint: Endpoint = MLP

    def ask(self, message: Message, take: Take) -> None:
        self.asked.append(message)
        told = json.dumps({"body": message.body.decode(), "headers": dict(message.headers)}).encode()
        reply = Reply(200, told, headers={"x-told": "1"} if b"more" in message.body else {})
        if self.seconds is None:
            take(reply)
        else:
            asyncio.get_running_loop().call_later(self.seconds, take, reply)


class Counting(Front):
    """Counts what goes through the application."""

    passed = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed += 1
        await super().__call__(scope, receive, send)


async def page(scope: Any, receive: Any, send: Any) -> None:
    body = f"page {scope['path']}".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    """Something that listens."""

    port: int
    front: Counting
    echo: Echo
    config: uvicorn.Config

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def say(self, *parts: bytes, end: bool = True) -> bytes:
        """All that is answered to these bytes, which are sent one part after another until the end."""
        async with self.connect() as (reader, writer):
            reading = asyncio.create_task(_all_of(reader))
            for part in [*parts, LAST] if end else parts:
                if not reading.done():
                    writer.write(part)
                    await asyncio.sleep(0.002)
            return await asyncio.wait_for(reading, 10)


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):  # what was sent behind the end may be told to be too much
        while part := await reader.read(65536):
            found += part
    return found


async def until(true: Callable[[], Any]) -> None:
    """Wait for it."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(
    echo: Echo | None = None, policy: Policy | None = None, *, short: bool = True
) -> AsyncIterator[Running]:
    """A listener with the short way, or with uvicorn's own protocol for all."""
    echo = echo or Echo()
    front = Counting([echo], policy or Policy(), page)
    config = configured(front)
    if not short:
        config.http = HttpToolsProtocol
    config.load()
    state = ServerState()
    made: Any = config.http_protocol_class
    server = await asyncio.get_running_loop().create_server(
        lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield Running(server.sockets[0].getsockname()[1], front, echo, config)
        for connection in list(state.connections):
            connection.transport.close()
        await until(lambda: not state.connections)


def run(inside: Callable[[Running], Any], *given: Any, **named: Any) -> Any:
    async def all_of_it() -> Any:
        async with running(*given, **named) as host:
            return await inside(host)

    return asyncio.run(all_of_it())


def post(body: bytes, *headers: str, path: str = PATH, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def nameless(answer: bytes) -> bytes:
    """Without what differs from one server to the next: the names of requests."""
    return re.sub(rb"x-request-id: \S+", b"x-request-id: ?", answer)


CHUNKED = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
REQUESTS = {
    "usual": post(b"{}", "Content-Type: application/json"),
    "with other headers": post(b"a", "Mc-Samples: 3", "X-Request-Id: mine", "User-Agent: u"),
    "more headers in the answer": post(b"more"),
    "empty": post(b""),
    "long": post(b"x" * 70_000),
    "too long": post(b"x" * 200_001),
    "by its version": post(b"b", path="/v2/models/mlp/versions/3/infer"),
    "with a query": post(b"c", path=PATH + "?a=1"),
    "quoted": post(b"d", path="/predictions/ml%70"),
    "nobody": post(b"e", path="/predictions/nobody"),
    "a page": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "wrong method": post(b"f").replace(b"POST", b"PUT", 1),
    "in chunks": CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    "expects": post(b"g", "Expect: 100-continue"),
    "upgrades": post(b"h", "Connection: Upgrade", "Upgrade: h2c"),
    "without a name": post(b"i").replace(b"Host: x\r\n", b""),
    "old": post(b"j", version="1.0"),
    "old and kept": post(b"k", "Connection: keep-alive", version="1.0"),
    "the last": post(b"l", "Connection: close"),
    "no HTTP": b"nonsense\r\n\r\n",
}


USUAL = {
    "usual",
    "with other headers",
    "more headers in the answer",
    "empty",
    "by its version",
    "without a name",
    "upgrades",
}

# uvicorn by itself lets the refusal of what is no HTTP overtake the answer before it, and loses what follows
# an upgrade.
UNLIKE = {"no HTTP", "upgrades"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(REQUESTS.keys() - UNLIKE)), min_size=1, max_size=5),
    st.lists(st.integers(0, 600), max_size=3),
    st.sampled_from([None, 0.0, 0.004]),
)
def test_both_ways_give_the_same_bytes(names: list[str], cuts: list[int], seconds: float | None) -> None:
    """Requests one behind the other, cut anywhere, answered at once or later."""
    text = b"".join(REQUESTS[name] for name in names)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[first:last] for first, last in pairwise(edges)]
    policy = Policy(longest=200_000)

    async def ask(host: Running) -> tuple[bytes, list[bytes]]:
        return nameless(await host.say(*parts)), [message.body for message in host.echo.asked]

    assert run(ask, Echo(seconds), policy) == run(ask, Echo(seconds), policy, short=False)


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_what_is_usual_goes_the_short_way_and_all_else_does_not(name: str) -> None:
    async def ask(host: Running) -> tuple[int, bytes]:
        answer = await host.say(REQUESTS[name])
        return host.front.passed - (b"page /last" in answer), answer

    passed, _ = run(ask)
    assert passed == (name not in USUAL and name != "no HTTP")


OFFERS = (  # Java's HttpClient with its defaults; curl --http2; a browser's WebSocket
    (
        "Connection: Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        "Upgrade: h2c",
    ),
    ("Upgrade: h2c", "Connection: keep-alive, Upgrade", "Connection: HTTP2-Settings", "HTTP2-Settings: AAM"),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("cut", [None, 20, -5, -1])
def test_who_offers_another_protocol_is_answered_in_this_one(offer: tuple[str, ...], cut: int | None) -> None:
    text = post(b"first", *offer)

    async def ask(host: Running) -> tuple[bytes, list[bytes]]:
        parts = [text + post(b"second")] if cut is None else [text[:cut], text[cut:], post(b"second")]
        return await host.say(*parts), [message.body for message in host.echo.asked]

    answer, asked = run(ask)
    assert asked == [b"first", b"second"]
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 3, "the page at the end too"


def test_an_offer_does_not_make_a_last_request_one_of_many() -> None:
    async def ask(host: Running) -> bytes:
        return await host.say(post(b"first", "Connection: close, Upgrade", "Upgrade: h2c"), post(b"second"))

    answer = run(ask)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"connection: close\r\n") == 1


def test_headers_have_a_bound_and_requests_before_them_do_not_count() -> None:
    endless = b"POST / HTTP/1.1\r\n" + b"x: y\r\n" * 80_000

    async def ask(host: Running) -> tuple[bytes, bytes]:
        many = post(b"z" * 50_000) * 4 + post(b"last")[:30]
        return await host.say(many, post(b"last")[30:]), await host.say(endless, end=False)

    many, none = run(ask)
    assert many.count(b"HTTP/1.1 200 OK\r\n") == 6
    assert none.startswith(b"HTTP/1.1 400 ")
    assert none.endswith(b"The headers are too long.")


def test_thousands_of_offers_in_one_piece() -> None:
    text = post(b"", *OFFERS[0])

    async def ask(host: Running) -> bytes:
        return await host.say(text * 1500)

    assert run(ask).count(b"HTTP/1.1 200 OK\r\n") == 1501


@pytest.mark.parametrize("offer", ["", "Upgrade: h2c\r\n"])
def test_a_tunnel_is_not_opened(offer: str) -> None:
    text = f"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n{offer}\r\n".encode()

    async def ask(host: Running) -> list[Message]:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(host.say(text, end=False), 0.1)
        return host.echo.asked

    assert run(ask) == []


def test_a_body_that_comes_in_parts_is_waited_for_and_no_longer_than_it_may_take() -> None:
    text = post(b"0123456789")

    async def ask(host: Running) -> tuple[bytes, bytes]:
        whole = await host.say(text[:-5], text[-5:])
        return whole, await host.say(text[:-5], end=False)

    whole, half = run(ask, policy=Policy(patience=0.3))
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"0123456789" in whole
    assert half.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.3 s" in half


def test_without_the_token_nobody_is_asked() -> None:
    async def ask(host: Running) -> tuple[bytes, bytes, int]:
        bad = await host.say(post(b"{}", f"Authorization: Bearer {KEY}x"))
        good = await host.say(post(b"{}", f"Authorization: Bearer {KEY}"))
        return bad, good, len(host.echo.asked)

    bad, good, asked = run(ask, policy=Policy(token=KEY))
    assert bad.startswith(b"HTTP/1.1 401 ")
    assert good.startswith(b"HTTP/1.1 200 OK")
    assert asked == 1


def test_a_client_that_has_gone_is_not_answered_and_nobody_else_notices() -> None:
    async def ask(host: Running) -> bytes:
        async with host.connect() as (_, writer):
            writer.write(post(b"first"))
            await until(lambda: host.echo.asked)
            writer.transport.abort()
        return await host.say(post(b"second"))

    assert b"second" in run(ask, Echo(0.05))


def test_a_connection_that_is_idle_is_closed_after_its_time() -> None:
    async def ask(host: Running) -> bytes:
        host.config.timeout_keep_alive = 0.2  # type: ignore[assignment]  # seconds, of any length
        async with host.connect() as (reader, writer):
            for _ in range(3):
                writer.write(post(b"{}"))
                await asyncio.sleep(0.1)
            return await asyncio.wait_for(_all_of(reader), 5)

    assert run(ask).count(b"200 OK") == 3


@pytest.mark.parametrize("draining", [False, True])
def test_a_server_that_ends_gives_the_answer_first_and_lets_go(draining: bool) -> None:
    """uvicorn tells the connections, and the server waits until they are closed."""

    async def ask() -> bytes:
        echo = Echo(0.3)
        front = Counting([echo], Policy(), page)
        server = Server(configured(front, host="127.0.0.1", port=0))
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        host = Running(server.servers[0].sockets[0].getsockname()[1], front, echo, server.config)
        async with host.connect() as (reader, writer):
            writer.write(post(b"{}"))
            await until(lambda: echo.asked)
            front.draining = draining
            server.should_exit = True
            answer = await asyncio.wait_for(_all_of(reader), 5)
        await asyncio.wait_for(task, 5)
        return answer

    answer = asyncio.run(ask())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"connection: close\r\n") == 1
