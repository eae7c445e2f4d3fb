"""Random operators in exported files: wherever they hide, and before optimisation hides them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
import zoo
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from dropserve.export.artefacts import MODEL, MODEL_TS, Artefacts, NamedOutputs, build
from dropserve.export.audit import run_audit
from dropserve.export.audit.onnx_scan import scan
from dropserve.export.audit.script_scan import scan_script
from dropserve.export.onnx import export_onnx
from dropserve.export.subject import Subject
from dropserve.export.torchscript import ScriptProgram, export_torchscript
from dropserve.manifest import CheckRecord
from dropserve.signature import Signature, parse_input

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
INPUTS = (parse_input("8"),)
OUTPUTS = (parse_input("8", name="output"),)


def line(marker: str) -> str:
    file = Path(__file__)
    found = [i for i, text in enumerate(file.read_text().splitlines(), 1) if text.endswith(f"  # {marker}")]
    return f"{file.name}:{found[0]}"


def truth(name: str, value: bool) -> onnx.TensorProto:
    return helper.make_tensor(name, BOOL, [], [value])


def model(
    nodes: list[onnx.NodeProto],
    *,
    constants: tuple[onnx.TensorProto, ...] = (),
    more_inputs: tuple[onnx.ValueInfoProto, ...] = (),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    rate = helper.make_tensor("rate", FLOAT, [], [0.5])
    ins = [helper.make_tensor_value_info("input", FLOAT, ["N", 8]), *more_inputs]
    outs = [helper.make_tensor_value_info("output", FLOAT, ["N", 8])]
    graph = helper.make_graph(nodes, "g", ins, outs, [rate, *constants])
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid("own", 1)] if functions else [])]
    made = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    onnx.checker.check_model(made)
    return made


def dropout(mode: str, source: str = "input", target: str = "output") -> onnx.NodeProto:
    names = [source, "rate", mode] if mode else [source, "rate"]
    return helper.make_node("Dropout", names, [target], name="drop")


def batch_norm(training: int) -> list[onnx.NodeProto]:
    outputs = ["output", "m", "v"] if training else ["output"]
    node = helper.make_node(
        "BatchNormalization", ["input", "s", "s", "s", "s"], outputs, training_mode=training
    )
    return [helper.make_node("Constant", [], ["s"], value_floats=[1.0] * 8), node]


def branching(inner: str) -> onnx.ModelProto:
    body = helper.make_graph(
        [dropout(inner, target="inside")], "b", [], [helper.make_tensor_value_info("inside", FLOAT, ["N", 8])]
    )
    node = helper.make_node("If", ["on"], ["output"], then_branch=body, else_branch=body)
    return model([node], constants=(truth("on", True), truth("off", False)))


def in_a_function(kind: str) -> onnx.ModelProto:
    body = [
        helper.make_node("Constant", [], ["mode"], value=truth("mode", kind == "on")),
        helper.make_node("Dropout", ["x", "", "mode"], ["y"]),
    ]
    opset = helper.make_opsetid("", 18)
    function = helper.make_function("own", "Regularise", ["x"], ["y"], body, [opset])
    return model([helper.make_node("Regularise", ["input"], ["output"], domain="own")], functions=(function,))


SWITCH = helper.make_tensor_value_info("switch", BOOL, [])
GRAPHS: dict[str, tuple[onnx.ModelProto, int]] = {
    "no mode": (model([dropout("")]), 0),
    "mode constant off": (model([dropout("off")], constants=(truth("off", False),)), 0),
    "mode constant on": (model([dropout("on")], constants=(truth("on", True),)), 1),
    "mode an input": (model([dropout("switch")], more_inputs=(SWITCH,)), 1),
    "mode an input with a default": (
        model([dropout("switch")], more_inputs=(SWITCH,), constants=(truth("switch", False),)), 1
    ),
    "mode computed": (
        model(
            [helper.make_node("Not", ["on"], ["mode"]), dropout("mode")], constants=(truth("on", True),)
        ), 1
    ),
    "mode passed on": (
        model(
            [helper.make_node("Identity", ["off"], ["mode"]), dropout("mode")],
            constants=(truth("off", False),),
        ), 0
    ),
    "in a branch, on": (branching("on"), 2),
    "in a branch, off": (branching("off"), 0),
    "in a function, on": (in_a_function("on"), 1),
    "in a function, off": (in_a_function("off"), 0),
    "batch norm in training": (model(batch_norm(1)), 1),
    "batch norm": (model(batch_norm(0)), 0),
    **{
        kind: (model([helper.make_node(kind, ["input"], ["output"])]), 1)
        for kind in ("RandomUniformLike", "RandomNormalLike", "Bernoulli")
    },
    "RandomNormal": (
        model(
            [
                helper.make_node("RandomNormal", [], ["noise"], shape=[8]),
                helper.make_node("Add", ["input", "noise"], ["output"]),
            ]
        ), 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_the_scan_finds_what_is_on_and_only_that(name: str) -> None:
    graph, expected = GRAPHS[name]
    findings, count = scan(graph)
    assert len(findings) == expected, findings
    assert count >= 1


class Regularised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = F.dropout(x, 0.5, training=self.training)  # DROPOUT
        return self.second(x)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.5))  # BERNOULLI


class Attending(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(-1, 2, 4)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.1).flatten(1)  # ATTENTION


def graph_checks(
    module: nn.Module, folder: Path, paths: dict[str, Path] | None = None
) -> dict[str, CheckRecord]:
    subject = Subject("model", module, INPUTS)
    made = build(subject, folder, zoo.SETTINGS) if paths is None else None
    signature = Signature(inputs=INPUTS, outputs=OUTPUTS)
    artefacts = made or Artefacts(folder, signature, (), None, paths or {})
    return {r.name: r for r in run_audit(subject, zoo.SETTINGS, artefacts, stages=["graph"])}


def test_the_graphs_of_a_sound_model_pass(tmp_path: Path) -> None:
    records = graph_checks(Regularised().eval(), tmp_path)
    assert {record.verdict for record in records.values()} == {"passed"}
    assert "masked.onnx" in records["onnx-random-operators"].evidence


def test_onnxruntime_hides_a_dropout_that_is_on_and_so_both_graphs_are_read(tmp_path: Path) -> None:
    on = truth("on", True)
    before = helper.make_node("Relu", ["input"], ["hidden"])
    after = helper.make_node("Relu", ["inside"], ["output"])
    (tmp_path / MODEL).write_bytes(
        model([before, dropout("on", "hidden", "inside"), after], constants=(on,)).SerializeToString()
    )
    records = graph_checks(Regularised().eval(), tmp_path, {MODEL: tmp_path / MODEL})
    assert records["onnx-random-operators"].verdict == "failed"
    assert "drop has training_mode on" in records["onnx-random-operators"].evidence
    assert records["onnx-random-operators-optimised"].verdict == "passed", "onnxruntime mended it: good news"


def test_a_random_node_is_traced_back_to_the_eager_line(tmp_path: Path) -> None:
    path = tmp_path / MODEL
    batch = {"input": torch.zeros(3, 8)}
    export_onnx(NamedOutputs(Noisy().eval()), INPUTS, ["output"], batch, path, opset=18)
    records = graph_checks(Noisy().eval(), tmp_path, {MODEL: path})
    for name in ("onnx-random-operators", "onnx-random-operators-optimised"):
        assert records[name].verdict == "failed"
    assert records["onnx-random-operators"].where.endswith(line("BERNOULLI"))
    assert records["onnx-repeated-runs"].verdict == "failed"


def test_the_exported_program_shows_what_an_exporter_would_drop_silently(tmp_path: Path) -> None:
    record = graph_checks(Attending().eval(), tmp_path, {MODEL: tmp_path / MODEL})[
        "exported-program-random-operators"
    ]
    assert record.verdict == "failed"
    assert record.where.endswith(line("ATTENTION"))


def test_a_trace_made_in_train_mode_is_found_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / MODEL_TS
    export_torchscript(NamedOutputs(Regularised().train()), [torch.zeros(3, 8)], path)
    (findings, _) = scan_script(ScriptProgram(path, (), ()).module)
    assert [found.node for found in findings] == ["aten::dropout"]
    assert findings[0].where.endswith(line("DROPOUT"))
    records = graph_checks(Regularised().eval(), tmp_path, {MODEL: tmp_path / "none", MODEL_TS: path})
    assert records["torchscript-random-operators"].verdict == "failed"
    assert "generator moved" in records["torchscript-mode-switch"].evidence


def test_a_scripted_model_that_train_turns_on_again_is_refused(tmp_path: Path) -> None:
    path = tmp_path / MODEL_TS
    torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval()).save(str(path))
    records = graph_checks(Regularised().eval(), tmp_path, {MODEL: tmp_path / "none", MODEL_TS: path})
    assert records["torchscript-mode-switch"].verdict == "failed"
    assert records["torchscript-random-operators"].verdict == "failed", "its flag is not a constant"


def test_without_graphs_their_checks_say_that_they_did_not_judge() -> None:
    subject = Subject("model", Regularised().eval(), INPUTS)
    records = run_audit(subject, zoo.SETTINGS, stages=["graph"])
    judged = {record.name for record in records if record.verdict != "skipped"}
    assert judged == {"exported-program-random-operators"}


def test_numpy_agrees_on_what_a_single_value_is() -> None:
    graph = model([dropout("off")], constants=(truth("off", False),))
    value = next(tensor for tensor in graph.graph.initializer if tensor.name == "off")
    assert numpy_helper.to_array(value).item() is False
