"""Random models, a discrepancy at a random node: that node is named, whatever lies behind it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import composed
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from dropserve.export.artefacts import MODEL, Artefacts, build
from dropserve.export.bisection import Bisector, Failure, Finding
from dropserve.export.bisection.instrument import run, watched
from dropserve.export.cases import Case, plain_cases
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import parse_input

SETTINGS = ExportSettings(batch_sizes=(2, 3), formats=("onnx",))


class Ground:
    """A model with its sound file, on which plants are tried one after the other."""

    def __init__(self, seed: int) -> None:
        subject = Subject("composed", composed.compose(seed).eval(), (parse_input(str(composed.WIDTH)),))
        self.artefacts: Artefacts = build(subject, Path(mkdtemp()), SETTINGS, monte_carlo=False)
        self.sound = onnx.load(self.artefacts.paths[MODEL])
        self.case: Case = plain_cases(subject, SETTINGS)[0]
        self.bisector = Bisector(subject, self.artefacts, SETTINGS)
        values = run(watched(self.sound), self.case.inputs)
        self.tensors = [
            name
            for node in self.sound.graph.node
            for name in node.output
            if values[name].dtype == np.float32 and values[name].ndim and values[name].any()
        ]
        self.weights = [
            t.name
            for t in self.sound.graph.initializer
            if t.data_type == onnx.TensorProto.FLOAT and numpy_helper.to_array(t).size > 1
        ]

    def bisect(self, planted: ModelProto) -> Finding | None:
        """What is found in a changed file; None if its answer is within the tolerance."""
        got = run(planted, self.case.inputs)
        error = max(
            float(np.abs(array - got[name]).max() / np.abs(array).max())
            for name, array in self.case.expected.items()
        )
        if error <= SETTINGS.tolerance:
            return None
        onnx.save(planted, self.artefacts.paths[MODEL])
        return self.bisector.find(Failure("onnxruntime all", self.case.inputs, self.case.expected))

    def changed(self) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(self.sound)
        return copy


ground = cache(Ground)


def skewed(model: ModelProto, tensor: str) -> None:
    """A tensor comes out a little larger than it should."""
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if tensor in n.output)
    node.output[[*node.output].index(tensor)] = f"{tensor}.right"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.03), f"{tensor}.skew"))
    skew = helper.make_node("Mul", [f"{tensor}.right", f"{tensor}.skew"], [tensor], name=f"skew_{tensor}")
    model.graph.node.insert(index + 1, skew)


def check_skewed(seed: int, data: st.DataObject) -> None:
    field = ground(seed)
    tensor = data.draw(st.sampled_from(field.tensors))
    model = field.changed()
    skewed(model, tensor)
    finding = field.bisect(model)
    assume(finding is not None)
    assert finding is not None
    assert (finding.tensor, finding.others) == (tensor, ()), finding.evidence()
    assert finding.where
    assert finding.mended is not None
    assert finding.mended <= SETTINGS.tolerance, "nothing else is wrong"


def check_weights(seed: int, data: st.DataObject) -> None:
    field = ground(seed)
    name = data.draw(st.sampled_from(field.weights))
    model = field.changed()
    held = next(t for t in model.graph.initializer if t.name == name)
    held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held) * np.float32(1.05), name))
    finding = field.bisect(model)
    assume(finding is not None)
    assert finding is not None
    readers = [node.output[0] for node in model.graph.node if name in node.input]
    assert finding.tensor in readers, finding.evidence()
    assert set(finding.others) <= set(readers)
    assert repr(name) in finding.cause


def check_two(seed: int, data: st.DataObject) -> None:
    field = ground(seed)
    both = data.draw(st.lists(st.sampled_from(field.tensors), min_size=2, max_size=2, unique=True))
    model = field.changed()
    for tensor in both:
        skewed(model, tensor)
    first, second = sorted(both, key=field.tensors.index)
    alone = field.changed()
    skewed(alone, first)
    assume(field.bisect(alone) is not None)
    finding = field.bisect(model)
    assume(finding is not None)
    assert finding is not None
    assert (finding.tensor, finding.others) == (first, (second,))


CHECKS = pytest.mark.parametrize("check", [check_skewed, check_weights, check_two])
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]


@CHECKS
@settings(max_examples=8, suppress_health_check=QUIET)
@given(data=st.data())
def test_the_first_of_what_is_planted_is_named(check: object, data: st.DataObject) -> None:
    check(3, data)  # type: ignore[operator]


@pytest.mark.slow
@CHECKS
@settings(max_examples=60, suppress_health_check=QUIET)
@given(seed=st.integers(0, 11), data=st.data())
def test_in_many_models_too(check: object, seed: int, data: st.DataObject) -> None:
    check(seed, data)  # type: ignore[operator]
