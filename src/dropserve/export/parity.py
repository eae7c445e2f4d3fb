"""Every exported graph against the eager model, on every kind of input, at every level of optimisation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.manifest import CheckRecord

from .artefacts import HEAD, MASKED, MASKED_TS, MODEL, MODEL_TS, TRUNK, Artefacts
from .bisection import Bisector, Failure
from .cases import SAMPLES, SEED, Case, MaskedCase, magnitude, masked_cases, plain_cases, scales
from .comparison import REMEDIES, Array, Tally, compare
from .external import loadable
from .onnx import LEVELS, OnnxProgram
from .settings import ExportSettings
from .subject import Subject
from .torchscript import ScriptProgram

NAMES = (
    "parity-torchscript",
    "parity-onnx",
    "parity-round-trip",
    "parity-masked-torchscript",
    "parity-masked-onnx",
    "parity-identity-masks",
    "parity-trunk-and-head",
)
"""What ``waive`` in ``export/checks.toml`` may hold of this module."""

_LEVEL_NAMES = tuple(f"onnxruntime {level}" for level in LEVELS)
Program = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass
class ParityReport:
    """Verdicts for people, figures for ``export.json``."""

    checks: list[CheckRecord] = field(default_factory=list[CheckRecord])
    figures: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def parity_checks(subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> list[CheckRecord]:
    """The verdict of every parity check; see :func:`parity`."""
    return parity(subject, artefacts, settings).checks


def parity(subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> ParityReport:
    """Compare every graph with the eager model.

    The deterministic graphs are compared on real rows, random draws, zeros and large values, at every
    batch size, and on edge and padded rows; the masked ones against an eager loop over the samples with
    the same masks, and with identity masks against the deterministic model.

    Raises:
        ExportError: if the eager model fails on its own rows.
    """
    bench = _Bench(subject, artefacts, settings)
    bench.deterministic()
    if artefacts.program is not None:
        bench.masked(masked_cases(artefacts.program, artefacts.masks, bench.cases))
    return bench.report


class _Bench:
    """Cases, scales and loaded graphs, made once."""

    def __init__(self, subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> None:
        self.artefacts, self.settings = artefacts, settings
        self.cases = plain_cases(subject, settings)
        self.scales = scales(self.cases)
        self.report = ParityReport()
        self.bisector = Bisector(subject, artefacts, settings)
        self.inputs = [spec.name for spec in artefacts.signature.inputs]
        self.outputs = [spec.name for spec in artefacts.signature.outputs]

    def deterministic(self) -> None:
        """The graphs without masks."""
        onnx_path = self.artefacts.paths[MODEL]
        script_path = self.artefacts.paths.get(MODEL_TS)
        with tempfile.TemporaryDirectory() as folder:
            again: dict[str, Program] = {"ONNX written again": _rewritten(onnx_path)}
            if script_path is not None:
                script = ScriptProgram(script_path, self.inputs, self.outputs)
                self._plain("parity-torchscript", {"TorchScript": _on_arrays(script)})
                copy = Path(folder) / MODEL_TS
                script.save(copy)
                loaded = ScriptProgram(copy, self.inputs, self.outputs)
                again["TorchScript saved again"] = _on_arrays(loaded)
            self._plain("parity-onnx", _levels(onnx_path))
            self._plain("parity-round-trip", again)

    def masked(self, cases: list[MaskedCase]) -> None:
        """The graphs with masks."""
        masks = [spec.name for spec in self.artefacts.masks]
        levels = _levels(self.artefacts.paths[MASKED])
        if (path := self.artefacts.paths.get(MASKED_TS)) is not None:
            script = _on_arrays(ScriptProgram(path, [*self.inputs, *masks], self.outputs))
            self._masked("parity-masked-torchscript", {"TorchScript": script}, cases)
            levels_and_script = {**levels, "TorchScript": script}
        else:
            levels_and_script = levels
        self._masked("parity-masked-onnx", levels, cases)
        identity = ((c.plain, self._with_identity(c.plain.inputs), c.plain.expected) for c in cases)
        self._compare_all("parity-identity-masks", levels_and_script, identity, "against the eager model")
        self._split(cases)

    def _split(self, cases: list[MaskedCase]) -> None:
        """Trunk and head, run as a server runs them, against the eager loop."""
        paths, artefacts = self.artefacts.paths, self.artefacts
        tally = Tally(self.settings.tolerance)
        head = OnnxProgram(paths[HEAD])
        trunk = OnnxProgram(paths[TRUNK]) if TRUNK in paths else None
        engine = MonteCarlo(
            artefacts.sites,
            head,
            trunk,
            head_inputs=set(head.inputs) - {spec.name for spec in artefacts.masks},
            specs=artefacts.signature.inputs,
            chunk_elements=2**16,  # small, so that chunks are crossed here too
        )
        what, failure = "trunk and head" if trunk else "head (no trunk)", None
        for case in cases:
            try:
                got = engine.samples(case.plain.inputs, Settings(samples=SAMPLES, seed=SEED))
            except Exception as error:  # noqa: BLE001  # whatever a runtime raises is a finding
                tally.crashed(error, case.plain.where)
            else:
                self._add(tally, case.plain, case.expected, got, case.plain.where)
            if tally.problem is not None and failure is None:
                failure = Failure(what, case.plain.inputs, case.expected, case.masks)
        told = f"{what} under {SAMPLES} masks, against an eager loop"
        self._record("parity-trunk-and-head", tally, told, failure)

    def _plain(self, name: str, programs: Mapping[str, Program]) -> None:
        runs = ((case, case.inputs, case.expected) for case in self.cases)
        self._compare_all(name, programs, runs, "against the eager model")

    def _masked(self, name: str, programs: Mapping[str, Program], cases: list[MaskedCase]) -> None:
        runs = ((case.plain, case.tiled(), case.flat) for case in cases)
        self._compare_all(name, programs, runs, f"{SAMPLES} masks a row, against an eager loop")

    def _compare_all(
        self,
        name: str,
        programs: Mapping[str, Program],
        runs: Iterable[tuple[Case, dict[str, Array], dict[str, Array]]],
        what: str,
    ) -> None:
        tally, failure = Tally(self.settings.tolerance), None
        for case, inputs, expected in runs:
            for label, program in programs.items():
                where = {"graph": label, **case.where}
                try:
                    got = program(inputs)
                except Exception as error:  # noqa: BLE001  # whatever a runtime raises is a finding
                    tally.crashed(error, where)
                else:
                    self._add(tally, case, expected, got, where)
                if tally.problem is not None and failure is None:
                    failure = Failure(label, inputs, expected)
        levels = sum(label in _LEVEL_NAMES for label in programs)
        others = [label for label in programs if label not in _LEVEL_NAMES]
        graphs = [f"onnxruntime at {levels} levels"] if levels else []
        self._record(name, tally, f"{' and '.join(graphs + others)}, {what}", failure)

    def _add(
        self,
        tally: Tally,
        case: Case,
        expected: Mapping[str, Array],
        got: Mapping[str, Array],
        where: Mapping[str, Any],
    ) -> None:
        # A whole number that differs is another number, however small a share of the greatest it is.
        own = {
            name: max(self.scales[name], magnitude(array)) if array.dtype.kind == "f" else 1.0
            for name, array in expected.items()
        }
        slack = {name: value / (own[name] or 1.0) for name, value in case.slack.items()}
        tally.add(compare(expected, got, own, finite=case.finite), where, slack)

    def _with_identity(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs with masks that change nothing."""
        shifts = {site.shift for site in self.artefacts.sites}
        specs = self.artefacts.masks
        variable = any(not isinstance(axis, int) for spec in specs for axis in spec.shape)
        rows, lengths = len(next(iter(inputs.values()))), {}
        if variable:
            lengths = _lengths(self.artefacts, inputs)
        masks = {
            spec.name: np.full(
                (rows, *spec.sized(lengths)), 0 if spec.name in shifts else 1, dtype=np.float32
            )
            for spec in specs
        }
        return {**inputs, **masks}

    def _record(self, name: str, tally: Tally, what: str, failure: Failure | None) -> None:
        self.report.figures[name] = tally.figures()
        if tally.problem is None or failure is None:
            evidence = f"within {tally.maximum:.1e} of the scale in {tally.runs} runs: {what}"
            self.report.checks.append(CheckRecord(name=name, verdict="passed", evidence=evidence))
            return
        evidence = f"{tally.problem}: {tally.detail}"
        if tally.worst:
            evidence += f"; row {tally.worst['row']}: expected {_few(tally.worst['expected'])}, "
            evidence += f"got {_few(tally.worst['got'])}"
        found = self.bisector.find(failure)
        self.report.figures[name]["bisection"] = found.figures()
        record = CheckRecord(
            name=name,
            verdict="waived" if self.settings.waived(name) else "failed",
            evidence=f"{evidence}. {found.evidence()}",
            remedy=REMEDIES[tally.problem],
            where=found.where,
        )
        self.report.checks.append(record)


def _levels(path: Path) -> dict[str, Program]:
    return {_LEVEL_NAMES[i]: _late(partial(OnnxProgram, path, level)) for i, level in enumerate(LEVELS)}


def _rewritten(path: Path) -> Program:
    def again() -> OnnxProgram:
        with loadable(onnx.load(path)) as source:
            return OnnxProgram(source)

    return _late(again)


def _late(make: Callable[[], OnnxProgram]) -> Program:
    """Load at the first run: what cannot be loaded is a finding too."""
    loaded = cache(make)

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return loaded()(inputs)

    return run


def _on_arrays(program: ScriptProgram) -> Program:
    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in inputs.items()}
        return {name: tensor.numpy() for name, tensor in program(tensors).items()}

    return run


def _lengths(artefacts: Artefacts, inputs: Mapping[str, Array]) -> dict[str, int]:
    return {
        axis.name: size
        for spec in artefacts.signature.inputs
        for axis, size in zip(spec.shape, inputs[spec.name].shape[1:], strict=True)
        if not isinstance(axis, int)
    }


def _few(values: list[Any]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values[:4]) + (", ...]" if len(values) > 4 else "]")
