"""Ten thousand raw requests that are hardly HTTP: no 5xx, no wrong answer, no memory kept."""

from __future__ import annotations

import json
import random
import socket
import time

import httpx
import psutil
import pytest
from python_hosts import server_process

from dropserve.serving.deployment import Deployment

pytestmark = pytest.mark.slow
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
BODY = json.dumps({"instances": [ROW]}).encode()
HEAD = b"POST /predictions/mlp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nx-sum: 1\r\n\r\n"
OFFER = GOOD.replace(
    b"Host:", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nHost:"
)
SEEDS = (GOOD, CHUNKED, OFFER, b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n", GOOD + CHUNKED)
PIECES = (
    b"\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\xff",
    b"0",
    b"-1",
    b"chunked",
    b"99999999999",
    b"a: b\r\n" * 50,
)


def altered(draw: random.Random) -> bytes:
    """A request with some bytes gone, doubled, replaced or put in."""
    text = bytearray(draw.choice(SEEDS))
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 0, 1, 2, 20)))
        text[start:end] = draw.choice((b"", bytes(text[start:end]) * 2, draw.choice(PIECES)))
    return bytes(text)


def told(port: int, text: bytes, *, half_close: bool) -> bytes:
    """What comes at once, or until the end."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5 if half_close else 0.01) as connection:
        try:
            connection.sendall(text)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except (ConnectionError, TimeoutError):
            pass
    return found


def test_ten_thousand_requests_that_are_hardly_http_harm_nobody(asgi_server: Deployment) -> None:
    server, draw = server_process(asgi_server), random.Random(11)
    url = f"{asgi_server.url}/predictions/mlp"
    good = httpx.post(url, json={"instances": [ROW]}).content
    for _ in range(2_500):  # what is made once, and stays
        told(asgi_server.port, altered(draw), half_close=False)
    before = server.memory_info().rss
    statuses: set[bytes] = set()
    for number in range(10_000):
        answer = told(asgi_server.port, altered(draw), half_close=number % 20 == 0)
        statuses |= {line.split(b" ")[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")}
        if number % 100 == 0:
            assert httpx.post(url, json={"instances": [ROW]}).content == good
    print(f"\n{sorted(statuses)}; memory {(server.memory_info().rss - before) / 1e6:+.1f} MB")
    assert b"200" in statuses
    assert not [status for status in statuses if status.startswith(b"5")]
    assert server.memory_info().rss - before < 10_000_000


def test_endless_trailers_cost_a_connection_and_no_memory(asgi_server: Deployment) -> None:
    server = server_process(asgi_server)
    before, sent = server.memory_info().rss, 0
    with socket.create_connection(("127.0.0.1", asgi_server.port), timeout=5) as connection:
        connection.sendall(CHUNKED.partition(b"x-sum")[0])
        try:
            while sent < 50_000_000:
                sent += connection.send(b"a: b\r\n" * 10_000)
        except (ConnectionError, TimeoutError):
            pass
    time.sleep(0.2)
    print(f"\n{sent / 1e6:.1f} MB sent; memory {(server.memory_info().rss - before) / 1e6:+.1f} MB")
    assert sent < 20_000_000
    assert server.memory_info().rss - before < 30_000_000
    assert psutil.pid_exists(server.pid)
