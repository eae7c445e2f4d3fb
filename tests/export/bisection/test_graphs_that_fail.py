"""Graphs that do not run, rounding that grows, NaN of the model's own, and bisections that cannot be done."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import nn

from dropserve.export.artefacts import Artefacts, build
from dropserve.export.audit.places import short
from dropserve.export.bisection import Bisector, Failure, Finding
from dropserve.export.cases import plain_cases
from dropserve.export.parity import parity
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import parse_input

SETTINGS = ExportSettings(batch_sizes=(2, 3), formats=("onnx",))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.tanh(self.second(x))
        return self.out(x)


SECOND = f"{short(__file__)}:{inspect.getsourcelines(Net.forward)[1] + 2}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Artefacts]:
    torch.manual_seed(0)
    subject = Subject("net", Net().eval(), (parse_input("6"),))
    return subject, build(subject, tmp_path_factory.mktemp("net"), SETTINGS, monte_carlo=False)


Edit = Callable[[ModelProto], None]


@pytest.fixture
def bisected(sound: tuple[Subject, Artefacts], tmp_path: Path) -> Callable[[Edit], Finding]:
    """Change the file, and bisect it on the first case."""

    def bisect(edit: Edit) -> Finding:
        subject, artefacts = sound
        model = onnx.load(artefacts.paths["model.onnx"])
        edit(model)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        changed = dataclasses.replace(artefacts, folder=tmp_path, paths={"model.onnx": path})
        case = plain_cases(subject, SETTINGS)[0]
        found = Bisector(subject, changed, SETTINGS).find(
            Failure("onnxruntime all", case.inputs, case.expected)
        )
        assert found.evidence()
        assert found.figures()["tensor"] == found.tensor
        return found

    return bisect


def node(model: ModelProto, tensor: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if tensor in n.output)


def test_the_node_that_does_not_run_is_named(bisected: Callable[[Edit], Finding]) -> None:
    def baked(model: ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([7, 8]), "baked"))
        reshape = helper.make_node("Reshape", ["relu", "baked"], ["fixed"], name="node_fixed")
        at = [*model.graph.node].index(node(model, "relu"))
        model.graph.node.insert(at + 1, reshape)
        node(model, "linear_1").input[0] = "fixed"

    found = bisected(baked)
    assert (found.tensor, found.node) == ("fixed", "Reshape 'node_fixed'")
    assert found.where == f"second (Linear) at {SECOND}"
    assert "Reshape" in found.note


def test_an_operator_that_does_not_exist_is_named(bisected: Callable[[Edit], Finding]) -> None:
    def unknown(model: ModelProto) -> None:
        node(model, "tanh").op_type = "Tanhh"

    found = bisected(unknown)
    assert (found.tensor, found.node) == ("tanh", "Tanhh 'node_tanh'")
    assert found.where == f"Net at {SECOND}"
    assert "the graph has Tanhh where a fresh export has Tanh" in found.cause


def test_a_wrong_shape_is_named_where_it_arises_not_where_it_stops_the_graph(
    bisected: Callable[[Edit], Finding],
) -> None:
    def summed(model: ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
        relu = node(model, "relu")
        relu.op_type = "ReduceSum"
        relu.input.append("axis")

    found = bisected(summed)
    assert (found.tensor, found.node) == ("relu", "ReduceSum 'node_relu'")
    assert found.gap.looks == "its shape is [2, 1], expected [2, 8]"
    assert "it stops at Gemm 'node_linear_1'" in found.note


def test_another_dtype_is_named(bisected: Callable[[Edit], Finding]) -> None:
    def doubled(model: ModelProto) -> None:
        node(model, "output").output[0] = "single"
        model.graph.node.append(helper.make_node("Cast", ["single"], ["output"], to=onnx.TensorProto.DOUBLE))
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    found = bisected(doubled)
    assert (found.tensor, found.gap.looks) == ("output", "its dtype is float64, expected float32")


def test_weights_that_a_node_makes_are_named(bisected: Callable[[Edit], Finding]) -> None:
    def halved(model: ModelProto) -> None:
        held = next(t for t in model.graph.initializer if t.name == "model.second.weight")
        half = numpy_helper.to_array(held).astype(np.float16)
        model.graph.initializer.remove(held)
        model.graph.initializer.append(numpy_helper.from_array(half, "half"))
        cast = helper.make_node("Cast", ["half"], ["model.second.weight"], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)

    found = bisected(halved)
    assert (found.tensor, found.node) == ("model.second.weight", "Cast")
    assert found.where.startswith("second (Linear) at ")
    assert "rounding to float16" in found.gap.looks


def test_inputs_that_a_graph_refuses_are_told(bisected: Callable[[Edit], Finding]) -> None:
    def fixed(model: ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5

    found = bisected(fixed)
    assert found.tensor == ""
    assert "it does not take these inputs" in found.note


def test_a_file_that_cannot_be_read_leaves_the_verdict_as_it_is(
    sound: tuple[Subject, Artefacts], tmp_path: Path
) -> None:
    subject, artefacts = sound
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph")
    changed = dataclasses.replace(artefacts, folder=tmp_path, paths={"model.onnx": path})
    report = parity(subject, changed, SETTINGS)
    check = report.checks[0]
    assert (check.name, check.verdict, check.where) == ("parity-onnx", "failed", "")
    assert check.evidence.startswith("error: ")
    assert "it could not be done" in check.evidence


class Root(nn.Module):
    """Not a number below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).sqrt() + 1


def test_a_model_that_gives_nan_itself_is_told_so_with_its_line(tmp_path: Path) -> None:
    rows = {"input": -np.random.default_rng(0).uniform(1, 2, size=(20, 4)).astype(np.float32)}
    subject = Subject("root", Root().eval(), (parse_input("4"),), rows)
    artefacts = build(subject, tmp_path, SETTINGS)
    check = parity(subject, artefacts, SETTINGS).checks[0]
    assert check.evidence.startswith("NaN: ")
    assert "eager itself gives NaN or infinity on these inputs, first in aten.sqrt" in check.evidence
    assert f"Root at {short(__file__)}:" in check.evidence


class Steep(nn.Module):
    """Turns the last bits of its inputs into first ones."""

    def __init__(self) -> None:
        super().__init__()
        # A mean of 300 numbers: no two libraries add them up in one order, on any processor.
        self.mix = nn.Sequential(nn.Linear(16, 300), nn.LayerNorm(300))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.mix(x) * 3e4)


def test_rounding_that_grows_is_told_from_a_wrong_node(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = Subject("steep", Steep().eval(), (parse_input("16"),))
    artefacts = build(subject, tmp_path, SETTINGS)
    check = parity(subject, artefacts, SETTINGS).checks[0]
    assert check.verdict == "failed"
    assert "every node computes what eager computes from the same tensors" in check.evidence
    assert "rounding grows, most at 'output'" in check.evidence
    assert check.where == ""
