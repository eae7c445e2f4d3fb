"""The codec: every array survives the trip, nothing else gets in, and no input brings it down."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dropserve.errors import RequestError, ServerError, UsageError
from dropserve.manifest import SourceRecord, VersionManifest
from dropserve.serving.instances import read_instances
from dropserve.serving.parameters import Limits, read_settings
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec, error_reply
from dropserve.signature import Axis, Signature, TensorSpec
from dropserve.store import Stored

Version = Stored[VersionManifest]
SOURCE = SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py")
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "int8", "uint64", "bool")


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs=inputs, outputs=(TensorSpec(name="output", shape=(2,)),))


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    if dtype.kind == "f":
        return st.floats(-1000, 1000, width=dtype.itemsize * 8)  # type: ignore[arg-type]  # 16, 32 or 64
    return hnp.from_dtype(dtype)


@given(st.data(), st.sampled_from(DTYPES), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 5))
def test_any_array_survives_the_trip_through_json(
    data: st.DataObject, dtype: str, shape: list[int], rows: int
) -> None:
    kind = np.dtype(dtype)
    array = data.draw(hnp.arrays(kind, (rows, *shape), elements=elements(kind)))
    spec = TensorSpec(name="x", dtype=dtype, shape=tuple(shape))  # type: ignore[arg-type]  # one of DTYPES
    text = json.loads(json.dumps(array.tolist()))
    for instances in (text, [{"x": row} for row in text]):
        found = read_instances(instances, signature(spec))["x"]
        assert found.dtype == kind
        np.testing.assert_array_equal(found, array)


def test_json_has_one_kind_of_number() -> None:
    """Some writers give 2 as 2.0; it is the same number, as a value and as a setting."""
    spec = TensorSpec(name="x", dtype="int64", shape=(2,))
    assert read_instances([[1, 2.0], [-3.0, 1e15]], signature(spec))["x"].tolist() == [[1, 2], [-3, 10**15]]
    settings = read_settings({"mc_samples": 30.0, "mc_seed": 7.0}, Limits())
    assert (settings.samples, settings.seed) == (30, 7)
    assert type(settings.samples) is int


@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(-9, 9, width=32)), st.integers(1, 5))
def test_several_inputs_and_variable_lengths(x: np.ndarray, length: int) -> None:
    specs = (
        TensorSpec(name="x", shape=(2,)),
        TensorSpec(name="tokens", dtype="int64", shape=(Axis(name="L", maximum=5),)),
        TensorSpec(name="more", shape=(Axis(name="L", maximum=5), 1)),
    )
    instances = [{"x": row, "tokens": list(range(length)), "more": [[0.5]] * length} for row in x.tolist()]
    found = read_instances(instances, signature(*specs))
    np.testing.assert_array_equal(found["x"], x)
    assert found["tokens"].shape == (3, length)
    assert found["more"].shape == (3, length, 1)


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([{"tokens": [1, 2]}, {"tokens": [1]}], "instance 1 .*length 1; expected 2.*share the length L"),
        ([{"tokens": [1] * 6}], "length 6; expected 1 to 5"),
        ([{"tokens": []}], "length 0; expected 1 to 5"),
        ([{}], 'lacks the input "tokens"'),
        ([[1, "2"]], r"element \[1\] is a string"),
        ([[1, 2.5]], r"element \[1\] is a number \(2.5\); expected a whole number"),
        ([[2**70]], "expected a whole number from"),
    ],
)
def test_variable_lengths_are_checked(instances: Any, expected: str) -> None:
    spec = TensorSpec(name="tokens", dtype="int64", shape=(Axis(name="L", maximum=5),))
    with pytest.raises(RequestError, match=expected):
        read_instances(instances, signature(spec))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=60)
    | st.sampled_from(["instances", "parameters", "input", "mc_samples", "mc_seed"]),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=25,
)
ROWS = st.lists(st.floats(width=32) | st.integers() | JSON, min_size=5, max_size=7)
DOCUMENTS = JSON | st.fixed_dictionaries(
    {"instances": JSON | st.lists(ROWS | JSON | st.fixed_dictionaries({"input": ROWS}), max_size=4)},
    optional={
        "parameters": JSON
        | st.dictionaries(
            st.sampled_from(["mc_samples", "mc_seed", "mc_scheme", "mc_coverage"]), JSON | st.integers(-3, 99)
        )
    },
)
BODIES = st.binary(max_size=50) | DOCUMENTS.map(
    lambda d: json.dumps(d, ensure_ascii=False).encode("utf-8", "replace")
)


@pytest.fixture(scope="module")
def endpoints(mlp_version: Version) -> list[tuple[Predictor, Codec]]:
    predictor = Predictor(mlp_version)
    return [(predictor, Codec(mlp_version.manifest, monte_carlo=mc)) for mc in (False, True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(BODIES, min_size=1, max_size=4), st.booleans())
def test_whatever_comes_is_answered_or_refused_in_words(
    endpoints: list[tuple[Predictor, Codec]], bodies: list[bytes], doubt: bool
) -> None:
    predictor, codec = endpoints[doubt]
    good = codec.decode(b'{"instances": [[1, 2, 3, 4, 5, 6]]}')
    alone = good.encode(predictor.answer([good.query])[0])  # type: ignore[arg-type]  # an answer
    calls = [good]
    for body in bodies:
        try:
            calls.append(codec.decode(body))
        except RequestError as error:
            reply = error_reply(error)
            assert 400 <= reply.status < 500
            text = json.loads(reply.body)["error"]
            assert 10 < len(text) < 1000
    for call, result in zip(calls, predictor.answer([call.query for call in calls]), strict=True):
        assert not isinstance(result, Exception) or isinstance(result, RequestError)
        if not isinstance(result, Exception):
            reply = call.encode(result)
            json.loads(reply.body, parse_constant=lambda token: pytest.fail(f"bare {token}"))
            if call is good:
                assert reply == alone


VECTORS = st.lists(st.floats(width=32) | st.integers() | st.booleans(), min_size=6, max_size=6)
USUAL = st.lists(VECTORS, min_size=1, max_size=3).map(lambda rows: json.dumps({"instances": rows}).encode())


@settings(max_examples=300, deadline=None)
@given(BODIES | USUAL, st.booleans())
def test_usual_requests_are_read_at_once_as_others_are_with_care(
    endpoints: list[tuple[Predictor, Codec]], body: bytes, doubt: bool
) -> None:
    """With a Content-Encoding, even that of a body as it is, a request is not usual, and says the same."""
    found: list[Any] = []
    for headers in ({}, {"Content-Encoding": "identity"}):
        try:
            query = endpoints[doubt][1].decode(body, headers).query
        except RequestError as error:
            found.append(error_reply(error))
        else:
            arrays = {name: (a.tobytes(), a.shape, a.dtype) for name, a in query.inputs.items()}
            found.append(query._replace(inputs=arrays))  # type: ignore[arg-type]  # to be compared
    assert found[0] == found[1]


def test_no_answer_is_ever_not_a_number(endpoints: list[tuple[Predictor, Codec]]) -> None:
    for predictor, codec in endpoints:
        call = codec.decode(json.dumps({"instances": [[3e38, -3e38, 3e38, 3e38, 3e38, -3e38]]}).encode())
        (result,) = predictor.answer([call.query])
        assert isinstance(result, RequestError)


def raw_manifest(task: str, *outputs: TensorSpec, labels: tuple[str, ...] = ()) -> VersionManifest:
    spec = Signature(inputs=(TensorSpec(name="input", shape=(1,)),), outputs=outputs)
    return VersionManifest(
        name="m",
        task=task,
        labels=labels,
        signature=spec,
        source=SOURCE,
        version=1,
        run="r",  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("labels", "shape", "expected"),
    [
        (("a",), (2,), "2 classes and the labels a; expected one label for each class"),
        (("a", "a"), (2,), "all different"),
        ((), (2, 3), r"output per row is \[2, 3\]; expected \[classes\]"),
        ((), (), r"output per row is \[\]"),
    ],
)
def test_labels_that_cannot_name_the_classes(
    labels: tuple[str, ...], shape: tuple[int, ...], expected: str
) -> None:
    manifest = raw_manifest("classification", TensorSpec(name="output", shape=shape), labels=labels)
    with pytest.raises(ServerError, match=expected):
        Codec(manifest, monte_carlo=False)


def test_regression_answers_a_number_and_its_doubt(
    publish_version: Callable[..., Version], tmp_path: Path, mlp: Any
) -> None:
    from dropserve.dropout.masks import draw
    from dropserve.store import Store

    x = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
    for targets in (1, 3):
        net = type(mlp).draw(6, 16, targets, seed=5)
        version = publish_version(
            Store(tmp_path / str(targets)),
            "price",
            {f"{part}.onnx": net.onnx(part) for part in ("model", "trunk", "head")},
            task="regression",
            outputs=(TensorSpec(name="output", shape=(targets,)),),
            sites=(net.site,),
        )
        predictor = Predictor(version)
        answers = []
        for doubt in (False, True):
            document = {"instances": [x]} | ({"parameters": {"mc_scheme": "iid"}} if doubt else {})
            call_ = Codec(version.manifest, monte_carlo=doubt).decode(json.dumps(document).encode())
            (result,) = predictor.answer([call_.query])
            assert not isinstance(result, Exception)
            answers.append(json.loads(call_.encode(result).body)["predictions"][0])
        plain, doubtful = answers
        row = np.array([x], np.float32)
        masks = draw([net.site], 50, seed=0, scheme="iid")["drop.scale"]
        samples = np.array([net(row, mask)[0] for mask in masks], np.float64)
        pick: Callable[[np.ndarray], Any] = (lambda a: a[0]) if targets == 1 else list
        assert plain["value"] == pytest.approx(pick(net(row)[0]), rel=1e-5)
        assert doubtful["value"] == pytest.approx(pick(samples.mean(0)), rel=1e-5)
        spread = doubtful["uncertainty"]
        deviation = samples.std(0, ddof=1)
        assert spread["standard_deviation"] == pytest.approx(pick(deviation), rel=1e-4)
        assert spread["standard_error"] == pytest.approx(pick(deviation / math.sqrt(50)), rel=1e-4)


@pytest.mark.parametrize("value", [0, 1, True, "50", 2.5])
def test_limits_must_make_sense(value: Any) -> None:
    with pytest.raises(UsageError, match="max_mc_samples"):
        Limits(max_mc_samples=value)
