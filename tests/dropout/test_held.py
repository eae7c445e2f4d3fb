"""Calls made again at the same addresses, against the same calls made anew."""

import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.held import ALIGNMENT, Held, Holder, aligned
from dropserve.dropout.rows import Steady
from dropserve.serving.graphs import OnnxGraph
from dropserve.signature import Site

SITES = (Site(name="a", kind="dropout", p=0.5, shape=(37,), scale="m"),)


@pytest.fixture(scope="module", params=["Relu", "Softplus", "Selu"])
def path(request, tmp_path_factory):
    """A head whose last operator rounds by where its output lies, but for Relu."""
    nodes = [
        helper.make_node("Mul", ["x", "m"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["h"]),
        helper.make_node(request.param, ["h"], ["y"]),
    ]
    weights = np.random.default_rng(1).standard_normal((37, 5)).astype(np.float32)
    names = ("x", "m")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 37]) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    target = tmp_path_factory.mktemp("held") / "head.onnx"
    onnx.save(model, target)
    return target


def rows(count, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((count, 37)).astype(np.float32)}


def test_onnxruntime_gives_the_same_bits_held_and_anew(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    anew = MonteCarlo(SITES, lambda fed: {"y": session.run(None, dict(fed))[0]})
    holding = MonteCarlo(SITES, OnnxGraph(path))
    for count in (1, 3, 8):
        for seed in range(4):  # held from the third on
            inputs = rows(count, seed)
            found = holding.samples(inputs, Settings(samples=20))["y"]
            assert found.tobytes() == anew.samples(inputs, Settings(samples=20))["y"].tobytes()


@given(asked=st.lists(st.tuples(st.integers(1, 4), st.integers(2, 12), st.integers(0, 1)), max_size=12))
def test_any_order_of_sizes_samples_and_seeds_gives_what_a_new_engine_gives(asked):
    def head(fed):
        return {"y": fed["x"] * fed["m"]}

    kept = MonteCarlo(SITES, head)
    for place, (count, samples, seed) in enumerate(asked):
        settings = Settings(samples=samples, seed=seed)
        inputs = rows(count, place)
        assert np.array_equal(
            kept.samples(inputs, settings)["y"], MonteCarlo(SITES, head).samples(inputs, settings)["y"]
        )


def test_an_answer_stays_as_it_was_when_the_call_is_made_again():
    engine = MonteCarlo(SITES, lambda fed: {"y": fed["x"] * fed["m"], "x": fed["x"]})
    answers = [engine.samples(rows(2, seed), Settings(samples=4)) for seed in range(4)]
    before = [{name: array.copy() for name, array in answer.items()} for answer in answers]
    engine.samples(rows(2, 9), Settings(samples=4))
    for answer, copy in zip(answers, before, strict=True):
        assert all(np.array_equal(answer[name], copy[name]) for name in copy)


def test_a_program_is_fed_its_masks_once_and_only_rows_are_written():
    masks = []  # kept alive, so that a new one cannot lie where an old one was

    def head(fed):
        masks.append(fed["m"])
        return {"y": fed["x"] * fed["m"]}

    engine = MonteCarlo(SITES, head, steady=False)
    for seed in range(3):
        engine.samples(rows(2, seed), Settings(samples=4))
    masks.clear()
    for seed in range(5):
        engine.samples(rows(2, seed), Settings(samples=4))
    assert len({mask.ctypes.data for mask in masks}) == 1


def test_other_shapes_and_dtypes_are_not_written_into_the_call():
    held = Held(lambda fed: {"y": fed["x"] + 1}, rows(2), {"y": rows(2)["x"]}, rows(2), (2,))
    assert held(rows(3)) is None
    assert held({"x": rows(2)["x"].astype(np.float64)}) is None
    assert np.array_equal(held(rows(2, 1))["y"], rows(2, 1)["x"] + 1)


def test_two_threads_never_share_a_call():
    inside, go = threading.Event(), threading.Event()

    def slow(fed):
        inside.set()
        assert go.wait(10)
        return {"y": fed["x"] + 1}

    held = Held(slow, rows(1), {"y": rows(1)["x"]}, rows(1), (1,))
    found = []
    thread = threading.Thread(target=lambda: found.append(held(rows(1, 1))))
    thread.start()
    assert inside.wait(10)
    assert held(rows(1, 2)) is None
    go.set()
    thread.join(10)
    assert np.array_equal(found[0]["y"], rows(1, 1)["x"] + 1)


def test_a_call_that_failed_can_be_made_again():
    fail = True

    def program(fed):
        if fail:
            raise ValueError("this time")
        return {"y": fed["x"] + 1}

    held = Held(program, rows(1), {"y": rows(1)["x"]}, rows(1), (1,))
    with pytest.raises(ValueError, match="this time"):
        held(rows(1))
    fail = False
    assert held(rows(1)) is not None


def test_onnx_graphs_hold_calls_and_start_where_memory_is_aligned(path):
    graph = OnnxGraph(path)
    assert isinstance(graph, Holder)
    feeds = rows(3) | {"m": np.ones((3, 37), np.float32)}
    call = graph.hold(feeds, graph(feeds))
    for array in (*call.inputs.values(), *call.outputs.values()):
        assert array.ctypes.data % ALIGNMENT == 0


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["f4", "f8", "i8", "?", "f2"]))
def test_aligned_copies_are_copies(shape, dtype):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    copy = aligned(array)
    assert copy.size == 0 or copy.ctypes.data % ALIGNMENT == 0
    assert copy.dtype == array.dtype
    assert np.array_equal(copy, array)


def test_a_steady_program_holds_what_is_asked_twice(path):
    graph = OnnxGraph(path)
    steady = Steady(graph)
    masks = {"m": np.ones((4, 37), np.float32)}
    for seed in range(4):
        feeds = rows(4, seed) | masks
        assert steady(feeds)["y"].tobytes() == graph(feeds)["y"].tobytes()
