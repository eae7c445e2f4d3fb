"""The client: typed answers, and errors that say what to do; a real server and a wicked one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

import dropserve
from dropserve.client import AsyncClient, Client, default_url
from dropserve.errors import RequestError, ServerError, UsageError
from dropserve.serving.runtime import free_ports

ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]


def test_the_package_offers_its_clients_without_importing_them() -> None:
    assert dropserve.Client is Client
    assert dropserve.AsyncClient is AsyncClient
    assert set(dropserve.__all__) == {"AsyncClient", "Client"}
    with pytest.raises(AttributeError, match="Server"):
        _ = dropserve.Server  # type: ignore[attr-defined]  # there is none
    code = (
        "import sys, dropserve; assert 'httpx' not in sys.modules;"
        "dropserve.Client; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_real_server_answers_in_types(server: Any) -> None:
    with Client(server.url) as client:
        (plain,) = client.predict("mlp", [ROW])
        again = client.predict("mlp", np.array([ROW, ROW]))
        doubtful = client.predict("mlp", [ROW], mc=True, samples=60, seed=7, scheme="iid")
        by_name = client.predict("mlp-mc", [{"input": ROW}], samples=60, seed=7, scheme="iid")
        words = client.predict("words", np.array([1, 2]))
    assert plain.label in "abcd"
    assert plain.probabilities is not None
    assert sum(plain.probabilities.values()) == pytest.approx(1)
    assert plain.uncertainty is None
    assert list(again) == [plain, plain]
    assert doubtful == by_name
    assert doubtful.parameters == {"mc_samples": 60, "mc_seed": 7, "mc_scheme": "iid", "mc_coverage": 0.9}
    assert doubtful[0].calibrated is None
    assert "without held-out rows" in doubtful.calibration["reason"]
    doubt = doubtful[0].uncertainty
    assert doubt is not None
    assert doubt.predictive_entropy is not None
    assert doubt.predictive_entropy > 0
    assert set(doubt.standard_deviation) == set("abcd")
    assert words[1].outputs == {"output": [6, 7, 8]}


def test_rows_of_a_table_travel_by_name_by_list_and_by_column(server: Any) -> None:
    """The model is age + 100 job + 1000 grade + 10000 pay; gaps are age 41.5 and the second grade."""
    rows = [
        {"age": 30, "job": "nurse", "grade": "3", "pay": 2},
        {"age": None, "job": "clerk", "grade": None, "pay": 1},
        {"age": 1.5, "job": "teacher", "grade": "unheard of", "pay": 0},
    ]
    expected = [30 + 100 + 2000 + 20000, 41.5 + 1000 + 10000, 1.5 + 200 + 3000]
    with Client(server.url) as client:
        ways = [rows, [list(row.values()) for row in rows], pd.DataFrame(rows)]
        for instances in ways:
            assert [prediction.value for prediction in client.predict("staff", instances)] == expected
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        columns["age"] = np.array(columns["age"], np.float32)
        assert client.infer("staff", columns)["value"].ravel().tolist() == expected
        with pytest.raises(RequestError, match='instance 0, "job" is null; expected one of "clerk"'):
            client.predict("staff", [rows[0] | {"job": None}])


def test_async_answers_the_same(server: Any) -> None:
    async def several() -> list[Any]:
        async with AsyncClient(server.url) as client:
            asked = (client.predict("mlp", [ROW], mc=True, seed=seed) for seed in (1, 2, 1))
            return await asyncio.gather(*asked)

    first, second, third = asyncio.run(several())
    assert first == third != second
    with Client(server.url) as client:
        assert client.predict("mlp", [ROW], mc=True, seed=1) == first


def test_the_servers_refusal_is_told_in_its_words(server: Any) -> None:
    with Client(server.url) as client:
        with pytest.raises(RequestError, match="instance 0 has 2 numbers; expected 6 numbers") as caught:
            client.predict("mlp", [[1, 2]])
        assert caught.value.status == 400
        with pytest.raises(ServerError, match=r"serves no nobody.*dropserve serve nobody"):
            client.predict("nobody", [ROW])
        with pytest.raises(ServerError, match="serves no words-mc: its model has no dropout"):
            client.predict("words", [1], mc=True)


def test_nobody_at_home() -> None:
    with (
        Client(f"http://127.0.0.1:{free_ports(1)[0]}") as client,
        pytest.raises(ServerError, match=r"nothing answers at .*Start a server with: dropserve serve"),
    ):
        client.predict("mlp", [ROW])


@pytest.mark.parametrize("url", ["", "ftp://x", "http://[", "127.0.0.1:8080"])
def test_addresses_that_are_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPSERVE_PORT", str(free_ports(1)[0]))
    with pytest.raises((ServerError, UsageError)), Client(url) as client:
        client.predict("mlp", [ROW])


@pytest.mark.parametrize(
    ("instances", "options", "expected"),
    [
        ([[float("nan")]], {}, "finite numbers"),
        ([[object()]], {}, "object is not a number"),
        ([ROW], {"samples": 5}, "mc_samples: only Monte Carlo takes settings; add mc=True"),
    ],
)
def test_what_cannot_be_sent_is_not_sent(instances: Any, options: dict[str, Any], expected: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(UsageError, match=expected):
        client.predict("mlp", instances, **options)


def wicked(answer: Callable[[int], httpx.Response]) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(len(seen))

    return httpx.MockTransport(reply), seen


GOOD = {"predictions": [{"label": "a", "probabilities": {"a": 1.0}, "novelty": 1}]}


def test_a_busy_server_is_asked_again_and_no_other() -> None:
    transport, seen = wicked(lambda n: httpx.Response(503 if n < 3 else 200, json=GOOD))
    with Client(transport=transport) as client:
        assert client.predict("m", [[1]])[0].label == "a"
    assert len(seen) == 3
    transport, seen = wicked(lambda _: httpx.Response(503, json={"message": "too busy"}))
    with Client(transport=transport, retries=1) as client, pytest.raises(ServerError, match="503: too busy"):
        client.predict("m", [[1]])
    assert len(seen) == 2
    transport, seen = wicked(lambda _: httpx.Response(500, text="oops"))
    with Client(transport=transport) as client, pytest.raises(ServerError, match="500: oops"):
        client.predict("m", [[1]])
    assert len(seen) == 1, "a request that broke the model once is not sent twice"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"predictions": 5}', b'{"predictions": [1]}', b"null"]
)
def test_an_answer_that_is_none_of_ours(body: bytes) -> None:
    transport, _ = wicked(lambda _: httpx.Response(200, content=body))
    with Client(transport=transport) as client, pytest.raises(ServerError, match="not as dropserve does"):
        client.predict("m", [[1]])


def test_requests_are_what_the_protocol_says() -> None:
    transport, seen = wicked(lambda _: httpx.Response(200, json=GOOD))
    with Client("http://host:1/", transport=transport) as client:
        client.predict("a b", np.float32([[1, 2]]), mc=True, seed=3)
    (request,) = seen
    assert str(request.url) == "http://host:1/predictions/a%20b-mc"
    assert json.loads(request.content) == {"instances": [[1.0, 2.0]], "parameters": {"mc_seed": 3}}
    assert request.headers["content-type"] == "application/json"


def test_the_port_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DROPSERVE_PORT", raising=False)
    assert default_url() == "http://127.0.0.1:8080"
    monkeypatch.setenv("DROPSERVE_PORT", "99")
    assert default_url() == "http://127.0.0.1:99"


def test_tensors_travel_bit_for_bit(server: Any, mlp: Any) -> None:
    x = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
    with Client(server.url) as client:
        plain = client.infer("mlp", {"input": x}, id="q 7")
        by_json = client.predict("mlp", x)
        doubt = client.infer("mlp", {"input": x}, mc=True, samples=60, seed=3)
        some = client.infer("mlp-mc", {"input": x}, outputs=["mutual_information", "label"])
        words = client.infer("words", {"input": np.array([6, 0])})
        stopped = client.infer("mlp", {"input": x}, mc=True, tolerance=9, samples=500)
    assert (plain.model_name, plain.model_version, plain.id) == ("mlp", "1", "q 7")
    assert plain["label"].tolist() == [row.label for row in by_json]
    assert plain["probabilities"].tolist() == [list((row.probabilities or {}).values()) for row in by_json]
    assert doubt.parameters["mc_samples"] == 60
    assert doubt["standard_deviation"].shape == (4, 4)
    assert set(some.outputs) == {"mutual_information", "label"}
    assert words["output"].dtype == np.float32
    assert words["output"].tolist() == [[18, 19, 20], [0, 1, 2]]
    assert stopped["samples"].dtype == np.int64
    assert (stopped["samples"] <= 500).all()


def test_async_tensors(server: Any) -> None:
    async def ask() -> Any:
        async with AsyncClient(server.url) as client:
            return await client.infer("mlp", {"input": np.float32([ROW])}, mc=True, seed=4)

    with Client(server.url) as client:
        found = client.infer("mlp", {"input": np.float32([ROW])}, mc=True, seed=4)
    np.testing.assert_array_equal(asyncio.run(ask())["probabilities"], found["probabilities"])


def test_tensors_that_do_not_fit_are_refused_in_words(server: Any) -> None:
    with Client(server.url) as client:
        with pytest.raises(RequestError, match=r'datatype is a string \("FP64"\); expected FP32'):
            client.infer("mlp", {"input": np.array([ROW])})
        with pytest.raises(ServerError, match="serves no nobody"):
            client.infer("nobody", {"input": np.float32([ROW])})
        for value in (5.0, [1j], [None], np.array(["a", 1], object)):
            with pytest.raises(UsageError, match=r"expected numbers \[rows, \.\.\.\]"):
                client.infer("mlp", {"input": value})
        with pytest.raises(UsageError, match="sample: expected samples, seed"):
            client.predict("mlp", [ROW], mc=True, sample=5)  # type: ignore[call-arg]  # a slip of the pen
