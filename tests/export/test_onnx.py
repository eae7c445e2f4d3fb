from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dropserve.errors import ExportError
from dropserve.export.external import data_file
from dropserve.export.onnx import LEVELS, OnnxProgram, export_onnx
from dropserve.signature import Axis, TensorSpec, parse_input

L = Axis(name="L", maximum=9)
Export = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        lambda b: nn.LSTM(4, 5, 2, batch_first=b),
        lambda b: nn.GRU(4, 5, 1, batch_first=b, bias=False),
        lambda b: nn.RNN(4, 5, 2, batch_first=b, bidirectional=True),
        lambda b: nn.RNN(4, 5, 1, batch_first=b, nonlinearity="relu", bias=False),
    ],
    ids=["lstm", "gru", "rnn-tanh-bidirectional", "rnn-relu"],
)
def test_recurrent_layers_keep_their_length_free(to_onnx: Export, layer: Any, batch_first: bool) -> None:
    net = layer(batch_first).eval()

    def call(n: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        steps, state = n(x if batch_first else x.transpose(0, 1))
        last = state[0] if isinstance(state, tuple) else state
        return steps.mean(1 if batch_first else 0), last.transpose(0, 1)

    model = to_onnx(net, call, [TensorSpec(name="input", shape=(L, 4))], ("steps", "last"))
    for level in (LEVELS[0], LEVELS[-1]):
        program = OnnxProgram(model.SerializeToString(), level)
        for batch, length in ((1, 9), (3, 5), (2, 1)):
            x = torch.randn(batch, length, 4)
            got = program({"input": x.numpy()})
            with torch.no_grad():
                expected = call(net, x)
            for name, tensor in zip(("steps", "last"), expected, strict=True):
                np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-6)


def test_nothing_leaks_to_the_terminal(
    to_onnx: Export, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model = to_onnx(nn.Linear(3, 2), lambda n, x: n(x), [parse_input("3")])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert model.ir_version <= 10
    assert [tensor.data_location for tensor in model.graph.initializer] == [0, 0], "one file, nothing outside"


def test_interface_and_batch_are_as_declared(to_onnx: Export) -> None:
    specs = [parse_input("3", name="left"), parse_input("5:int64", name="right")]
    examples = {"left": torch.randn(2, 3), "right": torch.zeros(2, 5, dtype=torch.int64)}
    net = nn.Embedding(7, 3)
    model = to_onnx(net, lambda n, a, b: (a + n(b).sum(1), a[:, 0]), specs, ("sum", "first"), examples)
    assert [value.name for value in model.graph.input] == ["left", "right"]
    assert [value.name for value in model.graph.output] == ["sum", "first"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_size_baked_into_the_model_is_refused(to_onnx: Export) -> None:
    with pytest.raises(
        ExportError, match=r"must take any \['batch', 3\], but the model fixes it to \[2, 3\]"
    ):
        to_onnx(nn.Linear(3, 2), lambda n, x: n(x).reshape(2, 2), [parse_input("3")])


def test_an_axis_called_batch_is_refused(to_onnx: Export) -> None:
    spec = TensorSpec(name="input", shape=(Axis(name="batch", maximum=4),))
    with pytest.raises(ExportError, match="'batch' names axis 0"):
        to_onnx(nn.Identity(), lambda _, x: x + 1, [spec])


def test_weights_above_the_limit_stand_in_a_second_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Plain(nn.Linear(64, 32)).eval(), torch.randn(5, 64)
    whole, cut = tmp_path / "whole.onnx", tmp_path / "cut.onnx"
    for path, limit in ((whole, 2**20), (cut, 1000), (cut, 1000)):  # twice: nothing is appended
        export_onnx(net, [parse_input("64")], ["output"], {"input": x}, path, opset=18, limit=limit)
    assert not data_file(whole).exists()
    assert data_file(cut).stat().st_size == 64 * 32 * 4
    assert cut.stat().st_size < whole.stat().st_size - 64 * 32 * 4 + 1000
    for level in ("disabled", "all"):
        a, b = (OnnxProgram(path, level)({"input": x.numpy()})["output"] for path in (whole, cut))
        np.testing.assert_array_equal(a, b)


class Plain(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.inner(*tensors),)


@pytest.mark.parametrize("opset", [20, 23])
def test_other_operator_sets(tmp_path: Path, opset: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.linear(*tensors),)

    path, x = tmp_path / "net.onnx", torch.randn(5, 3)
    net = Net().eval()
    export_onnx(net, [parse_input("3")], ["output"], {"input": x}, path, opset=opset)
    assert onnx.load(path).opset_import[0].version == opset
    got = OnnxProgram(path)({"input": x.numpy()})["output"]
    np.testing.assert_allclose(got, net(x)[0].detach().numpy(), atol=1e-6)


def test_a_graph_that_fails_on_its_way_is_no_bare_error_of_onnxruntime() -> None:
    helper = onnx.helper
    table = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "row"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("row", onnx.TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N"])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    program = OnnxProgram(model.SerializeToString())
    np.testing.assert_array_equal(program({"row": np.array([2, 0])})["y"], [2, 0])
    with pytest.raises(ExportError, match=r"fails when it runs on row \[1\]: .*indices element out of data"):
        program({"row": np.array([3])})
