"""ONNX: write a graph with a dynamic batch, check it, and run it in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.errors import ExportError
from dropserve.signature import Axis, TensorSpec

from . import external
from .exportable import TRANSLATIONS, Exportable
from .quiet import cause, quiet
from .settings import SINGLE_FILE

Array = NDArray[Any]
Level = Literal["disabled", "basic", "extended", "layout", "all"]
BATCH = "batch"
_IR_VERSION = 10  # the newest that every onnxruntime we allow (1.20 on) reads

_OPTIMISATION: dict[Level, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
LEVELS: tuple[Level, ...] = tuple(
    level for level, name in _OPTIMISATION.items() if hasattr(ort.GraphOptimizationLevel, name)
)


class OnnxProgram:
    """A graph in onnxruntime: arrays by name in, arrays by name out.

    Args:
        source: a file, or a serialised model.
        level: how far onnxruntime optimises it.
        threads: of one operator.
        optimised: where to write the graph that the session really runs.

    Raises:
        ExportError: if onnxruntime refuses the graph.
    """

    def __init__(
        self, source: Path | bytes, level: Level = "all", threads: int = 1, optimised: Path | None = None
    ) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMISATION[level])
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong raises; stderr need not hear of it
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        content = str(source) if isinstance(source, Path) else source
        self._name = source.name if isinstance(source, Path) else "a graph"
        try:
            self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(
                f"onnxruntime cannot load {self._name} on a CPU: {cause(error)}. It lacks an operator, or "
                "one in this dtype (hardly any takes bfloat16): compute in float32, or in other operators."
            ) from error
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        self.outputs = tuple(node.name for node in self.session.get_outputs())

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph; names that it does not take are ignored.

        Raises:
            ExportError: if onnxruntime gives up on the way.
        """
        fed = {name: inputs[name] for name in self.inputs}
        try:
            results = map(np.asarray, self.session.run(self.outputs, fed))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in fed.items())
            raise ExportError(
                f"onnxruntime loads {self._name}, but fails when it runs on {shapes}: {cause(error)}. "
                "If PyTorch computes the same rows, an operator was exported wrongly: compute in others."
            ) from error
        return dict(zip(self.outputs, results, strict=True))


def export_onnx(
    program: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    examples: Mapping[str, torch.Tensor],
    path: Path,
    *,
    opset: int,
    limit: int = SINGLE_FILE,
) -> None:
    """Write a program as an ONNX file whose batch, and whose variable axes, are dynamic.

    Args:
        program: ``forward(*tensors)`` gives a tuple of tensors, axis 0 of each the batch.
        inputs: names, dtypes and shapes per row, in the order of ``forward``.
        outputs: names for what it returns, in order.
        examples: rows to run it on, variable axes at their greatest length.
        path: the file to write.
        opset: ONNX operator set.
        limit: bytes of weights above which they go into a second file.

    Raises:
        ExportError: if the exporter or the checker refuses; the message says where and what to change.
    """
    exported = translated(program, inputs, outputs, examples, opset=opset)
    with quiet():
        model = exported.model_proto
    model.ir_version = min(model.ir_version, _IR_VERSION)
    _require_interface(model, inputs, outputs)
    write_onnx(model, path, limit)


def translated(
    program: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    examples: Mapping[str, torch.Tensor],
    *,
    opset: int,
) -> torch.onnx.ONNXProgram:
    """What the exporter makes of a program; the arguments are those of :func:`export_onnx`.

    Returns:
        The graph as ``model_proto``, and as ``exported_program`` the operators of torch behind it, whose
        names are those of the graph's tensors.

    Raises:
        ExportError: if the exporter refuses.
    """
    with quiet(), torch.no_grad(), no_fused_attention(), Exportable():
        try:
            exported = torch.onnx.export(
                program,
                tuple(examples[spec.name] for spec in inputs),
                dynamo=True,
                dynamic_shapes=(dynamic_axes(inputs),),
                input_names=[spec.name for spec in inputs],
                output_names=list(outputs),
                opset_version=opset,
                custom_translation_table=TRANSLATIONS,
                external_data=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"the model cannot be exported to ONNX: {cause(error)}. An exporter follows tensors: it "
                "cannot follow Python decisions taken from their values."
            ) from error
    if exported is None:
        raise ExportError("the ONNX exporter gave no graph")
    _apart(exported)
    return exported


def _apart(exported: torch.onnx.ONNXProgram) -> None:
    """Rename tensors inside a graph that are called like an input or output of it.

    The exporter calls them after torch's operators and the ends as it is told to, so an input ``pad`` of a
    model that pads would be two tensors of one name.
    """
    graph = exported.model.graph
    ends = {*graph.inputs, *graph.outputs}
    taken = {value.name for value in ends}
    made = (value for node in graph.all_nodes() for value in node.outputs)
    for value in (*made, *list(graph.initializers.values())):
        if value.name in taken and value not in ends:
            value.name = f"{value.name}.inside"


def write_onnx(model: onnx.ModelProto, path: Path, limit: int = SINGLE_FILE) -> None:
    """Check a model with ONNX's own checker and write it: see :func:`external.save`.

    Raises:
        ExportError: if the checker refuses it.
    """
    fits = external.weight_bytes(model) <= SINGLE_FILE  # the checker needs a file otherwise
    if fits:
        _check(model, path)
    external.save(model, path, limit)
    if not fits:
        _check(path, path)


def _check(model: onnx.ModelProto | Path, path: Path) -> None:
    try:
        onnx.checker.check_model(model if isinstance(model, onnx.ModelProto) else str(model), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name} is not valid ONNX: {cause(error)}") from error


def dynamic_axes(inputs: Sequence[TensorSpec]) -> tuple[dict[int, Any], ...]:
    """For each input, which axes are free, as ``torch.export`` wants them.

    Raises:
        ExportError: if a variable axis is called like the batch.
    """
    batch = torch.export.Dim(BATCH)
    axes: dict[str, Any] = {}
    for spec in inputs:
        for axis in spec.shape:
            if isinstance(axis, Axis):
                if axis.name == BATCH:
                    raise ExportError(f"input {spec}: {BATCH!r} names axis 0; give this axis another name")
                axes.setdefault(axis.name, torch.export.Dim(axis.name, max=axis.maximum))
    return tuple(
        {0: batch, **{i: axes[a.name] for i, a in enumerate(spec.shape, 1) if isinstance(a, Axis)}}
        for spec in inputs
    )


def _require_interface(model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> None:
    """The exporter may drop or rename inputs, and fixes a size rather than fail: it says nothing of it."""
    got = [value.name for value in model.graph.input], [value.name for value in model.graph.output]
    expected = [spec.name for spec in inputs], list(outputs)
    if got != expected:
        raise ExportError(f"the exporter changed the interface: expected {expected}, got {got}")
    for spec, value in zip(inputs, model.graph.input, strict=True):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        free = [BATCH, *(axis.name if isinstance(axis, Axis) else axis for axis in spec.shape)]
        if dims != free:
            raise ExportError(
                f"input {spec.name!r} must take any {free}, but the model fixes it to {dims}: somewhere it "
                "compares a size with a number, or writes one down, as in x.reshape(2, 8). Take sizes from "
                "the tensor: x.reshape(x.shape[0], -1)."
            )


def numpy_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Tensors as numpy arrays, contiguous."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
