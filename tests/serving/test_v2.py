"""Open Inference Protocol V2 in the codec: JSON flat and nested, binary tensors, ids, named outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.errors import RequestError
from dropserve.manifest import VersionManifest
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec, Reply
from dropserve.store import Stored

Version = Stored[VersionManifest]
HEADER = "Inference-Header-Content-Length"
X = np.array([[0.5, -1.0, 0.25, 2.0, 0.0, 1.0], [1, 2, 3, 4, 5, 6]], np.float32)


class Endpoint:
    def __init__(self, version: Version, *, doubt: bool) -> None:
        self.predictor = Predictor(version)
        self.codec = Codec(version.manifest, monte_carlo=doubt)

    def __call__(self, body: bytes, headers: dict[str, str] | None = None) -> Reply:
        call = self.codec.decode(body, headers or {})
        (result,) = self.predictor.answer([call.query])
        if isinstance(result, Exception):
            raise result
        return call.encode(result)

    def json(self, document: object, binary: bytes = b"") -> dict[str, Any]:
        reply = self(*packed(document, binary))
        assert reply.content_type == "application/json"
        return json.loads(reply.body)


def packed(document: object, binary: bytes = b"") -> tuple[bytes, dict[str, str]]:
    text = json.dumps(document).encode()
    return text + binary, {HEADER: str(len(text))} if binary else {}


def tensor(x: np.ndarray = X, **changes: Any) -> dict[str, Any]:
    entry = {
        "name": "input",
        "shape": list(x.shape),
        "datatype": "FP32",
        "data": x.ravel().tolist(),
    } | changes
    return {key: value for key, value in entry.items() if value is not ...}


@pytest.fixture(scope="module")
def plain(mlp_version: Version) -> Endpoint:
    return Endpoint(mlp_version, doubt=False)


@pytest.fixture(scope="module")
def doubting(mlp_version: Version) -> Endpoint:
    return Endpoint(mlp_version, doubt=True)


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in document["outputs"]}


def test_all_ways_to_send_a_tensor_give_v1s_answer(plain: Endpoint) -> None:
    v1 = plain.json({"instances": X.tolist()})["predictions"]
    raw = X.astype("<f4").tobytes()
    ways = [
        ({"inputs": [tensor()]}, b""),
        ({"inputs": [tensor(data=X.tolist())]}, b""),
        ({"inputs": [tensor(data=..., parameters={"binary_data_size": len(raw)})]}, raw),
    ]
    for document, binary in ways:
        answer = plain.json(document, binary)
        assert (answer["model_name"], answer["model_version"]) == ("mlp", "1")
        assert "id" not in answer
        outputs = by_name(answer)
        assert set(outputs) == {"label", "probabilities"}
        assert outputs["label"] | {"data": None} == {
            "name": "label", "shape": [2], "datatype": "BYTES", "data": None
        }  # fmt: skip
        assert outputs["label"]["data"] == [row["label"] for row in v1]
        assert outputs["probabilities"]["shape"] == [2, 4]
        assert outputs["probabilities"]["datatype"] == "FP64"
        assert outputs["probabilities"]["data"] == [p for row in v1 for p in row["probabilities"].values()]


def test_monte_carlo_statistics_are_named_outputs(doubting: Endpoint) -> None:
    v1 = doubting.json({"instances": X.tolist(), "parameters": {"mc_seed": 3}})
    answer = doubting.json({"id": "q 1", "inputs": [tensor()], "parameters": {"mc_seed": 3, "timeout": 5}})
    assert answer["id"] == "q 1"
    assert answer["model_name"] == "mlp-mc"
    assert answer["parameters"].pop("uncalibrated") == v1["calibration"]["reason"]
    assert answer["parameters"] == v1["parameters"]
    outputs = by_name(answer)
    for row, prediction in enumerate(v1["predictions"]):
        doubt = prediction["uncertainty"]
        for name in ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio"):
            assert outputs[name]["data"][row] == doubt[name]
        spread = outputs["standard_deviation"]["data"][4 * row : 4 * row + 4]
        assert spread == list(doubt["standard_deviation"].values())
        error = outputs["standard_error"]["data"][4 * row : 4 * row + 4]
        assert error == list(doubt["standard_error"]["probabilities"].values())
    few = doubting.json({"inputs": [tensor()], "parameters": {"mc_samples": 20}})
    assert "standard_error" not in by_name(few), "NaN would be no answer"


def test_outputs_are_chosen_and_binary_where_asked(doubting: Endpoint) -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "predictive_entropy"},
        {"name": "label", "parameters": {"binary_data": True}},
    ]
    reply = doubting(*packed({"inputs": [tensor()], "outputs": wanted}))
    assert reply.content_type == "application/octet-stream"
    length = int(reply.headers[HEADER])
    document, binary = json.loads(reply.body[:length]), reply.body[length:]
    assert [entry["name"] for entry in document["outputs"]] == [entry["name"] for entry in wanted]
    probabilities, entropy, label = document["outputs"]
    size = probabilities["parameters"]["binary_data_size"]
    assert size == 2 * 4 * 8
    found = np.frombuffer(binary[:size], "<f8").reshape(2, 4)
    expected = by_name(doubting.json({"inputs": [tensor()]}))
    assert found.ravel().tolist() == expected["probabilities"]["data"]
    assert entropy["data"] == expected["predictive_entropy"]["data"]
    texts = binary[size:]
    assert label["parameters"]["binary_data_size"] == len(texts)
    assert texts == b"".join(b"\1\0\0\0" + name.encode() for name in expected["label"]["data"])

    reply = doubting(*packed({"inputs": [tensor()], "parameters": {"binary_data_output": True}}))
    document = json.loads(reply.body[: int(reply.headers[HEADER])])
    sizes = [entry["parameters"]["binary_data_size"] for entry in document["outputs"]]
    assert sum(sizes) == len(reply.body) - int(reply.headers[HEADER])
    assert not any("data" in entry for entry in document["outputs"])


def test_a_models_own_outputs_keep_their_dtype(embedding_version: Version) -> None:
    endpoint = Endpoint(embedding_version, doubt=False)
    entry = {"name": "input", "shape": [2], "datatype": "INT64", "data": [1, 6]}
    (output,) = endpoint.json({"inputs": [entry]})["outputs"]
    assert output == {"name": "output", "shape": [2, 3], "datatype": "FP32", "data": [3, 4, 5, 18, 19, 20]}
    raw = np.array([6, 1], "<i8").tobytes()
    entry = {"name": "input", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    assert endpoint.json({"inputs": [entry]}, raw)["outputs"][0]["data"] == [18, 19, 20, 3, 4, 5]


NAN = np.float32([[1, 2, 3, 4, np.nan, 6]])
RAW = {"data": ..., "parameters": {"binary_data_size": 24}}
BAD: list[tuple[Any, bytes, str]] = [
    ({"inputs": 5}, b"", '"inputs" is a number .* list of objects'),
    ({"inputs": []}, b"", "inputs are none; expected input"),
    ({"inputs": [5]}, b"", '"inputs" is a list; expected a list of objects'),
    ({"inputs": [{"shape": [1]}]}, b"", 'a name in "inputs" is null'),
    ({"inputs": [tensor(name="x")]}, b"", 'inputs are "x"; expected input'),
    ({"inputs": [tensor(), tensor()]}, b"", 'stands twice in "inputs"'),
    ({"inputs": [tensor(datatype="FP64")]}, b"", r'datatype is a string \("FP64"\); expected FP32'),
    ({"inputs": [tensor(datatype=7)]}, b"", "datatype is a number"),
    ({"inputs": [tensor(shape=[2, 5])]}, b"", r"shape is \[2, 5\]; expected \[rows, 6\]"),
    ({"inputs": [tensor(shape=[-1, 6])]}, b"", r"shape is \[-1, 6\]"),
    ({"inputs": [tensor(shape=[0, 6])]}, b"", "at least one row"),
    ({"inputs": [tensor(shape=[10**15, 6])]}, b"", "shape is"),
    ({"inputs": [tensor(shape=[2.0, 6])]}, b"", "shape is"),
    ({"inputs": [tensor(shape=[2])]}, b"", "shape is"),
    ({"inputs": [tensor(shape="2,6")]}, b"", "shape is a string"),
    ({"inputs": [tensor(shape=[1] * 10**5)]}, b"", "shape is a list"),
    ({"inputs": [tensor(data=[1, 2])]}, b"", "data has 2 numbers; expected 12"),
    ({"inputs": [tensor(data=[[1, 2], [3, 4]])]}, b"", "instance 0 of input input has 2 numbers"),
    ({"inputs": [tensor(data=[[1] * 6])]}, b"", "data has 1 rows; expected 2"),
    ({"inputs": [tensor(data=["a"] * 12)]}, b"", "is a string"),
    ({"inputs": [tensor(data=None)]}, b"", "data is null; expected a list"),
    ({"inputs": [tensor(data=...)]}, b"", "neither data nor binary_data_size"),
    ({"inputs": [tensor(parameters={"binary_data_size": 48})]}, b"x" * 48, "both data and binary_data_size"),
    ({"inputs": [tensor(**RAW)]}, b"x" * 24, "24 bytes of data; expected 48"),
    ({"inputs": [tensor(data=..., parameters={"binary_data_size": 999})]}, b"x" * 24, "24 bytes are left"),
    ({"inputs": [tensor(data=..., parameters={"binary_data_size": -1})]}, b"x" * 24, "binary_data_size is"),
    ({"inputs": [tensor(data=..., parameters=5)]}, b"", "parameters of input input is a number"),
    ({"inputs": [tensor()]}, b"rest", "4 bytes follow the JSON; the inputs account for 0"),
    ({"inputs": [tensor(NAN, **RAW)]}, NAN.tobytes(), r"element \[0, 4\] is nan; expected a finite number"),
    ({"inputs": [tensor()], "id": 5}, b"", '"id" is a number'),
    ({"inputs": [tensor()], "parameters": []}, b"", '"parameters" is a list'),
    ({"inputs": [tensor()], "parameters": {"mc_rate": 5}}, b"", 'unknown parameter "mc_rate"'),
    ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, b"", "expected true or false"),
    ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, b"", 'no output "logits"; expected label, p'),
    (
        {"inputs": [tensor()], "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        b"",
        "classification extension is not offered",
    ),
    ({"instances": X.tolist()}, b"rest", "V1 has no binary tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "binary", "expected"), BAD)
def test_what_does_not_fit_is_told_apart(
    doubting: Endpoint, document: Any, binary: bytes, expected: str
) -> None:
    with pytest.raises(RequestError, match=expected) as caught:
        doubting(*packed(document, binary))
    assert caught.value.status == 400


@pytest.mark.parametrize("length", ["", "-1", "0", "1e3", "99999", "٣", "9" * 5000, "12 "])
def test_a_wrong_length_of_the_json_is_refused(plain: Endpoint, length: str) -> None:
    with pytest.raises(RequestError, match=HEADER):
        plain(json.dumps({"inputs": [tensor()]}).encode(), {HEADER.lower(): length})


def test_compressed_bodies_are_refused_in_words(plain: Endpoint) -> None:
    with pytest.raises(RequestError, match=r"encoded.*gzip") as caught:
        plain(b"\x1f\x8b", {"Content-Encoding": "gzip"})
    assert caught.value.status == 415


KEYS = st.sampled_from(
    ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "id", "outputs"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.just("input"),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("input"), "shape": VALUES | st.just([1, 6]), "datatype": VALUES | st.just("FP32")},
    optional={"data": VALUES | st.lists(st.floats(width=32), min_size=6, max_size=6), "parameters": VALUES},
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS | VALUES, max_size=3) | VALUES},
    optional={"id": VALUES, "parameters": VALUES, "outputs": VALUES},
)


@settings(max_examples=150, deadline=None)
@given(DOCUMENTS, st.binary(max_size=30), st.none() | st.integers(-5, 400), st.booleans())
def test_no_v2_request_brings_it_down(
    plain: Endpoint, doubting: Endpoint, document: Any, binary: bytes, length: int | None, doubt: bool
) -> None:
    body, headers = packed(document, binary)
    if length is not None:
        headers = {HEADER: str(length)}
    try:
        status = (doubting if doubt else plain)(body, headers).status
    except RequestError as error:
        status = error.status
    assert status == 200 or 400 <= status < 500
