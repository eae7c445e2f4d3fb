"""One predictor: right against numpy, and no request touches another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import entr
from scipy.special import softmax as scipy_softmax

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import draw
from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.errors import RequestError, ServerError
from dropserve.manifest import VersionManifest
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Answer, Query
from dropserve.signature import TensorSpec
from dropserve.store import Store, Stored

Version = Stored[VersionManifest]
BACKENDS = ("onnx", "torchscript")


@pytest.fixture(scope="module", params=BACKENDS)
def predictor(request: pytest.FixtureRequest, mlp_version: Version) -> Predictor:
    return Predictor(mlp_version, backend=request.param)


@pytest.fixture(scope="module")
def onnx_predictor(mlp_version: Version) -> Predictor:
    return Predictor(mlp_version)


def rows(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)


def ask(predictor: Predictor, *queries: Query) -> list[Answer]:
    answers = predictor.answer(queries)
    failed = [a for a in answers if isinstance(a, Exception)]
    assert not failed, failed
    return [a for a in answers if isinstance(a, Answer)]


def test_deterministic_answers_are_the_networks(predictor: Predictor, mlp: Any) -> None:
    x = rows(5)
    (answer,) = ask(predictor, Query({"input": x}))
    np.testing.assert_allclose(answer.values["output"], scipy_softmax(mlp(x), axis=-1), rtol=1e-5)
    assert answer.statistics is None


@pytest.mark.parametrize("scheme", ["balanced", "iid"])
def test_monte_carlo_answers_are_an_explicit_loop_over_masks(
    predictor: Predictor, mlp: Any, scheme: str
) -> None:
    x = rows(3)
    masks = draw([mlp.site], 60, seed=9, scheme=scheme)["drop.scale"]
    samples = np.stack([scipy_softmax(mlp(x, mask).astype(np.float64), axis=-1) for mask in masks])
    (answer,) = ask(predictor, Query({"input": x}, Settings(60, 9, scheme)))
    mean = samples.mean(axis=0)
    np.testing.assert_allclose(answer.values["output"], mean, rtol=1e-5)
    assert answer.statistics is not None
    found = answer.statistics["output"]
    assert isinstance(found, ClassificationStatistics)
    total, expected = entr(mean).sum(-1), entr(samples).sum(-1).mean(0)
    np.testing.assert_allclose(found.predictive_entropy, total, rtol=1e-5)
    np.testing.assert_allclose(found.mutual_information, total - expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.std, samples.std(axis=0, ddof=int(scheme == "iid")), rtol=1e-4)


SETTINGS = st.one_of(
    st.none(),
    st.builds(
        Settings, samples=st.sampled_from([2, 10, 50]), seed=st.integers(0, 2), scheme=st.just("balanced")
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 99), SETTINGS), min_size=1, max_size=16))
def test_batch_mates_do_not_change_a_bit(
    onnx_predictor: Predictor, batch: list[tuple[int, int, Settings | None]]
) -> None:
    queries = [Query({"input": rows(count, seed)}, how) for count, seed, how in batch]
    together = ask(onnx_predictor, *queries)
    for query, answer in zip(queries, together, strict=True):
        (alone,) = ask(onnx_predictor, query)
        assert_same_bits(alone, answer)


def assert_same_bits(one: Answer, other: Answer) -> None:
    assert one.settings == other.settings
    np.testing.assert_array_equal(one.values["output"], other.values["output"])
    assert (one.statistics is None) == (other.statistics is None)
    if one.statistics is not None and other.statistics is not None:
        for name, value in vars(one.statistics["output"]).items():
            np.testing.assert_array_equal(value, vars(other.statistics["output"])[name])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 64, 1025])
def test_a_row_answers_the_same_in_a_batch_of_any_size(onnx_predictor: Predictor, count: int) -> None:
    x = rows(count)
    settings = None if count > 64 else Settings(50)
    for how in {None, settings}:
        (whole,) = ask(onnx_predictor, Query({"input": x}, how))
        for row in {0, count // 2, count - 1}:
            (alone,) = ask(onnx_predictor, Query({"input": x[row : row + 1]}, how))
            np.testing.assert_array_equal(alone.values["output"][0], whole.values["output"][row])


def test_a_lone_regression_target_answers_the_same_in_a_batch(
    publish_version: Callable[..., Version], tmp_path: Path, mlp: Any
) -> None:
    net = type(mlp).draw(6, 16, 1, seed=3)
    outputs = (TensorSpec(name="output", shape=(1,)),)
    files = {f"{part}.onnx": net.onnx(part) for part in ("model", "trunk", "head")}
    version = publish_version(
        Store(tmp_path), "one", files, task="regression", outputs=outputs, sites=(net.site,)
    )
    predictor = Predictor(version)
    x = rows(64)
    (whole,) = ask(predictor, Query({"input": x}, Settings(50)))
    for row in range(64):
        (alone,) = ask(predictor, Query({"input": x[row : row + 1]}, Settings(50)))
        np.testing.assert_array_equal(alone.values["output"][0], whole.values["output"][row])
        assert alone.statistics is not None
        assert whole.statistics is not None
        for name, value in vars(alone.statistics["output"]).items():
            np.testing.assert_array_equal(value[0], vars(whole.statistics["output"])[name][row])


def test_threads_do_not_change_a_bit(mlp_version: Version) -> None:
    query = Query({"input": rows(64)}, Settings(50))
    (one,), (two,) = (ask(Predictor(mlp_version, threads=n), query) for n in (1, 2))
    assert_same_bits(one, two)


@pytest.mark.parametrize("how", [None, Settings(10)])
def test_an_overflowing_request_costs_only_itself(predictor: Predictor, how: Settings | None) -> None:
    good, bad = Query({"input": rows(2)}, how), rows(3)
    bad[1] = 3e38
    first, refused, last = predictor.answer([good, Query({"input": bad}, how), good])
    assert isinstance(refused, RequestError)
    assert "instance 1" in str(refused)
    assert "finite" in str(refused)
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)


def test_an_index_out_of_range_costs_only_itself(embedding_version: Version) -> None:
    predictor = Predictor(embedding_version)
    good, bad = (Query({"input": np.array([i], np.int64)}) for i in (4, 999))
    first, refused, last = predictor.answer([good, bad, good])
    assert isinstance(refused, RequestError)
    assert refused.status == 400
    assert "999" in str(refused)
    for answer in (first, last):
        assert isinstance(answer, Answer)
        np.testing.assert_array_equal(answer.values["output"], [[12, 13, 14]])


def test_a_model_that_fails_on_its_own_example_is_not_blamed_on_the_request(
    embedding_version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(embedding_version)

    def broken(feeds: object) -> dict[str, np.ndarray]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(predictor, "_plain", broken)
    (result,) = predictor.answer([Query({"input": np.array([4], np.int64)})])
    assert isinstance(result, RuntimeError)


def test_a_draw_too_large_is_the_requests_fault(onnx_predictor: Predictor) -> None:
    (result,) = onnx_predictor.answer([Query({"input": rows(1)}, Settings(samples=10**8))])
    assert isinstance(result, RequestError)


def test_a_missing_graph_says_what_there_is_and_what_to_do(embedding_version: Version) -> None:
    with pytest.raises(ServerError, match=r"model\.onnx.*torchscript.*export/checks\.toml"):
        Predictor(embedding_version, backend="torchscript")


def test_a_graph_that_does_not_load_names_the_file(
    publish_version: Callable[..., Version], tmp_path: Path
) -> None:
    version = publish_version(Store(tmp_path), "broken", {"model.onnx": b"no graph", "model.ts": b"none"})
    for backend in BACKENDS:
        with pytest.raises(ServerError, match=r"cannot load .*broken/1/model\."):
            Predictor(version, backend=backend)  # type: ignore[arg-type]  # parametrised


def test_no_torch_is_loaded_for_onnx(mlp_version: Version) -> None:
    code = (
        "import sys; from pathlib import Path; from dropserve.store import open_folder;"
        "from dropserve.manifest import VersionManifest; from dropserve.serving.predictor import Predictor;"
        "import dropserve.serving.protocol, dropserve.serving.handler;"
        f"Predictor(open_folder(Path({str(mlp_version.folder)!r}), VersionManifest));"
        "assert 'onnxruntime' in sys.modules; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
