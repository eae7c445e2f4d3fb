"""Early stopping: each row on its own, at the end of the first block where its error is small enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import standard_error
from dropserve.errors import RequestError
from dropserve.manifest import Preprocessing, Scaling, VersionManifest
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.serving.query import Answer, Query
from dropserve.signature import TensorSpec
from dropserve.store import Store, Stored

Version = Stored[VersionManifest]


@pytest.fixture(scope="module")
def predictor(mlp_version: Version) -> Predictor:
    return Predictor(mlp_version)


def rows(count: int, seed: int = 1) -> np.ndarray:
    # From rows near zero, which are easy, to large ones.
    scales = np.linspace(0.1, 3, count)[:, None]
    return (np.random.default_rng(seed).normal(size=(count, 6)) * scales).astype(np.float32)


def ask(predictor: Predictor, *queries: Query) -> list[Answer]:
    answers = predictor.answer(queries)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Answer)]


@pytest.mark.parametrize("scheme", ["balanced", "iid"])
@pytest.mark.parametrize("tolerance", [3, 8, 20])
def test_a_row_stops_at_the_first_block_that_is_exact_enough(
    predictor: Predictor, mlp: Any, scheme: str, tolerance: int
) -> None:
    x, cap = rows(12), 205
    (answer,) = ask(predictor, Query({"input": x}, Settings(cap, 5, scheme), tolerance=tolerance / 1000))
    from dropserve.dropout.masks import draw

    masks = draw([mlp.site], cap, seed=5, scheme=scheme)["drop.scale"]
    logits = np.stack([mlp(x, mask) for mask in masks]).astype(np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    expected = []
    for row in range(len(x)):
        for end in range(50, cap, 10):
            error = standard_error(probabilities[:end, row : row + 1], scheme=scheme, block=10)
            assert error is not None
            if error.max() <= tolerance / 1000:
                expected.append(end)
                break
        else:
            expected.append(cap)
    assert answer.samples is not None
    assert answer.samples.tolist() == expected
    for row, count in enumerate(expected):
        (alone,) = ask(predictor, Query({"input": x[row : row + 1]}, Settings(count, 5, scheme)))
        np.testing.assert_array_equal(alone.values["output"][0], answer.values["output"][row])
        assert alone.statistics is not None
        assert answer.statistics is not None
        for name, value in vars(alone.statistics["output"]).items():
            np.testing.assert_array_equal(value[0], vars(answer.statistics["output"])[name][row])
    if tolerance == 8:
        assert len(set(expected)) > 2, "rows differ in how many samples they need"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 9), st.sampled_from([None, 2, 10, 40])),
        min_size=1,
        max_size=8,
    )
)
def test_stopping_does_not_depend_on_batch_mates(
    predictor: Predictor, batch: list[tuple[int, int, int | None]]
) -> None:
    queries = [
        Query({"input": rows(n, seed)}, Settings(120), tolerance=t and t / 1000) for n, seed, t in batch
    ]
    for query, together in zip(queries, ask(predictor, *queries), strict=True):
        (alone,) = ask(predictor, query)
        np.testing.assert_array_equal(alone.values["output"], together.values["output"])
        assert (alone.samples is None) == (together.samples is None)
        if alone.samples is not None:
            np.testing.assert_array_equal(alone.samples, together.samples)


def encoded(predictor: Predictor, codec: Codec, document: object) -> dict[str, Any]:
    call = codec.decode(json.dumps(document).encode())
    (result,) = predictor.answer([call.query])
    assert isinstance(result, Answer), result
    return json.loads(call.encode(result).body)


def test_the_answer_says_how_many_samples_each_row_took(predictor: Predictor) -> None:
    codec = Codec(predictor.manifest, monte_carlo=True)
    x = rows(4).tolist()
    document = encoded(predictor, codec, {"instances": x, "parameters": {"mc_tolerance": 9}})
    assert document["parameters"]["mc_tolerance"] == 0.009
    assert document == encoded(predictor, codec, {"instances": x, "parameters": {"mc_tolerance": 0.009}})
    assert document["parameters"]["mc_samples"] == 1000, "the bound, where the request gives none"
    counts = [prediction["uncertainty"]["samples"] for prediction in document["predictions"]]
    assert all(50 <= count <= 1000 and count % 10 == 0 for count in counts)
    for prediction in document["predictions"]:
        assert max(prediction["uncertainty"]["standard_error"]["probabilities"].values()) <= 0.009
        assert prediction["calibrated"] is None
    assert "mc_tolerance" in document["calibration"]["reason"]
    tensor = {"name": "input", "shape": [4, 6], "datatype": "FP32", "data": np.ravel(x).tolist()}
    v2 = encoded(predictor, codec, {"inputs": [tensor], "parameters": {"mc_tolerance": 9}})
    outputs = {entry["name"]: entry for entry in v2["outputs"]}
    assert outputs["samples"]["datatype"] == "INT64"
    assert outputs["samples"]["data"] == counts
    few = encoded(predictor, codec, {"instances": x, "parameters": {"mc_tolerance": 900, "mc_samples": 30}})
    assert [p["uncertainty"]["samples"] for p in few["predictions"]] == [30] * 4
    assert "samples" not in encoded(predictor, codec, {"instances": x})["predictions"][0]["uncertainty"]


def test_a_regressors_tolerance_is_a_share_of_its_targets_spread(
    publish_version: Callable[..., Version], tmp_path: Path, mlp: Any
) -> None:
    net = type(mlp).draw(6, 16, 2, seed=3)
    files = {f"{part}.onnx": net.onnx(part) for part in ("model", "trunk", "head")}
    outputs = (TensorSpec(name="output", shape=(2,)),)
    version = publish_version(
        Store(tmp_path), "price", files, task="regression", outputs=outputs, sites=(net.site,)
    )
    refused = Codec(version.manifest, monte_carlo=True)
    body = {"instances": rows(3).tolist(), "parameters": {"mc_tolerance": 20, "mc_scheme": "iid"}}
    with pytest.raises(RequestError, match="nothing is known of the scale"):
        refused.decode(json.dumps(body).encode())
    scaling = Preprocessing(target=Scaling(mean=(0, 0), scale=(20.0, 50.0)))
    manifest = version.manifest.model_copy(update={"preprocessing": scaling})
    predictor, codec = Predictor(Stored(version.folder, manifest)), Codec(manifest, monte_carlo=True)
    for prediction in encoded(predictor, codec, body)["predictions"]:
        found = prediction["uncertainty"]
        assert found["samples"] < 1000
        assert found["standard_error"][0] <= 0.4
        assert found["standard_error"][1] <= 1.0


@pytest.mark.parametrize("value", [0, 1000, -5, 2.5, 1.0, "5", "0.5", None, True])
def test_a_tolerance_out_of_range_is_refused(predictor: Predictor, value: object) -> None:
    codec = Codec(predictor.manifest, monte_carlo=True)
    body = {"instances": rows(1).tolist(), "parameters": {"mc_tolerance": value}}
    with pytest.raises(RequestError, match=r"mc_tolerance is .*; expected a fraction above 0, at most 0.999"):
        codec.decode(json.dumps(body).encode())
