"""A graph without what only its maker needed: constants worked out, traces of the source left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto, helper

from dropserve.export.metadata import without_notes
from dropserve.export.onnx import OnnxProgram


def folded(model: ModelProto) -> ModelProto:
    """What onnxruntime makes of a graph when it works out constants, in ONNX's own operators.

    Weights that the exporter slices and stacks (LSTM) become one tensor each, which can be converted.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        OnnxProgram(model.SerializeToString(), "basic", optimised=target)
        result = onnx.load(target)
    without_notes(result)
    del result.metadata_props[:]
    result.metadata_props.extend(model.metadata_props)
    used = {node.domain for node in result.graph.node} | {""}
    domains = [(entry.domain, entry.version) for entry in result.opset_import if entry.domain in used]
    del result.opset_import[:]
    result.opset_import.extend(helper.make_opsetid(*entry) for entry in domains)
    return result
