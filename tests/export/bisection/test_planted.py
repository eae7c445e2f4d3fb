"""Every plant is named, and nothing is where everything agrees: what benchmarks/bisection.py counts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import planted
import pytest

from dropserve.export.artefacts import Artefacts
from dropserve.export.bisection import Bisector, Failure
from dropserve.export.cases import masked_cases, plain_cases
from dropserve.export.onnx import LEVELS
from dropserve.export.parity import parity
from dropserve.export.subject import Subject

SEPARATE = {"dense", "simple", "deciding"}  # the first is in the fast tier, the last never agrees with itself
FAST = {  # one of a kind; the others need a long export
    "one wrong weight": "one number alone, at [6, 6]",
    "another slope of a leaky ReLU": "attribute alpha of LeakyRelu is 0.11 where a fresh export has 0.1",
    "a dropped ReLU": "without aten.relu.default",
    "TorchScript: a swapped activation": "eager runs aten::tanh here, the file aten::sigmoid",
}
EXPLAINED = FAST | {
    "transposed weights": "'model.third.weight' is transposed",
    "a swapped activation": "the graph has Sigmoid where a fresh export has Tanh",
    "a sum that reads another tensor": "Add reads 'relu' where a fresh export has 'tanh'",
    "weights rounded to float16": "is rounded to float16",
    "padding on one side alone": "attribute pads of Conv is [0, 0, 2, 2]",
    "another epsilon of BatchNorm": "attribute epsilon of BatchNormalization is 0.0001",
    "max in the place of mean": "the graph has ReduceMax where a fresh export has ReduceMean",
    "another epsilon of LayerNorm": "attribute epsilon of LayerNormalization is 0.001",
    "softmax over another axis": "attribute axis of Softmax is -2",
    "a wrong weight of an LSTM's second layer": "one number alone",
    "a wrong weight in the trunk": "'model.one.weight' differs",
    "a mask that is added": "the graph has Add where a fresh export has Mul",
    "an optimiser that approximates": "FastGelu stands for Add 'node_linear_2', Gelu 'node_gelu'",
    "a fusion that is broken": "FusedConv stands for Conv 'node_conv2d', Relu 'node_relu'",
    "a translation that is wrong": "the exporter's own translation is at fault",
    "a decision by the number of rows": "eager runs aten.mul.Tensor here, the exporter has seen nothing",
    "TorchScript: a decision by the number of rows": "eager runs aten::mul here, the file nothing",
    "TorchScript: one wrong weight": "'rnn.weight_hh_l0' differs",
    "TorchScript: another slope": "called with (0.11) where eager has (0.1)",
    "TorchScript: another epsilon under masks": "([8], 0.001, True) where eager has ([8], 1e-05, True)",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    @cache
    def export(plant_model: str, opset: int, exporting: bool) -> tuple[Subject, Artefacts]:
        plant = next(
            p for p in planted.PLANTS if (p.model, p.opset, p.exporting) == (plant_model, opset, exporting)
        )
        return plant.export(tmp_path_factory.mktemp(plant_model))

    return export


def _marked(plant: planted.Plant) -> Any:
    marks = [] if plant.what in FAST else [pytest.mark.slow]
    return pytest.param(plant, id=f"{plant.what} ({plant.model})", marks=marks)


@pytest.mark.parametrize("plant", [_marked(plant) for plant in planted.PLANTS])
def test_the_place_is_named(plant: planted.Plant, exported: Any, tmp_path: Path) -> None:
    subject, sound = exported(plant.model, plant.opset, plant.exporting)
    with plant.around():
        report = parity(subject, plant.planted(sound, tmp_path), plant.settings)
    record = next(check for check in report.checks if check.name == plant.check)
    assert record.verdict == "failed"
    found = report.figures[plant.check]["bisection"]
    assert found["node" if plant.file.endswith(".ts") else "tensor"] == plant.first(sound)
    assert plant.place in [part.partition(" at ")[0] for part in record.where.split(", ")], record.where
    assert "models.py:" in record.where, "the user's line"
    assert EXPLAINED.get(plant.what, "") in record.evidence
    assert found["gap"]["expected"] != found["gap"]["got"]


@pytest.mark.parametrize(
    "model",
    [
        "dense",
        *(pytest.param(m, marks=pytest.mark.slow) for m in planted.MODELS if m not in SEPARATE),
    ],
)
def test_nothing_is_named_where_everything_agrees(model: str, exported: Any) -> None:
    plant = next(p for p in planted.PLANTS if p.model == model)
    subject, artefacts = exported(model, plant.opset, plant.exporting)
    assert all(check.verdict == "passed" for check in parity(subject, artefacts, plant.settings).checks)
    bisector = Bisector(subject, artefacts, plant.settings)
    for case in plain_cases(subject, plant.settings)[:4]:
        graphs = [*(f"onnxruntime {level}" for level in LEVELS), "TorchScript"]
        failures = [Failure(graph, case.inputs, case.expected) for graph in graphs]
        assert artefacts.program is not None
        masked = masked_cases(artefacts.program, artefacts.masks, [case])[0]
        failures += [Failure(graph, masked.tiled(), masked.flat) for graph in graphs]
        failures.append(Failure("trunk and head", case.inputs, masked.expected, masked.masks))
        for failure in failures:
            finding = bisector.find(failure)
            assert not finding.tensor, finding.evidence()
            assert not finding.where
            assert "could not be done" not in finding.note, finding.note
