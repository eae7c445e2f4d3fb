"""Long requests delay nobody: cut into chunks, dropped when the caller has gone, each with its own clock."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import draw
from dropserve.manifest import VersionManifest
from dropserve.serving.answering import BatchHandler, HttpRequest, Job
from dropserve.serving.deployment import Deployment
from dropserve.serving.http.backends import EndpointConfig, InProcessBackend
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.protocol import Reply
from dropserve.store import Store, Stored
from dropserve.uncertainty.fitting import calibrate_classifier

Version = Stored[VersionManifest]
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
USUAL = json.dumps({"instances": [ROW]}).encode()


def rows(count: int) -> list[list[float]]:
    return np.random.default_rng(5).normal(size=(count, 6)).round(3).tolist()


def long(count: int = 200, **settings: Any) -> bytes:
    return json.dumps({"instances": rows(count), "parameters": {"mc_samples": 1000} | settings}).encode()


def tensors(count: int) -> bytes:
    entry = {"name": "input", "shape": [count, 6], "datatype": "FP32", "data": rows(count)}
    return json.dumps({"inputs": [entry], "parameters": {"mc_samples": 300}}).encode()


@pytest.fixture(scope="module")
def handler(mlp_version: Version) -> BatchHandler:
    return BatchHandler("mlp-mc", load_endpoint(mlp_version.folder, "mlp-mc", {"threads": 1}))


def finish(handler: BatchHandler, body: bytes) -> tuple[Reply, int]:
    """The reply to a long request, and in how many steps it came."""
    (job,) = handler.begin([HttpRequest(body, "x")])
    assert isinstance(job, Job)
    steps = 0
    while True:
        steps += 1
        reply = job.step()
        if reply is not None:
            return reply, steps


@pytest.mark.parametrize(
    "body",
    [long(), long(37, mc_scheme="iid", mc_seed=9), long(50, mc_tolerance=20), tensors(90)],
    ids=["balanced", "iid", "with a tolerance", "V2"],
)
def test_the_answer_in_chunks_is_that_of_the_whole_to_the_last_byte(
    handler: BatchHandler, body: bytes
) -> None:
    reply, steps = finish(handler, body)
    assert steps > 3
    assert reply.status == 200
    assert reply == handler([HttpRequest(body, "x")])[0]


def test_calibrated_answers_in_chunks_are_those_of_the_whole(
    mlp: Any, publish_version: Callable[..., Version], tmp_path: Path
) -> None:
    """What calibration adds to each row is joined too."""
    x = np.array(rows(400), np.float32)
    drawn = [mlp(x, mask) for mask in draw([mlp.site], 50, seed=0)["drop.scale"]]
    labels = np.random.default_rng(3).integers(0, 4, 400)
    record = calibrate_classifier(
        np.stack(drawn).astype(float), labels, {"input": x}, settings=Settings(), sites=[mlp.site]
    )
    published = publish_version(
        Store(tmp_path / "model_store"),
        "mlp",
        {f"{part}.onnx": mlp.onnx(part) for part in ("trunk", "head")},
        labels=("a", "b", "c", "d"),
        sites=(mlp.site,),
        calibration=record.to_json(),
    )
    handler = BatchHandler("mlp-mc", load_endpoint(published.folder, "mlp-mc", {"threads": 1}))
    body = json.dumps({"instances": rows(300)}).encode()
    reply, steps = finish(handler, body)
    assert steps > 3
    assert all(each["calibrated"] for each in json.loads(reply.body)["predictions"])
    assert reply == handler([HttpRequest(body, "x")])[0]


def test_what_is_wrong_with_a_row_is_said_with_its_number_in_the_request(handler: BatchHandler) -> None:
    given = rows(60)
    given[41] = [3e38] * 6
    body = json.dumps({"instances": given, "parameters": {"mc_samples": 500}}).encode()
    reply, _ = finish(handler, body)
    assert reply.status == 400
    assert b"instance 41: " in reply.body
    assert reply == handler([HttpRequest(body, "x")])[0]


def test_short_requests_are_answered_at_once_whatever_came_with_them(handler: BatchHandler) -> None:
    found = handler.begin([HttpRequest(body, "x") for body in (USUAL, long(), b"{", USUAL)])
    assert [type(each) for each in found] == [Reply, Job, Reply, Reply]
    assert found[0] == found[3] == handler([HttpRequest(USUAL, "x")])[0]


def test_an_answer_that_is_surely_too_long_is_refused_before_it_is_computed(
    mlp_version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"threads": 1, "max_response_bytes": 100_000}
    handler = BatchHandler("mlp", load_endpoint(mlp_version.folder, "mlp", options))
    computed: list[int] = []
    compute = handler.compute
    monkeypatch.setattr(
        handler, "compute", lambda queries: (computed.append(len(queries)), compute(queries))[1]
    )

    def ask(count: int) -> Reply:
        (reply,) = handler([HttpRequest(json.dumps({"instances": rows(count)}).encode(), "x")])
        return reply

    assert ask(5_000).status == 413
    assert b"the answer has more than " in ask(5_000).body
    assert set(computed) <= {0}
    assert ask(500).status == 200


# --- images: judged by their work -------------------------------------------------------------------------


def images() -> dict[str, tuple[bytes, dict[str, str]]]:
    buffer = io.BytesIO()
    Image.new("1", (2000, 2000)).save(buffer, "PNG")
    png = buffer.getvalue()
    assert len(png) < 16_384
    text = base64.b64encode(png).decode()
    escaped = json.dumps({"instances": [{"b64": text}]}).replace("b64", "\\u0062\\u0036\\u0034", 1)
    tensor = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}
    return {
        "a body": (png, {"content-type": "image/png"}),
        "JSON": (json.dumps({"instances": [{"b64": text}]}).encode(), {}),
        "JSON with escapes": (escaped.encode(), {}),
        "V2": (json.dumps({"inputs": [tensor]}).encode(), {}),
    }


@pytest.mark.parametrize("name", images())
def test_an_image_of_few_bytes_is_decoded_beside_the_event_loop(
    name: str, photos_version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, headers = images()[name]
    backend = InProcessBackend(photos_version.folder, "photos", EndpointConfig(handler={"threads": 1}))
    threads: list[int] = []
    handle = backend._handle
    monkeypatch.setattr(
        backend, "_handle", lambda requests: (threads.append(threading.get_ident()), handle(requests))[1]
    )

    async def ask(request: HttpRequest) -> Reply:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        backend.submit(request, future.set_result)
        return await future

    async def both() -> tuple[Reply, Reply]:
        numbers = json.dumps({"instances": [[7] * 48]}).encode()
        return await ask(HttpRequest(body, "x", headers)), await ask(HttpRequest(numbers, "x"))

    image, numbers = asyncio.run(both())
    assert image.status == numbers.status == 200
    assert threads[0] != threading.get_ident()
    assert threads[1] == threading.get_ident(), "numbers are computed on the loop"


# --- a real server ----------------------------------------------------------------------------------------


def ask(deployment: Deployment, body: bytes) -> tuple[int, float]:
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", deployment.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/predictions/mlp-mc", body)
        response = connection.getresponse()
        response.read()
    return response.status, time.perf_counter() - start


def seconds(deployment: Deployment) -> float:
    """That mlp-mc has spent computing."""
    text = httpx.get(f"{deployment.url}/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    name, labels = "dropserve_seconds_total", {"endpoint": "mlp-mc"}
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@pytest.mark.slow
def test_a_usual_request_waits_for_no_greedy_one(asgi_server: Deployment) -> None:
    """With 6 greedy callers at work, its p95 is within 5 times its lone latency or 100 ms."""
    alone = np.median([ask(asgi_server, USUAL)[1] for _ in range(50)])
    stop, much = threading.Event(), long()

    def greedy() -> set[int]:
        found: set[int] = set()
        while not stop.is_set():
            found.add(ask(asgi_server, much)[0])
        return found

    with ThreadPoolExecutor(6) as pool:
        callers = [pool.submit(greedy) for _ in range(6)]
        time.sleep(1)
        usual = [ask(asgi_server, USUAL) for _ in range(100)]
        stop.set()
    p95 = float(np.quantile([took for _, took in usual], 0.95))
    print(f"\nalone {1000 * alone:.1f} ms; beside 6 greedy callers p95 {1000 * p95:.1f} ms")
    assert {status for status, _ in usual} == {200}
    assert set.union(*(caller.result() for caller in callers)) == {200}
    assert p95 < max(5 * alone, 0.1)


@pytest.mark.slow
def test_callers_who_have_gone_are_not_computed(asgi_server: Deployment) -> None:
    """Thirty of them would take half a minute."""
    before = seconds(asgi_server)
    connections = []
    for _ in range(30):
        connection = http.client.HTTPConnection("127.0.0.1", asgi_server.port)
        connection.request("POST", "/predictions/mlp-mc", long())
        connections.append(connection)
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.close()
    time.sleep(2)
    spent = seconds(asgi_server)
    time.sleep(1.5)
    assert seconds(asgi_server) == spent, "nobody computes any more"
    assert spent - before < 3
    assert ask(asgi_server, USUAL)[0] == 200


@pytest.mark.slow
def test_each_request_has_its_own_clock(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    """What takes too long is refused alone: usual requests are answered and no worker is killed."""
    tuning = "responseTimeout: 1\nbatchSize: 12\nhandler: {max_mc_samples: 20000, max_mc_passes: 4000000}\n"
    with (
        run_server(tmp_path, [mlp_version], tuning, engine="asgi") as deployment,
        ThreadPoolExecutor(8) as pool,
    ):
        endless = [pool.submit(ask, deployment, long(mc_samples=20_000)) for _ in range(4)]
        usual = [ask(deployment, USUAL)[0] for _ in range(20)]
        found = [each.result() for each in endless]
        text = httpx.get(f"{deployment.url}/metrics").text
    assert usual == [200] * 20
    assert {status for status, _ in found} == {504}
    assert max(took for _, took in found) < 4
    assert 'dropserve_worker_restarts_total{endpoint="mlp-mc",version="1"} 0.0' in text
