"""The TorchServe handler without Java: TorchServe's own Service and Context drive it, as a worker does."""

from __future__ import annotations

import json
import logging
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ts.model_loader import ModelLoaderFactory
from ts.service import Service

from dropserve.manifest import VersionManifest
from dropserve.serving.loaded import LOAD_FAILED
from dropserve.store import Stored

Version = Stored[VersionManifest]
JSON = "application/json"


class _Metrics:
    """What Service asks of TorchServe's metrics cache."""

    request_ids: dict[int, str] | None = None
    model_name = ""

    def set_request_ids(self, ids: str) -> None: ...
    def add_time(self, *args: object, **kwargs: object) -> None: ...


@dataclass(frozen=True)
class Response:
    status: int
    phrase: str
    content_type: str
    body: Any


class Worker:
    """Loads an archive as TorchServe's model_service_worker does, and speaks its wire format."""

    def __init__(self, archive: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "") -> None:
        with zipfile.ZipFile(archive) as mar:
            mar.extractall(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(__import__("sys").modules, "handler", raising=False)
        loader = ModelLoaderFactory.get_model_loader()
        self.service: Service = loader.load(
            name or archive.stem, str(folder), "handler.py", None, 16, None, True, _Metrics()
        )
        self.service.set_cl_socket(None)

    def __call__(self, *bodies: Any, content_type: str = JSON, part: str = "body") -> list[Response]:
        batch = [
            {
                "requestId": f"request-{index}".encode(),
                "headers": [{"name": b"Content-Type", "value": content_type.encode()}],
                "parameters": [{"name": part, "contentType": content_type, "value": body}],
            }
            for index, body in enumerate(bodies)
        ]
        return list(_decode(bytes(self.service.predict(batch)), len(batch)))


def _decode(message: bytes, count: int) -> Iterator[Response]:
    """TorchServe's response frame, field by field."""
    position = 0

    def number() -> int:
        nonlocal position
        (value,) = struct.unpack_from("!i", message, position)
        position += 4
        return value

    def text() -> str:
        return take(number()).decode()

    def take(length: int) -> bytes:
        nonlocal position
        position += length
        return message[position - length : position]

    code, _ = number(), text()
    assert code == 200, "the whole batch failed"
    for index in range(count):
        assert text() == f"request-{index}"
        content_type, status, phrase = text(), number(), text()
        headers = {text(): text() for _ in range(number())}
        assert headers["content-type"] == content_type
        yield Response(status, phrase, content_type, json.loads(take(number()), parse_constant=_no_constant))
    assert number() == -1


def _no_constant(token: str) -> None:
    pytest.fail(f"bare {token} in an answer")


@pytest.fixture(autouse=True)
def _root_level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def worker(mlp_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(mlp_version.path("mlp.mar"), tmp_path, monkeypatch)


@pytest.fixture
def doubting(mlp_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(mlp_version.path("mlp-mc.mar"), tmp_path, monkeypatch)


def body(*rows: Any, **parameters: Any) -> bytes:
    document: dict[str, Any] = {"instances": list(rows)}
    return json.dumps(document | ({"parameters": parameters} if parameters else {})).encode()


ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]


def test_a_batch_of_good_and_bad_requests_gets_each_its_own_answer(worker: Worker, mlp: Any) -> None:
    good, bad, other = worker(body(ROW), b'{"instances": [[1, 2', body(ROW, [0.0] * 6))
    assert [r.status for r in (good, bad, other)] == [200, 400, 200]
    assert [r.phrase for r in (good, bad)] == ["OK", "Bad Request"]
    assert {r.content_type for r in (good, bad, other)} == {JSON}
    assert "not JSON" in bad.body["error"]
    assert other.body["predictions"][0] == good.body["predictions"][0]
    (prediction,) = good.body["predictions"]
    logits = mlp(np.array([ROW], np.float32))[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert list(prediction["probabilities"]) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(list(prediction["probabilities"].values()), expected, rtol=1e-5)
    assert prediction["label"] == "abcd"[int(expected.argmax())]
    assert "parameters" not in good.body
    assert "uncertainty" not in prediction


def test_monte_carlo_requests_keep_their_own_settings(doubting: Worker) -> None:
    bodies = body(ROW), body(ROW, mc_samples=20, mc_seed=7), body(ROW, mc_scheme="iid"), body(ROW)
    answers = doubting(*bodies)
    assert [a.status for a in answers] == [200] * 4
    settings = [a.body["parameters"] for a in answers]
    assert settings[0] == {"mc_samples": 50, "mc_seed": 0, "mc_scheme": "balanced", "mc_coverage": 0.9}
    assert settings[1] == {"mc_samples": 20, "mc_seed": 7, "mc_scheme": "balanced", "mc_coverage": 0.9}
    assert settings[2] == {"mc_samples": 50, "mc_seed": 0, "mc_scheme": "iid", "mc_coverage": 0.9}
    assert answers[0].body == answers[3].body
    for alone, together in zip(bodies, answers, strict=True):
        assert doubting(alone)[0].body == together.body
    doubt = answers[0].body["predictions"][0]["uncertainty"]
    assert doubt["predictive_entropy"] >= doubt["expected_entropy"] >= 0
    gap = doubt["predictive_entropy"] - doubt["expected_entropy"]
    assert doubt["mutual_information"] == pytest.approx(gap)
    assert set(doubt["standard_error"]) == {"probabilities", "predictive_entropy", "mutual_information"}
    few = answers[1].body["predictions"][0]["uncertainty"]
    assert few["standard_error"] is None, "two blocks say nothing of their own spread"


def test_seed_minus_one_draws_a_seed_and_says_which(doubting: Worker) -> None:
    first, second = (doubting(body(ROW, mc_seed=-1))[0].body for _ in range(2))
    assert first["parameters"]["mc_seed"] != second["parameters"]["mc_seed"]
    again = doubting(body(ROW, mc_seed=first["parameters"]["mc_seed"]))[0].body
    assert again == first


def test_plain_endpoint_names_the_monte_carlo_one(worker: Worker) -> None:
    (refused,) = worker(body(ROW, mc_samples=10))
    assert refused.status == 400
    assert "mlp-mc" in refused.body["error"]


def test_a_model_without_dropout_names_no_monte_carlo_endpoint(
    embedding_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(embedding_version.path("words.mar"), tmp_path, monkeypatch)
    (refused,) = worker(body(3, mc_samples=10))
    assert "no dropout" in refused.body["error"]
    assert "words-mc" not in refused.body["error"]
    good, out = worker(body(3), body(9))
    assert good.body == {"predictions": [{"outputs": {"output": [9.0, 10.0, 11.0]}}]}
    assert out.status == 400


@pytest.mark.parametrize("part", ["data", "file", '{"instances": [[1]]}'])
def test_a_form_is_told_about_the_content_type(worker: Worker, part: str) -> None:
    (refused,) = worker(b"", part=part, content_type="text/plain")
    assert refused.status == 415
    assert "content-type: application/json" in refused.body["error"].lower()


@pytest.mark.parametrize("content_type", ["", "application/octet-stream"])
def test_json_is_read_whatever_the_content_type_says(worker: Worker, content_type: str) -> None:
    assert worker(body(ROW), content_type=content_type)[0].body == worker(body(ROW))[0].body


def test_bodies_that_torchserve_decoded_itself_are_read_too(worker: Worker) -> None:
    document = json.loads(body(ROW))
    expected = worker(body(ROW))[0].body
    assert [r.body for r in worker(document, body(ROW).decode(), bytearray(body(ROW)))] == [expected] * 3
    nan, huge = worker({"instances": [[float("nan")] * 6]}, {"instances": [[10**400] * 6]})
    assert nan.status == huge.status == 400


def test_whatever_happens_costs_one_request(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = worker(body(ROW))[0].body
    handler = worker.service._entry_point.__self__
    encode = handler._codec._encode_v1

    def fails_for_two(answer: Any) -> Any:
        if len(answer.values["output"]) == 2:
            raise ZeroDivisionError("unforeseen")
        return encode(answer)

    monkeypatch.setattr(handler._codec, "_encode_v1", fails_for_two)
    good, bad, last = worker(body(ROW), body(ROW, ROW), body(ROW))
    assert [good.body, last.body] == [expected] * 2
    assert bad.status == 500
    assert "request-1" in bad.body["error"]
    assert "unforeseen" not in bad.body["error"], "the cause belongs in the log, not on the wire"


def test_an_answer_too_long_is_refused_before_it_kills_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.service._entry_point.__self__._batch_handler, "_max_response", 1000)
    small, large = worker(body(ROW), body(*[ROW] * 50))
    assert (small.status, large.status) == (200, 413)
    assert "Send fewer instances" in large.body["error"]


def test_a_flipped_byte_is_not_served_and_the_log_says_why(
    mlp_version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "mlp.mar"
    with zipfile.ZipFile(mlp_version.path("mlp.mar")) as mar, zipfile.ZipFile(damaged, "w") as copy:
        for name in mar.namelist():
            content = bytearray(mar.read(name))
            content[-1] ^= name == "model.onnx"
            copy.writestr(name, bytes(content))
    with pytest.raises(RuntimeError, match=r"model\.onnx"):
        Worker(damaged, tmp_path / "model", monkeypatch)
    assert f"{LOAD_FAILED} mlp: " in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "tensorrt"}, "tensorrt.*onnx or torchscript"),
        ({"threads": 0}, "threads 0"),
        ({"max_mc_sample": 5}, "max_mc_sample.*expected backend, threads"),
        ({"mc_samples": 5000}, "mc_samples: 5000 is above max_mc_samples"),
    ],
)
def test_a_wrong_setting_is_named(
    mlp_version: Version,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    expected: str,
) -> None:
    altered = tmp_path / "mlp.mar"
    with zipfile.ZipFile(mlp_version.path("mlp.mar")) as mar, zipfile.ZipFile(altered, "w") as copy:
        for name in mar.namelist():
            content = json.dumps({"handler": options}).encode() if name.endswith(".yaml") else mar.read(name)
            copy.writestr(name, content)
    with pytest.raises(RuntimeError, match=expected):
        Worker(altered, tmp_path / "model", monkeypatch)


def test_the_stage_handler_holds_exactly_one_class(publish_version: Callable[..., Version]) -> None:
    import ast

    tree = ast.parse((Path(__file__).parents[2] / "serving" / "handler.py").read_text("utf-8"))
    assert sum(isinstance(node, ast.ClassDef) for node in tree.body) == 1
