"""Answers to the bit: against programs that are unsteady in a known way, and against onnxruntime."""

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.rows import ALONE, Steady, measure_quantum, run_padded
from dropserve.signature import Site

X = {"x": np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)}


def unsteady_below(rows):
    def program(fed):
        return {"y": fed["x"] + np.float32(1e-6 * (len(fed["x"]) % rows != 0))}

    return program


@pytest.mark.parametrize("quantum", [1, 2, 4, 8])
def test_the_least_steady_quantum_is_found(quantum):
    assert measure_quantum(unsteady_below(quantum), X) == quantum


def test_a_program_that_minds_the_position_of_a_row_runs_rows_alone():
    def program(fed):
        return {"y": fed["x"] + np.float32(1e-6) * (np.arange(len(fed["x"])) % 2)[:, None].astype(np.float32)}

    assert measure_quantum(program, X) == ALONE
    assert np.array_equal(Steady(program)(X)["y"], X["x"])


def test_zeros_do_not_hide_that_a_program_is_unsteady():
    def program(fed):
        return {"y": fed["x"] * np.float32(1 + 1e-6 * (len(fed["x"]) % 4 != 0))}

    assert measure_quantum(program, {"x": np.zeros((1, 6), np.float32)}) == 4


@given(rows=st.integers(1, 40), quantum=st.sampled_from([1, 2, 4, 8]), workers=st.sampled_from([1, 2]))
def test_padding_and_chunks_are_invisible(rows, quantum, workers):
    x = np.arange(rows)
    assert np.array_equal(run_padded(lambda fed: {"y": fed["x"] * 2}, {"x": x}, quantum)["y"], x * 2)
    steady = Steady(lambda fed: {"y": fed["x"] * 2}, workers=workers, chunk_rows=7)
    assert np.array_equal(steady({"x": x})["y"], x * 2)


def session(nodes, weights, shape, threads=1):
    """An onnxruntime program x [N, *shape], m [N, ...] -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", "D"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda fed: {"y": loaded.run(None, {"x": fed["x"], "m": fed["m"]})[0]}


def dense(activation, width):
    rng = np.random.default_rng(1)
    weights = {
        "a": rng.standard_normal((13, width)).astype(np.float32),
        "b": rng.standard_normal((width, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node(activation, ["h"], ["s"]),
        helper.make_node("Mul", ["s", "m"], ["d"]),
        helper.make_node("MatMul", ["d", "b"], ["y"]),
    ]
    return session(nodes, weights, [13]), (13,), width


def pooled():
    """A mean over 49 numbers: onnxruntime sums from where memory is aligned."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["h"], keepdims=0),
        helper.make_node("Mul", ["h", "m"], ["y"]),
    ]
    return session(nodes, {"axes": np.array([2])}, [6, 49]), (6, 49), 6


@pytest.mark.parametrize(
    "program",
    [dense("Relu", 64), dense("Softplus", 37), dense("Selu", 37), dense("Tanh", 37), pooled()],
    ids=["relu", "softplus", "selu", "tanh", "pooled"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_onnxruntime_gives_a_row_the_same_bits_alone_and_among_64(program, workers):
    run, shape, units = program
    sites = (Site(name="a", kind="dropout", p=0.5, shape=(units,), scale="m"),)
    x = np.random.default_rng(2).standard_normal((64, *shape)).astype(np.float32)
    engine = MonteCarlo(sites, run, workers=workers, chunk_elements=20_000)
    together = engine.samples({"x": x}, Settings(samples=21))["y"]
    for row in range(64):
        alone = MonteCarlo(sites, run) if row == 0 else engine
        found = alone.samples({"x": x[row : row + 1]}, Settings(samples=21))["y"]
        assert found.tobytes() == together[:, row : row + 1].tobytes()
