"""What hosts in Python do around the model: bounds, queues, tokens, readiness, figures, their description."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from python_hosts import PYTHON_HOSTS, server_process, working

from dropserve.client import Client
from dropserve.errors import ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.http.backends import FAST, EndpointConfig, InProcessBackend
from dropserve.serving.http.launch import AsgiHost, read_token
from dropserve.serving.on_torchserve import TorchServeHost
from dropserve.serving.tuning import Properties
from dropserve.store import Stored

Version = Stored[VersionManifest]
TOLD = 4.0  # seconds after which Ray's exporter has what every replica has done
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]


@pytest.fixture(scope="module", params=PYTHON_HOSTS)
def host(request: pytest.FixtureRequest) -> Deployment:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def http(host: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=host.url, timeout=30) as client:
        yield client


def figure(text: str, name: str, endpoint: str, **labels: str) -> float:
    """The sum of a series in Prometheus's text, of one endpoint, read by Prometheus's own parser."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    wanted = {"endpoint": endpoint} | labels
    return sum(s.value for s in samples if s.name == name and s.labels.items() >= wanted.items())


# --- what is served, and how it is ------------------------------------------------------------------------


def test_several_models_are_served_at_once(host: Deployment, http: httpx.Client) -> None:
    served = [endpoint.name for endpoint in host.endpoints]
    assert {"mlp", "mlp-mc", "words", "photos", "photos-mc"} <= set(served)
    assert http.get("/v1/models").json() == {"models": served}
    for name in served:
        assert http.get(f"/v1/models/{name}").json() == {"name": name, "ready": True}
    refused = http.post("/v1/models/wrods:predict", json={"instances": [1]})
    assert refused.status_code == 404
    assert refused.json()["error"] == f'there is no model "wrods" here; there are {", ".join(served)}'
    assert "is served without Monte Carlo" in http.get("/v2/models/words-mc").json()["error"]


def test_metadata_is_that_of_the_model(http: httpx.Client) -> None:
    assert http.get("/v2/models/words").json() == {
        "name": "words",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "input", "datatype": "INT64", "shape": [-1]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert "mc_dropout" in http.get("/v2").json()["extensions"]


def test_the_private_listener_has_figures_and_health_and_does_not_compute(host: Deployment) -> None:
    private = f"http://127.0.0.1:{host.metrics_port}"
    assert httpx.get(f"{private}/v2/health/ready").json() == {"ready": True}
    assert httpx.post(f"{host.url}/predictions/mlp", json={"instances": [ROW]}).status_code == 200
    time.sleep(TOLD if host.engine == "ray" else 0)
    assert "dropserve_requests_total" in httpx.get(f"{private}/metrics").text
    assert httpx.post(f"{private}/predictions/mlp", json={"instances": [ROW]}).status_code == 405


def test_figures_count_what_was_done(host: Deployment, http: httpx.Client) -> None:
    wanted = {
        ("dropserve_requests_total", "mlp-mc", ""): 1,
        ("dropserve_rows_total", "mlp-mc", ""): 2,
        ("dropserve_samples_total", "mlp-mc", ""): 60,
        ("dropserve_rejected_total", "mlp-mc", "json"): 1,
        ("dropserve_predictive_entropy_nats_count", "mlp-mc", ""): 2,
        ("dropserve_rows_total", "mlp", ""): 3,
        ("dropserve_rejected_total", "mlp", "shape"): 1,
    }

    prefix = "ray_" if host.engine == "ray" else ""

    def read() -> list[float]:
        time.sleep(TOLD if host.engine == "ray" else 0)
        text = httpx.get(f"http://127.0.0.1:{host.metrics_port}/metrics").text
        return [
            figure(text, prefix + name, endpoint, **({"reason": r} if r else {}))
            for name, endpoint, r in wanted
        ]

    before = read()
    many = {"instances": [ROW, ROW], "parameters": {"mc_samples": 30}}
    assert http.post("/predictions/mlp-mc", json=many).status_code == 200
    assert http.post("/predictions/mlp-mc", content=b"{").status_code == 400
    assert http.post("/v1/models/mlp:predict", json={"instances": [ROW] * 3}).status_code == 200
    assert http.post("/predictions/mlp", json={"instances": [[1]]}).status_code == 400
    warm = http.post("/predictions/mlp", json={"instances": [ROW]}, headers={"x-dropserve-warm": "1"})
    assert warm.status_code == 200
    assert [b - a for a, b in zip(before, read(), strict=True)] == list(wanted.values())


def test_each_request_has_an_id_of_its_own(http: httpx.Client) -> None:
    found = {
        http.post("/predictions/mlp", json={"instances": [ROW]}).headers["x-request-id"] for _ in range(5)
    }
    assert len(found) == 5


# --- bodies -----------------------------------------------------------------------------------------------


def test_a_body_that_is_too_long_is_refused_before_it_is_read(host: Deployment) -> None:
    """A gigabyte is announced and none of it sent; and one that announces nothing is cut off on its way."""
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as connection:
        connection.sendall(
            b"POST /predictions/mlp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 65_536

    response = httpx.post(f"{host.url}/predictions/mlp", content=endless(), timeout=30)
    assert response.status_code == 413
    assert response.json()["error"].startswith("the body has more than 6553500 bytes")


def test_a_long_body_is_answered_beside_short_ones(http: httpx.Client) -> None:
    """It is read on a thread: others are answered meanwhile, with the same numbers as in small requests."""
    rows = [[i / 30_000, *ROW[1:]] for i in range(30_000)]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(http.post, "/predictions/mlp", json={"instances": rows})
        during = 0
        while not long.done():
            assert http.post("/predictions/mlp", json={"instances": [ROW]}).status_code == 200
            during += not long.done()
    assert during > 0
    predictions = long.result().json()["predictions"]
    assert len(predictions) == 30_000
    for i in (0, 12_345, 29_999):
        (alone,) = http.post("/predictions/mlp", json={"instances": [rows[i]]}).json()["predictions"]
        assert predictions[i] == alone


def test_requests_one_behind_the_other_on_one_connection(host: Deployment) -> None:
    """Pipelined, as HTTP/1.1 allows: answered in order."""
    bodies = [json.dumps({"instances": [[i, *ROW[1:]]]}).encode() for i in range(5)]
    head = b"POST /predictions/mlp HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as connection:
        connection.sendall(b"".join(head % len(body) + body for body in bodies))
        data = b""
        while data.count(b"predictions") < 5:
            data += connection.recv(65536)
    got = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in data.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    with httpx.Client(base_url=host.url) as http:
        assert got == [http.post("/predictions/mlp", content=body).json() for body in bodies]


# --- queues -----------------------------------------------------------------------------------------------

TIGHT = "jobQueueSize: 3\nresponseTimeout: 2\n"


@pytest.mark.slow
def test_a_full_queue_and_a_worker_that_hangs(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    """Of nine at once two lie with the worker, which has begun one, three wait, and four find no room."""
    with run_server(tmp_path, [mlp_version], TIGHT, engine="asgi") as deployment:
        (worker,) = [p for p in server_process(deployment).children() if Path(p.cwd()).name == "mlp-mc"]
        with httpx.Client(base_url=deployment.url, timeout=60) as http, ThreadPoolExecutor(9) as pool:
            worker.suspend()
            asked = [pool.submit(_timed, http, "/predictions/mlp-mc") for _ in range(9)]
            time.sleep(0.5)
            seconds, plain = _timed(http, "/predictions/mlp")
            assert plain.status_code == 200
            assert seconds < 1
            assert http.get("/v2/health/ready").status_code == 200, "busy is not broken"
            text = http.get("/metrics").text
            found = sorted((one.result() for one in asked), key=lambda pair: pair[0])
            assert figure(text, "dropserve_waiting_requests", "mlp-mc") == 5
            _, again = _timed(http, "/predictions/mlp-mc")
            assert again.status_code == 200, "it waits for the next worker"
            text = http.get("/metrics").text
            assert figure(text, "dropserve_worker_restarts_total", "mlp-mc") == 1
    for seconds, response in found[:4]:
        assert seconds < 1
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json()["error"] == "3 requests are waiting for this model already; try again"
    late = [response for seconds, response in found[4:] if 1.9 < seconds < 10]
    assert sorted(response.status_code for response in late) == [503, 503, 503, 503, 504]
    for response in late:
        if response.status_code == 504:
            expected = "the model did not answer within 2 s; its worker was started again"
        else:
            expected = "no answer could be begun within 2 s; try again"
            assert response.headers["retry-after"] == "1"
        assert response.json()["error"] == expected


def _timed(http: httpx.Client, path: str) -> tuple[float, httpx.Response]:
    start = time.perf_counter()
    response = http.post(path, json={"instances": [ROW]})
    return time.perf_counter() - start, response


# --- where it is computed ---------------------------------------------------------------------------------


def test_doubt_has_a_process_of_its_own_and_a_fast_model_none(asgi_server: Deployment) -> None:
    found = {Path(process.cwd()).name for process in server_process(asgi_server).children()}
    assert {"mlp-mc", "photos-mc"} <= found, "and more where a machine is so busy that none is fast"


def test_no_torch_and_no_java_are_there(host: Deployment) -> None:
    for process in working(host):
        assert not [m.path for m in process.memory_maps() if "torch" in Path(m.path).name.lower()]
        assert "java" not in process.name()


def test_a_model_is_timed_from_bytes_to_bytes(mlp_version: Version) -> None:
    backend = InProcessBackend(mlp_version.folder, "mlp", EndpointConfig(handler={"threads": 1}))
    assert 0 < backend.seconds < 20 * FAST


def test_a_wrong_place_is_refused_with_the_right_ones(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    with (
        pytest.raises(UsageError, match="place: 'thread'; expected auto, server, process"),
        run_server(tmp_path, [mlp_version], "place: thread\n", engine="asgi"),
    ):
        pass


# --- who may ask ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["asgi", "ray"])
def test_with_tls_and_token_only_who_has_both_gets_in(
    engine: str, tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "server.pem"
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", *words, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    properties = tmp_path / "config.properties"
    properties.write_text(f"certificate_file={certificate}\nprivate_key_file={key}\n")
    with run_server(
        tmp_path, [mlp_version], engine=engine, host="0.0.0.0", properties=properties
    ) as deployment:
        token = (tmp_path / ".run" / "token").read_text()
        assert (tmp_path / ".run" / "token").stat().st_mode & 0o077 == 0
        with Client(deployment.url, token=token, certificates=certificate) as client:
            assert client.predict("mlp", [ROW])[0].label in "abcd"
            assert client.predict("mlp", [ROW], mc=True)[0].uncertainty is not None
        with (
            Client(deployment.url, certificates=certificate) as client,
            pytest.raises(ServerError, match="lets nobody in without its token"),
        ):
            client.predict("mlp", [ROW])
        trust = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=deployment.url, verify=trust) as http:
            for path in ("/v2", "/metrics", "/openapi.json", "/", "/v2/models/mlp", "/nothing"):
                response = http.get(path, headers={"authorization": f"Bearer {token[:-1]}"})
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert "Bearer TOKEN" in response.json()["error"]
            assert http.get("/v2/health/ready").json() == {"ready": True}, "probes carry no token"
            assert http.get("/v2", headers={"authorization": f"Bearer {token}"}).status_code == 200
            found = http.get("/openapi.json", headers={"authorization": f"Bearer {token}"}).json()
            assert found["security"] == [{"token": []}]
        with pytest.raises(httpx.HTTPError):
            httpx.get(deployment.url.replace("https", "http"))


@pytest.mark.slow
def test_a_token_of_ones_own_and_none(
    tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    """Asked for by hand it is asked for on loopback too; --no-token lets everybody in, wherever they are."""
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    with run_server(tmp_path, [mlp_version], engine="asgi", token_file=file) as deployment:
        assert httpx.get(f"{deployment.url}/v2").status_code == 401
        given = {"authorization": "Bearer 0123456789abcdef"}
        assert httpx.get(f"{deployment.url}/v2", headers=given).status_code == 200
        assert (tmp_path / ".run" / "token").read_text() == "0123456789abcdef"
        assert not deployment.drawn
    with run_server(
        tmp_path, [mlp_version], engine="asgi", host="0.0.0.0", tls=False, tokens=False
    ) as deployment:
        assert httpx.get(f"{deployment.url}/v2").status_code == 200


@pytest.mark.parametrize(("host", "address"), [("::1", "[::1]"), ("::", "[::1]")])
def test_an_address_of_ipv6_is_served(
    host: str, address: str, tmp_path: Path, mlp_version: Version, run_server: Callable[..., Any]
) -> None:
    options = {"engine": "asgi", "host": host, "monte_carlo": False, "tls": False, "tokens": False}
    with run_server(tmp_path, [mlp_version], **options) as deployment:
        assert deployment.url == f"http://{address}:{deployment.port}"
        assert httpx.post(f"{deployment.url}/predictions/mlp", json={"instances": [ROW]}).status_code == 200


@pytest.mark.parametrize("content", ["", "short", "two tokens are one too many", "ümlaut-0123456789"])
def test_what_is_no_token_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(UsageError, match="expected one token, at least 16 letters"):
        read_token(file)
    with pytest.raises(UsageError, match="no token can be read"):
        read_token(tmp_path / "nothing")


def test_torchserve_draws_its_token_itself(tmp_path: Path) -> None:
    options = Options(tmp_path, tmp_path, tmp_path, token_file=tmp_path / "token")
    with pytest.raises(UsageError, match=r"TorchServe draws its token itself.*--engine asgi"):
        TorchServeHost().check(Properties({}, ()), options, tls=False)


def test_a_keystore_is_javas() -> None:
    options = Options(Path("x"), Path("x"), Path("x"))
    with pytest.raises(UsageError, match="certificate_file and private_key_file"):
        AsgiHost().check(Properties({"keystore": "x"}, ()), options, tls=True)


# --- its own description ----------------------------------------------------------------------------------


def test_the_page_for_people_names_every_route_and_downloads_nothing(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    response = http.get("/")
    assert response.headers["content-type"].startswith("text/html")
    text: list[str] = []
    fetched: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
            fetched.extend(value or "" for name, value in attrs if name in {"src", "href"})

        def handle_data(self, data: str) -> None:
            text.append(data)

    Reader().feed(response.text)
    assert fetched == ["openapi.json"]
    whole = " ".join(text)
    assert all(path in whole for path in document["paths"])


def test_every_route_that_is_described_is_there(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert len(document["paths"]) > 40
    for path, operations in document["paths"].items():
        for method in operations:
            response = http.request(method, path)
            assert response.status_code in {200, 400}, (method, path)
            assert str(response.status_code) in operations[method]["responses"]
