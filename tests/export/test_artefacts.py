from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.masks import draw
from dropserve.errors import ExportError, ModelSourceError, UsageError
from dropserve.export.artefacts import Artefacts, build, output_specs
from dropserve.export.onnx import OnnxProgram
from dropserve.export.parity import parity
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import Axis, TensorSpec, parse_input

L = Axis(name="L", maximum=6)


class Calls(nn.Module):
    def __init__(self, call: Any) -> None:
        super().__init__()
        self.linear, self.call = nn.Linear(4, 3), call

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.call(self.linear, *tensors)


def test_graphs_carry_the_names_of_the_signature_and_a_free_batch(built: tuple[Subject, Artefacts]) -> None:
    subject, artefacts = built
    inputs = [spec.name for spec in subject.inputs]
    outputs = [spec.name for spec in artefacts.signature.outputs]
    masks = [spec.name for spec in artefacts.masks]
    assert masks == list(artefacts.program.mask_names)  # type: ignore[union-attr]
    wanted = {"model.onnx", "model.ts", "masked.onnx", "masked.ts", "head.onnx", "trunk.onnx"}
    assert set(artefacts.paths) == wanted, "each of these models has work before its first dropout"
    graphs = {name: onnx.load(path).graph for name, path in artefacts.paths.items() if name.endswith(".onnx")}
    given = {name: [value.name for value in graph.input] for name, graph in graphs.items()}
    taken = {name: [value.name for value in graph.output] for name, graph in graphs.items()}
    assert given["model.onnx"] == given["trunk.onnx"] == inputs
    assert given["masked.onnx"] == [*inputs, *masks]
    assert given["head.onnx"] == [*taken["trunk.onnx"], *masks]
    assert taken["model.onnx"] == taken["masked.onnx"] == taken["head.onnx"] == outputs
    for graph in graphs.values():
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "batch", value.name


def test_head_and_masks_against_a_loop_written_by_hand(built_mlp: tuple[Subject, Artefacts]) -> None:
    subject, artefacts = built_mlp
    first, second, third = (subject.module.get_submodule(f"layers.{i}") for i in (0, 3, 6))
    settings = Settings(samples=13, seed=5)
    masks = {name: torch.tensor(a) for name, a in draw(artefacts.sites, 13, seed=5).items()}
    x = subject.batch(4)["input"]
    with torch.no_grad():
        loop = torch.stack(
            [
                third((second(first(x).relu() * masks["mask_0"][t]).relu()) * masks["mask_1"][t])
                for t in range(13)
            ]
        )
    head, trunk = OnnxProgram(artefacts.paths["head.onnx"]), OnnxProgram(artefacts.paths["trunk.onnx"])
    got = MonteCarlo(artefacts.sites, head, trunk).samples({"input": x.numpy()}, settings)["output"]
    np.testing.assert_allclose(got, loop.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "spec", "expected"),
    [
        (lambda n, x: n(x), "4", ["output: float32[3]"]),
        (lambda n, x: (n(x), x.argmax(1)), "4", ["output_0: float32[3]", "output_1: int64[]"]),
        (lambda n, x: {"a": n(x), "b": n(x) > 0}, "L<=6,4", ["a: float32[L<=6,3]", "b: bool[L<=6,3]"]),
        (lambda n, x: n(x).repeat(1, 2, 1), "L<=6,4", ["output: float32[output_1<=12,3]"]),
        (lambda n, x: n(x)[:, 1:], "L<=6,4", ["output: float32[output_1<=5,3]"]),
        (lambda n, x: n(x).sum(1), "L<=6,4", ["output: float32[3]"]),
    ],
)
def test_outputs_are_described_by_running_the_model(call: Any, spec: str, expected: list[str]) -> None:
    subject = Subject("net", Calls(call), (parse_input(spec),))
    assert [str(output) for output in output_specs(subject)] == expected


@pytest.mark.parametrize(
    "call", [lambda n, x: n(x).sum(), lambda n, x: n(x).T, lambda n, x: n(x).mean(0, keepdim=True)]
)
def test_an_output_without_the_batch_on_axis_0_is_refused(call: Any) -> None:
    subject = Subject("net", Calls(call), (parse_input("4"),))
    with pytest.raises(ExportError, match=r"expected the rows on axis 0\. Transpose or pick it"):
        output_specs(subject)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_an_output_that_clients_cannot_be_sent_is_refused(dtype: torch.dtype) -> None:
    subject = Subject("net", Calls(lambda n, x: {"a": n(x), "b": n(x).to(dtype)}), (parse_input("4"),))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=rf"output 'b' is {name}; expected one of bool, .*return x\.float"):
        output_specs(subject)


def test_without_dropout_there_are_no_masked_graphs(tmp_path: Path) -> None:
    subject = Subject("net", Calls(lambda n, x: n(x)).eval(), (parse_input("4"),))
    artefacts = build(subject, tmp_path, ExportSettings())
    assert (artefacts.sites, artefacts.program, artefacts.masks) == ((), None, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.ts"]


def test_only_what_is_wanted_is_written(tmp_path: Path) -> None:
    subject = Subject("net", nn.Sequential(nn.Linear(4, 3), nn.Dropout()).eval(), (parse_input("4"),))
    artefacts = build(subject, tmp_path, ExportSettings(formats=("onnx",)), monte_carlo=False)
    assert set(artefacts.paths) == {"model.onnx"}
    assert artefacts.sites == ()


def test_a_decision_on_values_is_refused_with_the_line(tmp_path: Path) -> None:
    def call(n: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return n(x) if x.sum() > 0 else -n(x)

    subject = Subject("net", Calls(call).eval(), (parse_input("4"),))
    with pytest.raises(ExportError, match=r"(?s)cannot be exported to ONNX.*test_artefacts\.py:\d+"):
        build(subject, tmp_path, ExportSettings())


def test_the_traced_batch_is_no_other_size_of_the_inputs(tmp_path: Path) -> None:
    # With 3 rows of 3 features, a transposed input would have gone unnoticed.
    spec = (TensorSpec(name="input", shape=(3, 4, L)),)
    seen: list[int] = []

    def call(n: nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[0])
        return n(x.mean(3)).sum(1)

    build(Subject("net", Calls(call).eval(), spec), tmp_path, ExportSettings(formats=("onnx",)))
    assert 5 in seen


def test_real_rows_shorter_than_the_greatest_length_do_not_shorten_the_graph(tmp_path: Path) -> None:
    spec = (TensorSpec(name="input", shape=(L, 4)),)
    rows = {"input": np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32)}
    net = Calls(lambda n, x: n(x).sum(1)).eval()
    artefacts = build(Subject("net", net, spec, rows), tmp_path, ExportSettings(formats=("onnx",)))
    x = torch.randn(2, 6, 4)
    got = OnnxProgram(artefacts.paths["model.onnx"])({"input": x.numpy()})["output"]
    np.testing.assert_allclose(got, net(x).detach().numpy(), atol=1e-5)


class Called(nn.Module):
    """Inputs and outputs that are called like what torch does to them, each before or after it is done."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 5), nn.Dropout(0.3), nn.Linear(5, 3)

    def forward(self, relu: torch.Tensor, pad: torch.Tensor) -> dict[str, torch.Tensor]:
        wide = nn.functional.pad(relu, (1, 1)) * pad
        hidden = self.drop(torch.relu(self.first(wide)))
        return {"linear": torch.tanh(self.last(hidden)), "add": hidden.sum(1, keepdim=True) + pad}


def test_names_of_operators_are_names_of_inputs_and_outputs_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    specs = (parse_input("4", name="relu"), parse_input("6", name="pad"))
    subject = Subject("net", Called().eval(), specs)
    artefacts = build(subject, tmp_path, ExportSettings())
    assert {"trunk.onnx", "head.onnx"} < set(artefacts.paths)
    assert [str(spec) for spec in artefacts.signature.outputs] == ["linear: float32[3]", "add: float32[6]"]
    assert {check.verdict for check in parity(subject, artefacts, ExportSettings()).checks} == {"passed"}
    masks = draw(artefacts.sites, 4, seed=1)
    batch = {name: tensor.numpy() for name, tensor in subject.batch(4).items()}
    got = OnnxProgram(artefacts.paths["masked.onnx"])(batch | masks)
    x, pad = subject.batch(4).values()
    with torch.no_grad():
        first = subject.module.get_submodule("first")(nn.functional.pad(x, (1, 1)) * pad).relu()
        hidden = first * torch.from_numpy(masks["mask_0"].copy())
        wanted = {
            "linear": subject.module.get_submodule("last")(hidden).tanh(),
            "add": hidden.sum(1, keepdim=True) + pad,
        }
    for name, tensor in wanted.items():
        np.testing.assert_allclose(got[name], tensor.numpy(), atol=1e-6)


def test_one_name_for_an_input_and_an_output_is_refused(tmp_path: Path) -> None:
    subject = Subject("net", Calls(lambda n, x: {"input": n(x), "b": x}).eval(), (parse_input("4"),))
    with pytest.raises(UsageError, match=r"an input and an output are both called input; .*another key"):
        build(subject, tmp_path, ExportSettings())


def test_a_dtype_that_onnxruntime_does_not_compute_in_is_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)).bfloat16().eval()
    subject = Subject("net", Calls(lambda _, x: module(x.bfloat16()).float()).eval(), (parse_input("4"),))
    artefacts = build(subject, tmp_path, ExportSettings(formats=("onnx",)), monte_carlo=False)
    with pytest.raises(ExportError, match=r"onnxruntime cannot load model\.onnx on a CPU:.*in float32"):
        OnnxProgram(artefacts.paths["model.onnx"])


@pytest.mark.parametrize("how", [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(2, 4))])
def test_a_part_that_is_torchscript_already_is_refused(tmp_path: Path, how: Any) -> None:
    module = nn.Sequential(nn.Linear(4, 4), how(nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    with pytest.raises(ModelSourceError, match=r"^Sequential: 1 is TorchScript.*Build that part from its cl"):
        build(Subject("net", module.eval(), (parse_input("4"),)), tmp_path, ExportSettings())
