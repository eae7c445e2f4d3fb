"""From a failed parity check to a finding: which graph, which reference, which inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from dropserve.export.artefacts import (
    HEAD,
    MASKED,
    MASKED_TS,
    MODEL,
    MODEL_TS,
    TRUNK,
    Artefacts,
    NamedOutputs,
    example_batch,
)
from dropserve.export.comparison import Array
from dropserve.export.onnx import LEVELS, Level, OnnxProgram
from dropserve.export.quiet import quiet
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject

from .eager import Eager
from .finding import Finding
from .graphs import find_in_file, find_in_session
from .instrument import run
from .reference import Reference, greatest_error, reference
from .script import find_in_script


@dataclass(frozen=True)
class Failure:
    """The first run of a check that failed.

    Attributes:
        graph: what the check calls the program that ran.
        inputs: what it was given, masks included; for trunk and head the inputs of one sample.
        expected: what eager answers.
        samples: for trunk and head, the masks ``[T, *shape]`` by name.
    """

    graph: str
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    samples: Mapping[str, Array] | None = None


class Bisector:
    """Finds the first place where a graph parts from the eager model.

    Args:
        subject: the model.
        artefacts: its graphs.
        settings: the tolerance and the operator set.
    """

    def __init__(self, subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> None:
        self._subject, self._artefacts, self._settings = subject, artefacts, settings

    def find(self, failure: Failure) -> Finding:
        """Bisect; a bisection that fails itself says so in the finding's note."""
        masked = any(spec.name in failure.inputs for spec in self._artefacts.masks)
        try:
            with quiet():
                if failure.samples is not None:
                    return self._split(failure, failure.samples)
                if failure.graph.startswith("TorchScript"):
                    return self._script(failure, masked=masked)
                return self._onnx(failure, masked=masked)
        except Exception as problem:  # noqa: BLE001  # a verdict must not be lost for want of its place
            text = " ".join(str(problem).split())[:300]
            return Finding(failure.graph, note=f"it could not be done: {type(problem).__name__}: {text}")

    def _onnx(self, failure: Failure, *, masked: bool) -> Finding:
        name = MASKED if masked else MODEL
        path = self._artefacts.paths[name]
        right = self._reference(failure, masked=masked)
        named: list[Level] = [level for level in LEVELS if failure.graph.endswith(f" {level}")]
        if _wrong(path, right):
            return find_in_file(name, path, right)
        return find_in_session(name, path, named[0] if named else "all", right)

    def _script(self, failure: Failure, *, masked: bool) -> Finding:
        name = MASKED_TS if masked else MODEL_TS
        program = self._masked.program if masked else self._plain.program
        inputs = {
            spec.name: failure.inputs[spec.name] for spec in (self._masked if masked else self._plain).inputs
        }
        return find_in_script(name, self._artefacts.paths[name], program, inputs)

    def _split(self, failure: Failure, samples: Mapping[str, Array]) -> Finding:
        """First the trunk on its rows, then the head on rows times samples."""
        paths, masks = self._artefacts.paths, self._artefacts.masks
        rows, count = len(next(iter(failure.inputs.values()))), len(next(iter(samples.values())))
        crossing: Mapping[str, Array] = failure.inputs
        if TRUNK in paths:
            one = {spec.name: np.repeat(samples[spec.name][:1], rows, axis=0) for spec in masks}
            first = {name: array[0] for name, array in failure.expected.items()}
            right = self._reference(Failure(TRUNK, {**failure.inputs, **one}, first), masked=True)
            finding = find_in_file(TRUNK, paths[TRUNK], right, failure.inputs)
            if finding.tensor:
                return finding
            crossing = run(onnx.load(paths[TRUNK]), failure.inputs)
        tiled = {name: np.repeat(array, rows, axis=0) for name, array in samples.items()}
        every = {name: np.concatenate([a] * count) for name, a in failure.inputs.items()}
        flat = {name: a.reshape(-1, *a.shape[2:]) for name, a in failure.expected.items()}
        right = self._reference(Failure(HEAD, {**every, **tiled}, flat), masked=True)
        given = {name: np.concatenate([a] * count) for name, a in crossing.items()}
        finding = find_in_file(HEAD, paths[HEAD], right, {**given, **tiled})
        if finding.tensor:
            return finding
        around = (
            "given tiled rows and masks, both files are right: look at what tiles and cuts them for serving"
        )
        return replace(finding, note=f"{finding.note}; {around}")

    def _reference(self, failure: Failure, *, masked: bool) -> Reference:
        eager = self._masked if masked else self._plain
        return reference(eager, failure.inputs, failure.expected, self._settings.tolerance)

    @cached_property
    def _plain(self) -> Eager:
        model = NamedOutputs(self._subject.module).eval()
        return self._eager(model, self._subject.inputs, example_batch(self._subject))

    @cached_property
    def _masked(self) -> Eager:
        program = self._artefacts.program
        if program is None:
            raise RuntimeError("there is no masked program")
        examples, masks = example_batch(self._subject), self._artefacts.masks
        identity = program.identity_masks(len(next(iter(examples.values()))))
        examples |= zip((spec.name for spec in masks), identity, strict=True)
        return self._eager(program, (*self._subject.inputs, *masks), examples)

    def _eager(self, program: Any, inputs: Any, examples: Mapping[str, torch.Tensor]) -> Eager:
        outputs = [spec.name for spec in self._artefacts.signature.outputs]
        return Eager(program, inputs, outputs, examples, self._settings.opset)


def _wrong(path: Path, right: Reference) -> bool:
    """Whether a file is wrong as it is written, without any optimisation."""
    try:
        got = OnnxProgram(path, "disabled")(right.feeds)
    except Exception:  # noqa: BLE001  # what does not run is wrong
        return True
    return greatest_error(right.outputs, got) > right.tolerance
