from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dropserve.dropout.engine import MonteCarlo
from dropserve.errors import ExportError
from dropserve.export.artefacts import Artefacts, build
from dropserve.export.onnx import LEVELS, Level, OnnxProgram
from dropserve.export.parity import parity, parity_checks
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.export.torchscript import ScriptProgram
from dropserve.manifest import CheckRecord
from dropserve.signature import parse_input

Edit = Callable[[onnx.ModelProto], None]


def test_every_model_agrees_with_its_graphs(built: tuple[Subject, Artefacts]) -> None:
    subject, artefacts = built
    report = parity(subject, artefacts, ExportSettings())
    assert [check.name for check in report.checks] == [
        "parity-torchscript",
        "parity-onnx",
        "parity-round-trip",
        "parity-masked-torchscript",
        "parity-masked-onnx",
        "parity-identity-masks",
        "parity-trunk-and-head",
    ]
    assert [check for check in report.checks if check.verdict != "passed"] == []
    assert all(figures["runs"] > 0 for figures in report.figures.values())
    assert all(report.figures[name]["max"] < 1e-5 for name in report.figures)


def edited(artefacts: Artefacts, folder: Path, name: str, edit: Edit) -> Artefacts:
    """The same artefacts, one graph changed."""
    paths = {key: Path(shutil.copy(path, folder)) for key, path in artefacts.paths.items()}
    model = onnx.load(paths[name])
    edit(model)
    onnx.save(model, paths[name])
    return dataclasses.replace(artefacts, folder=folder, paths=paths)


def failed(checks: list[CheckRecord]) -> dict[str, CheckRecord]:
    return {check.name: check for check in checks if check.verdict == "failed"}


def nudge(amount: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        bias = next(t for t in model.graph.initializer if t.name.endswith("6.bias"))
        values = onnx.numpy_helper.to_array(bias).copy()
        values[1] += amount
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))

    return edit


def test_a_difference_just_above_the_tolerance_is_found_and_one_below_is_not(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path
) -> None:
    subject, artefacts = built_mlp
    with torch.no_grad():
        scale = max(float(subject.module(*subject.batch(n).values()).abs().max()) for n in (1, 2, 3, 17))
    for factor, wrong in ((3.0, {"parity-onnx", "parity-round-trip"}), (0.3, set())):
        changed = edited(artefacts, tmp_path, "model.onnx", nudge(factor * 1e-5 * scale))
        assert set(failed(parity_checks(subject, changed, ExportSettings()))) == wrong


def test_a_failure_names_graph_inputs_batch_row_and_values(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path
) -> None:
    subject, artefacts = built_mlp
    changed = edited(artefacts, tmp_path, "model.onnx", nudge(0.25))
    report = parity(subject, changed, ExportSettings())
    found = failed(report.checks)["parity-onnx"]
    for part in (
        "difference: output 'output' differs by",
        "onnxruntime disabled",
        "inputs random",
        "batch 1",
    ):
        assert part in found.evidence
    assert "; row 0: expected [" in found.evidence
    assert "checks.toml" in found.remedy
    worst = report.figures["parity-onnx"]["worst"]
    assert worst["got"][1] - worst["expected"][1] == pytest.approx(0.25, abs=1e-5)


def rename_output(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "output" in n.output)
    node.output[0] = model.graph.output[0].name = "logits"


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3


def to_double(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "output" in n.output)
    node.output[0] = "single"
    model.graph.node.append(onnx.helper.make_node("Cast", ["single"], ["output"], to=onnx.TensorProto.DOUBLE))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def lose_an_axis(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "output" in n.output)
    node.output[0] = "wide"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axis_1"))
    mean = onnx.helper.make_node("ReduceMean", ["wide", "axis_1"], ["output"], keepdims=0)
    model.graph.node.append(mean)
    del model.graph.output[0].type.tensor_type.shape.dim[1]


def divide_by_zero(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if "output" in n.output)
    node.output[0] = "fine"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["fine", "zero"], ["nothing"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["nothing", "zero"], ["output"]))


def not_a_graph(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperator"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (rename_output, "missing output"),
        (fix_batch, "error"),
        (to_double, "wrong dtype"),
        (lose_an_axis, "wrong shape"),
        (divide_by_zero, "NaN"),
        (not_a_graph, "error"),
    ],
)
def test_each_kind_of_failure_has_its_class(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path, edit: Edit, problem: str
) -> None:
    subject, artefacts = built_mlp
    found = failed(parity_checks(subject, edited(artefacts, tmp_path, "model.onnx", edit), ExportSettings()))
    assert set(found) == {"parity-onnx", "parity-round-trip"}
    assert found["parity-onnx"].evidence.startswith(f"{problem}:")
    assert found["parity-onnx"].remedy


def ignore_second_mask(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "mask_1":
                node.input[index] = "mask_0"  # of the same shape: the first mask twice


@pytest.mark.parametrize(
    ("file", "check"), [("masked.onnx", "parity-masked-onnx"), ("head.onnx", "parity-trunk-and-head")]
)
def test_masks_that_do_not_reach_their_site_are_found(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path, file: str, check: str
) -> None:
    subject, artefacts = built_mlp
    changed = edited(artefacts, tmp_path, file, ignore_second_mask)
    assert set(failed(parity_checks(subject, changed, ExportSettings()))) == {check}


def test_masked_graphs_that_do_not_reduce_to_the_model_are_found(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path
) -> None:
    subject, artefacts = built_mlp
    changed = edited(artefacts, tmp_path, "masked.onnx", nudge(0.01))
    assert set(failed(parity_checks(subject, changed, ExportSettings()))) == {
        "parity-masked-onnx",
        "parity-identity-masks",
    }


def test_a_waived_failure_stays_visible(built_mlp: tuple[Subject, Artefacts], tmp_path: Path) -> None:
    subject, artefacts = built_mlp
    changed = edited(artefacts, tmp_path, "model.onnx", nudge(0.25))
    checks = parity_checks(subject, changed, ExportSettings(waive=("parity-onnx",)))
    verdicts = {check.name: check.verdict for check in checks}
    assert verdicts["parity-onnx"] == "waived"
    assert verdicts["parity-round-trip"] == "failed"
    assert verdicts["parity-torchscript"] == "passed"


class Sqrt(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


def test_nan_on_real_rows_fails_and_beyond_them_only_if_the_graph_differs(tmp_path: Path) -> None:
    positive = {"input": np.random.default_rng(0).uniform(1, 2, size=(20, 4)).astype(np.float32)}
    subject = Subject("sqrt", Sqrt().eval(), (parse_input("4"),), positive)
    artefacts = build(subject, tmp_path, ExportSettings())
    assert failed(parity_checks(subject, artefacts, ExportSettings())) == {}, "large values go below zero"
    negative = dataclasses.replace(subject, rows={"input": -positive["input"]})
    found = failed(parity_checks(negative, artefacts, ExportSettings()))
    assert all(check.evidence.startswith("NaN:") for check in found.values())
    assert "parity-onnx" in found


def test_a_model_that_fails_on_its_own_rows_is_an_error(tmp_path: Path) -> None:
    subject = Subject("net", nn.Linear(4, 2).eval(), (parse_input("4"),))
    artefacts = build(subject, tmp_path, ExportSettings())
    broken = dataclasses.replace(subject, module=nn.Linear(5, 2).eval())
    with pytest.raises(ExportError, match="the model fails on 1 rows"):
        parity_checks(broken, artefacts, ExportSettings())


class Steep(nn.Module):
    """A softmax over hugely scaled inputs: float32 itself is far from 1e-5 on large values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x) * 30).softmax(-1) @ self.linear.weight


def test_a_steep_model_is_not_held_to_more_than_float32_can_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = Subject("steep", Steep().eval(), (parse_input("16"),))
    artefacts = build(subject, tmp_path, ExportSettings())
    assert failed(parity_checks(subject, artefacts, ExportSettings(tolerance=1e-4))) == {}


def test_every_level_and_every_case_is_run(built_mlp: tuple[Subject, Artefacts]) -> None:
    subject, artefacts = built_mlp
    settings = ExportSettings(batch_sizes=(2, 5, 3))
    report = parity(subject, artefacts, settings)
    edge = 2  # batches of edge and padded rows
    plain = 3 * 3 + edge  # random, zeros and large at each size
    masked = 3 + 2 + edge  # the last two at one size
    runs = {name: figures["runs"] for name, figures in report.figures.items()}
    assert runs == {
        "parity-torchscript": plain,
        "parity-onnx": plain * 5,
        "parity-round-trip": plain * 2,
        "parity-masked-torchscript": masked,
        "parity-masked-onnx": masked * 5,
        "parity-identity-masks": masked * 6,
        "parity-trunk-and-head": masked,
    }
    evidence = {check.name: check.evidence for check in report.checks}
    assert "in 55 runs: onnxruntime at 5 levels, against the eager model" in evidence["parity-onnx"]
    assert "onnxruntime at 5 levels and TorchScript" in evidence["parity-identity-masks"]
    assert "trunk and head under 4 masks" in evidence["parity-trunk-and-head"]


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_of_onnxruntime_that_differs_is_enough(
    built_mlp: tuple[Subject, Artefacts], monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    subject, artefacts = built_mlp
    run = OnnxProgram.__call__

    def wrong(self: OnnxProgram, inputs: Mapping[str, Any]) -> dict[str, Any]:
        name = self.session.get_session_options().graph_optimization_level.name
        told = "disabled" if name == "ORT_DISABLE_ALL" else name.removeprefix("ORT_ENABLE_").lower()
        return {key: a + 1 if told == level else a for key, a in run(self, inputs).items()}

    monkeypatch.setattr(OnnxProgram, "__call__", wrong)
    found = failed(parity_checks(subject, artefacts, ExportSettings(batch_sizes=(2, 3), formats=("onnx",))))
    assert f"graph onnxruntime {level}" in found["parity-onnx"].evidence
    assert f"graph onnxruntime {level}" in found["parity-masked-onnx"].evidence


def test_a_torchscript_file_that_does_not_survive_being_written_again_is_found(
    built_mlp: tuple[Subject, Artefacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, artefacts = built_mlp
    save = ScriptProgram.save

    def lossy(self: ScriptProgram, path: Path) -> None:
        held = next(self.module.parameters())
        before = held.detach().clone()
        with torch.no_grad():
            held.mul_(1.1)
        save(self, path)
        with torch.no_grad():
            held.copy_(before)

    monkeypatch.setattr(ScriptProgram, "save", lossy)
    found = failed(parity_checks(subject, artefacts, ExportSettings(batch_sizes=(2, 3))))
    assert set(found) == {"parity-round-trip"}
    assert "graph TorchScript saved again" in found["parity-round-trip"].evidence
    assert "every tensor of the file is what eager has" in found["parity-round-trip"].evidence


def test_a_masked_torchscript_file_is_held_to_identity_masks_too(
    built_mlp: tuple[Subject, Artefacts], tmp_path: Path
) -> None:
    subject, artefacts = built_mlp
    paths = {key: Path(shutil.copy(path, tmp_path)) for key, path in artefacts.paths.items()}
    script = torch.jit.load(str(paths["masked.ts"]))
    with torch.no_grad():
        next(script.parameters()).mul_(1.1)
    torch.jit.save(script, str(paths["masked.ts"]))
    changed = dataclasses.replace(artefacts, folder=tmp_path, paths=paths)
    found = failed(parity_checks(subject, changed, ExportSettings(batch_sizes=(2, 3))))
    assert set(found) == {"parity-masked-torchscript", "parity-identity-masks"}
    assert "graph TorchScript" in found["parity-identity-masks"].evidence


class Ids(nn.Module):
    """A whole number for each row, as large as an identifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).long().sum(1) + 50_000_000


def test_whole_numbers_must_be_the_same_however_large_they_are(tmp_path: Path) -> None:
    def add_one(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if "output" in n.output)
        node.output[0] = "right"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "one_more"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "one_more"], ["output"]))

    subject = Subject("ids", Ids().eval(), (parse_input("5"),))
    sound = build(subject, tmp_path, ExportSettings())
    assert failed(parity_checks(subject, sound, ExportSettings())) == {}
    (tmp_path / "changed").mkdir()
    changed = edited(sound, tmp_path / "changed", "model.onnx", add_one)
    found = failed(parity_checks(subject, changed, ExportSettings()))
    assert set(found) == {"parity-onnx", "parity-round-trip"}


class Faint(nn.Module):
    """Zero where the input is zero, but by way of numbers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.wide(x).sin().sum(1, keepdim=True)
        return h - self.wide.bias.sin().sum() + x[:, :1]


def test_errors_are_measured_against_what_the_output_is_on_ordinary_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = Subject("faint", Faint().eval(), (parse_input("6"),))
    artefacts = build(subject, tmp_path, ExportSettings())
    report = parity(subject, artefacts, ExportSettings())
    assert failed(report.checks) == {}, "on zeros nothing but rounding is left of the output"
    assert report.figures["parity-onnx"]["max"] > 0


def test_a_server_that_puts_trunk_and_head_together_wrongly_is_told_from_wrong_files(
    built_mlp: tuple[Subject, Artefacts], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, artefacts = built_mlp
    samples = MonteCarlo.samples

    def turned(self: MonteCarlo, *args: Any) -> dict[str, Any]:
        return {name: array[::-1].copy() for name, array in samples(self, *args).items()}

    monkeypatch.setattr(MonteCarlo, "samples", turned)
    found = failed(parity_checks(subject, artefacts, ExportSettings(batch_sizes=(2, 3), formats=("onnx",))))
    assert set(found) == {"parity-trunk-and-head"}
    check = found["parity-trunk-and-head"]
    assert "both files are right: look at what tiles and cuts them" in check.evidence
    assert check.where == ""
