"""The ASGI application on uvicorn: whole requests, bounds and clocks, who may ask, callers who leave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.middleware.gzip import GZipMiddleware

from dropserve.serving.answering import HttpRequest
from dropserve.serving.deployment import Endpoint
from dropserve.serving.http import guard
from dropserve.serving.http.app import App
from dropserve.serving.http.backends import OnReply, Stats, Withdraw
from dropserve.serving.http.launch import Policy
from dropserve.serving.http.routes import with_cors
from dropserve.serving.http.server import listener
from dropserve.serving.protocol import Reply

PATH = "/predictions/mlp"
KEY = "0123456789abcdef"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Echo:
    """An endpoint that says what it was asked, after some seconds."""

    seconds: float | None = None
    asked: list[HttpRequest] = field(default_factory=list)
    withdrawn: list[HttpRequest] = field(default_factory=list)
    endpoint: Endpoint = field(
        default_factory=lambda: Endpoint(name="mlp", model="mlp", version=3, monte_carlo=False, workers=1)
    )
    paths: tuple[str, ...] = (PATH, "/v2/models/mlp/versions/3/infer")
    ready: str | None = None
    stats: Stats = field(default_factory=lambda: Stats(0, 0))

    def submit(self, request: HttpRequest, on_reply: OnReply) -> Withdraw | None:
        self.asked.append(request)
        told = json.dumps({"body": request.body.decode(), "headers": dict(request.headers)}).encode()
        reply = Reply(200, told, headers={"x-told": "1"} if b"more" in request.body else {})
        if self.seconds is None:
            on_reply(reply)
            return None
        asyncio.get_running_loop().call_later(self.seconds, on_reply, reply)
        return lambda: self.withdrawn.append(request)

    def drain(self) -> dict[tuple[str, ...], float]:
        return {}


@dataclass
class Running:
    """Something that listens."""

    port: int
    app: App
    echo: Echo

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
            reading = asyncio.create_task(all_of(reader))
            for part in [*parts, LAST] if end else parts:
                if not reading.done():
                    writer.write(part)
                    await asyncio.sleep(0.002)
            return await asyncio.wait_for(reading, 10)


async def all_of(reader: asyncio.StreamReader) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(65536):
            found += part
    return found


async def until(true: Callable[[], Any]) -> None:
    """Wait for it."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.001)


def run(
    ask: Callable[[Running], Awaitable[Any]],
    echo: Echo | None = None,
    policy: Policy | None = None,
    wrap: Callable[[Any], Any] | None = None,
) -> Any:
    """Ask a server on uvicorn that listens on a free port."""

    async def serve() -> Any:
        served = echo or Echo()
        app = App([served], policy or Policy(loopback=True))  # type: ignore[list-item]  # as much of one as is asked
        server = listener(with_cors(wrap(app) if wrap else app, policy or Policy()), host="127.0.0.1", port=0)
        task = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        try:
            return await ask(Running(server.servers[0].sockets[0].getsockname()[1], app, served))
        finally:
            server.should_exit = True
            await task

    return asyncio.run(serve())


def post(body: bytes, *headers: str, path: str = PATH, host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


CHUNKED = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


# --- whole requests, however they come --------------------------------------------------------------------

REQUESTS = {
    "usual": post(b"{}", "Content-Type: application/json"),
    "empty": post(b""),
    "long": post(b"x" * 70_000),
    "by its version": post(b"b", path="/v2/models/mlp/versions/3/infer"),
    "with a query": post(b"c", path=PATH + "?a=1"),
    "quoted": post(b"d", path="/predictions/ml%70"),
    "in chunks": CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
    "with trailers": CHUNKED + b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=5),
    st.lists(st.integers(0, 600), max_size=3),
    st.sampled_from([None, 0.0, 0.004]),
)
def test_requests_one_behind_the_other_cut_anywhere_are_all_answered(
    names: list[str], cuts: list[int], seconds: float | None
) -> None:
    text = b"".join(REQUESTS[name] for name in names)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]

    async def ask(host: Running) -> tuple[bytes, int]:
        return await host.say(*(text[a:b] for a, b in pairwise(edges))), len(host.echo.asked)

    answer, asked = run(ask, Echo(seconds))
    assert asked == len(names)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == len(names) + 1


def test_a_head_and_a_body_pass_as_they_are() -> None:
    async def ask(host: Running) -> bytes:
        return await host.say(post(b"more", "Content-Type: image/png", "Mc-Samples: 3", "User-Agent: u"))

    answer = run(ask)
    assert b"x-told: 1\r\n" in answer
    assert b"x-request-id: " in answer
    assert b'"headers": {"content-type": "image/png", "mc-samples": "3"}' in answer


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
def test_who_offers_another_protocol_is_answered_in_this_one_body_and_all(offer: tuple[str, ...]) -> None:
    async def ask(host: Running) -> tuple[bytes, list[bytes]]:
        async with host.connect() as (reader, writer):
            answers = b""
            for body in (b"first", b"second"):
                writer.write(post(body, *offer))
                answers += await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        return answers, [request.body for request in host.echo.asked]

    answer, asked = run(ask)
    assert asked == [b"first", b"second"]
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_an_offer_behind_a_page_loses_no_body() -> None:
    async def ask(host: Running) -> list[bytes]:
        async with host.connect() as (reader, writer):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"}"), 5)
            writer.write(post(b"behind", *OFFERS[0]))
            await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        return [request.body for request in host.echo.asked]

    assert run(ask) == [b"behind"]


def test_an_offer_inside_a_body_is_left_alone() -> None:
    """Whatever a body looks like, no byte of it is taken out."""
    body = post(b"x", "Upgrade: h2c")

    async def ask(host: Running) -> list[bytes]:
        async with host.connect() as (reader, writer):
            text = post(body)
            start = len(text) - len(body)
            writer.write(text[:start])
            await asyncio.sleep(0.05)
            writer.write(text[start:])
            await asyncio.wait_for(reader.readuntil(b"}}"), 5)
        return [request.body for request in host.echo.asked]

    assert run(ask) == [body]


def test_a_half_closed_caller_is_answered() -> None:
    async def ask(host: Running) -> bytes:
        async with host.connect() as (reader, writer):
            writer.write(post(b"half"))
            writer.write_eof()
            return await asyncio.wait_for(all_of(reader), 5)

    assert b"half" in run(ask, Echo(0.1))


# --- bounds and clocks ------------------------------------------------------------------------------------


def test_bytes_of_a_head_have_a_bound() -> None:
    async def ask(host: Running) -> bytes:
        return await host.say(b"POST / HTTP/1.1\r\n", *[b"x: y\r\n" * 8_000] * 6, end=False)

    answer = run(ask)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"The headers are too long.")


def test_trailers_have_a_bound() -> None:
    """Without one, 54 MB of them made the server grow by 1.2 GB."""
    before = psutil.Process().memory_info().rss

    async def ask(host: Running) -> int:
        sent = 0
        async with host.connect() as (reader, writer):
            writer.write(CHUNKED + b"1\r\n{\r\n0\r\n")
            with contextlib.suppress(ConnectionError):
                while sent < 20_000_000 and not reader.at_eof():
                    writer.write(b"a: b\r\n" * 5_000)
                    sent += 30_000
                    await writer.drain()
                    await asyncio.sleep(0)
        return sent

    assert run(ask) < 10_000_000
    assert psutil.Process().memory_info().rss - before < 100_000_000


@pytest.mark.parametrize("text", [b"", b"POST /predictions/mlp HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_connection_that_says_nothing_and_a_head_that_never_ends_are_closed(
    text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "HEAD_TIMEOUT_S", 0.2)

    async def ask(host: Running) -> tuple[bytes, bytes]:
        first = await host.say(text, end=False)
        async with host.connect() as (reader, writer):
            writer.write(post(b"good"))
            await reader.readuntil(b"}}")
            writer.write(text or b"P")
            return first, await asyncio.wait_for(all_of(reader), 5)

    first, second = run(ask)
    assert first.startswith(b"HTTP/1.1 408 ")
    assert second.startswith(b"HTTP/1.1 408 ")


def test_the_clock_of_a_head_does_not_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "HEAD_TIMEOUT_S", 0.1)

    async def ask(host: Running) -> bytes:
        return await host.say(post(b"slow"))

    assert b"slow" in run(ask, Echo(0.4))


@pytest.mark.parametrize("path", [PATH, "/v2"])
def test_a_body_is_waited_for_no_longer_than_it_may_take(path: str) -> None:
    text = post(b"0123456789", path=path)

    async def ask(host: Running) -> tuple[bytes, bytes]:
        whole = await host.say(text[:-5], text[-5:])
        return whole, await host.say(text[:-5], end=False)

    whole, half = run(ask, policy=Policy(body_timeout_s=0.3))
    assert whole.count(b"HTTP/1.1 ") == 2
    assert half.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.3 s" in half


def test_a_body_that_is_too_long_is_refused() -> None:
    async def ask(host: Running) -> tuple[bytes, bytes]:
        chunks = CHUNKED + b"20\r\n" + b"x" * 32 + b"\r\n"
        return await host.say(post(b"x" * 21), end=False), await host.say(chunks, end=False)

    for answer in run(ask, policy=Policy(max_body_bytes=20)):
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close\r\n" in answer


# --- who may ask ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        (f"BEARER  {KEY}", 200),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("", 401),
    ],
)
def test_the_token_is_asked_for_and_its_scheme_is_a_word_in_any_case(header: str, status: int) -> None:
    async def ask(host: Running) -> tuple[bytes, int]:
        return await host.say(post(b"{}", f"Authorization: {header}"), end=False), len(host.echo.asked)

    async def close(host: Running) -> tuple[bytes, int]:
        text = post(b"{}", f"Authorization: {header}", "Connection: close")
        return await host.say(text, end=False), len(host.echo.asked)

    answer, asked = run(close if status == 200 else ask, policy=Policy(token=KEY))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert asked == (status == 200)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8080", 200),
        ("models.lan", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("[::2]", 403),
    ],
)
def test_on_loopback_the_host_is_a_name_of_it_or_an_allowed_one(host: str, status: int) -> None:
    async def ask(server: Running) -> bytes:
        return await server.say(post(b"{}", "Connection: close", host=host), end=False)

    answer = run(ask, policy=Policy(loopback=True, allowed_hosts=("models.lan",)))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"--allowed-host" in answer) == (status == 403)


def cross_site(host: Running, origin: str, **options: Any) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{host.port}{PATH}", json={}, headers={"origin": origin}, timeout=5, **options
    )


def test_a_page_of_another_origin_may_not_ask() -> None:
    async def ask(host: Running) -> list[int]:
        own = f"http://127.0.0.1:{host.port}"
        asked = [
            asyncio.to_thread(cross_site, host, origin) for origin in (own, "https://evil.example", "null")
        ]
        return [response.status_code for response in await asyncio.gather(*asked)]

    assert run(ask) == [200, 403, 403]


def test_a_page_that_cors_allows_may_ask_and_read() -> None:
    """Starlette's middleware, switched on by the setting."""

    async def ask(host: Running) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        headers = {"origin": "https://good.example", "access-control-request-method": "POST"}
        headers["access-control-request-headers"] = "content-type"
        url = f"http://127.0.0.1:{host.port}{PATH}"
        flight = await asyncio.to_thread(httpx.options, url, headers=headers)
        good = await asyncio.to_thread(cross_site, host, "https://good.example")
        return flight, good, await asyncio.to_thread(cross_site, host, "https://evil.example")

    flight, good, evil = run(ask, policy=Policy(loopback=True, origins=("https://good.example",)))
    assert flight.status_code == good.status_code == 200
    assert flight.headers["access-control-allow-origin"] == "https://good.example"
    assert good.headers["access-control-allow-origin"] == "https://good.example"
    assert good.json()["body"] == "{}"
    assert evil.status_code == 403
    assert "--cors https://evil.example" in evil.json()["error"]


def test_any_asgi_middleware_stands_before_it() -> None:
    async def ask(host: Running) -> bytes:
        long = b"x" * 2_000
        return await host.say(post(long, "Accept-Encoding: gzip", "Connection: close"), end=False)

    head, _, body = run(ask, wrap=GZipMiddleware).partition(b"\r\n\r\n")
    assert b"content-encoding: gzip" in head
    assert json.loads(gzip.decompress(body))["body"] == "x" * 2_000


# --- callers who leave, servers that stop -----------------------------------------------------------------


def test_a_request_whose_caller_has_gone_is_withdrawn() -> None:
    async def ask(host: Running) -> bytes:
        async with host.connect() as (_, writer):
            writer.write(post(b"first"))
            await until(lambda: host.echo.asked)
            writer.transport.abort()
        await until(lambda: host.echo.withdrawn)
        assert [request.body for request in host.echo.withdrawn] == [b"first"]
        return await host.say(post(b"second"))

    assert b"second" in run(ask, Echo(1.5))


def test_a_server_that_drains_answers_and_lets_go() -> None:
    async def ask(host: Running) -> bytes:
        host.app.draining = True
        return await host.say(post(b"{}"), end=False)

    answer = run(ask)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"connection: close\r\n") == 1


def test_the_private_listener_asks_for_the_name_too() -> None:
    app = App([Echo()], Policy(token=KEY))  # type: ignore[list-item]

    async def ask(host: str) -> int:
        transport = httpx.ASGITransport(app.private)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return (await http.get("/v2/health/live")).status_code

    assert asyncio.run(ask("localhost")) == 200
    assert asyncio.run(ask("evil.example")) == 403
