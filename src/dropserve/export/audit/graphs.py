"""The exported files: nothing random in them, before and after optimisation, and no switch left to turn."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from dropserve.export.artefacts import MODEL, MODEL_TS, Artefacts
from dropserve.export.external import data_file
from dropserve.export.onnx import OnnxProgram
from dropserve.export.torchscript import ScriptProgram

from . import generators
from .differ import compare
from .onnx_scan import scan
from .outcome import Examination, Outcome, failed, passed, skipped
from .script_scan import scan_script

_NO_GRAPHS = "not judged: no graphs were built"
_REMEDY = "turn it off in eval mode in the eager model, and export again"


def onnx_random_operators(exam: Examination) -> Outcome:
    """No ONNX file holds a random operator, an open Dropout or a BatchNormalization in training mode."""
    if exam.artefacts is None:
        return skipped(_NO_GRAPHS)
    return _scanned({path.name: path.read_bytes() for path in _onnx_files(exam.artefacts)}, "as exported")


def onnx_random_operators_optimised(exam: Examination) -> Outcome:
    """The same of what onnxruntime makes of the files when it optimises them."""
    if exam.artefacts is None:
        return skipped(_NO_GRAPHS)
    with tempfile.TemporaryDirectory() as folder:
        graphs = {path.name: _optimised(path, Path(folder)) for path in _onnx_files(exam.artefacts)}
    return _scanned(graphs, "as onnxruntime optimises them")


def onnx_repeated_runs(exam: Examination) -> Outcome:
    """A session gives the same bits twice, and so does a second session."""
    if exam.artefacts is None:
        return skipped(_NO_GRAPHS)
    path = exam.artefacts.paths[MODEL]
    arrays = {name: np.ascontiguousarray(t.numpy()) for name, t in exam.inputs.items()}
    for level in ("disabled", "all"):
        first, second = OnnxProgram(path, level), OnnxProgram(path, level)
        runs = [_tensors(program(arrays)) for program in (first, first, second)]
        for other in runs[1:]:
            difference = compare(runs[0], other)
            if not difference.identical:
                return failed(
                    f"two runs of {path.name} (optimisation {level}): {difference}",
                    "the graph draws numbers or keeps state: change the eager line that it comes from",
                )
    return passed(f"{path.name}: two runs and a second session bit-equal, optimisation off and full")


def torchscript_random_operators(exam: Examination) -> Outcome:
    """No TorchScript file holds a random operator whose flag is on, or batch statistics."""
    files = _script_files(exam)
    if not files:
        return skipped("not judged: no TorchScript was built")
    total = 0
    for path in files:
        findings, count = scan_script(ScriptProgram(path, (), ()).module)
        if findings:
            found = findings[0]
            return failed(f"{path.name}: {found.node} {found.why}", _REMEDY, found.where)
        total += count
    return passed(f"none among {total} operators of {', '.join(path.name for path in files)}")


def torchscript_mode_switch(exam: Examination) -> Outcome:
    """A loaded TorchScript model draws nothing and answers alike in eval and in train mode."""
    if exam.artefacts is None or MODEL_TS not in exam.artefacts.paths:
        return skipped("not judged: no TorchScript was built")
    names = [spec.name for spec in exam.artefacts.signature.outputs]
    program = ScriptProgram(exam.artefacts.paths[MODEL_TS], list(exam.inputs), names)
    before = generators.torch_state()
    answers = {"eval": program(exam.inputs)}
    program.module.train()
    answers["train"] = program(exam.inputs)
    moved = generators.torch_state() != before
    difference = compare(answers["eval"], answers["train"])
    if difference.identical and not moved:
        return passed("bit-equal in both modes; torch's generator did not move")
    return failed(
        f"train() of the loaded file changes the answer: {difference}"
        + ("; torch's generator moved" if moved else ""),
        "trace the model in eval mode: torch.jit.script keeps dropout, and train() turns it on again",
        exam.probe.placer.root_place(),
    )


def _scanned(graphs: Mapping[str, bytes], state: str) -> Outcome:
    total = 0
    for name, content in graphs.items():
        findings, count = scan(onnx.load_model_from_string(content))
        if findings:
            found = findings[0]
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            return failed(f"{name} {state}: {found.node} {found.why}{more}", _REMEDY, found.where)
        total += count
    return passed(f"none among {total} nodes of {', '.join(graphs)} {state}")


def _optimised(path: Path, folder: Path) -> bytes:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    target = folder / path.name
    options.optimized_model_filepath = str(target)
    if data_file(path).is_file():  # the weights do not fit into one file
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, data_file(path).name)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return target.read_bytes()


def _onnx_files(artefacts: Artefacts) -> list[Path]:
    return [path for path in artefacts.paths.values() if path.suffix == ".onnx"]


def _script_files(exam: Examination) -> list[Path]:
    if exam.artefacts is None:
        return []
    return [path for path in exam.artefacts.paths.values() if path.suffix == ".ts"]


def _tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
