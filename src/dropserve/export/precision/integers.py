"""int8: products with weights in integers, with scales that are fixed before anybody asks.

*Static* quantisation: the scale of each tensor of activations is found on held-out rows and written into the
graph (QuantizeLinear, DequantizeLinear). *Dynamic* quantisation would take it from the batch at hand, and a
row's answer would move with its batch-mates: by 19% of the output's scale, in one trial.

Weights have 7 bits, one scale for each output channel. On processors without VNNI, onnxruntime adds pairs of
products in 16 bits; with 8 bits the sum can overflow, and one host would answer otherwise than another.

Recurrent layers and embeddings have no integer form with fixed scales in onnxruntime. Their weights are
stored in 8 bits and turned into float32 when the graph is loaded: smaller files, float32 arithmetic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dropserve.export.comparison import Array
from dropserve.export.quiet import quiet

from .middle import followed_by_heavy, is_table, middle, name_nodes
from .order import pruned, topological

_QUANTISED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_SMALL = 64  # numbers: less is not worth a scale

Feeds = Iterable[Mapping[str, Array]]


def to_int8(model: ModelProto, masks: Collection[str], feeds: Feeds) -> tuple[ModelProto, int]:
    """Convert a graph; its inputs and outputs keep their types, and masks are not quantised.

    Args:
        model: a folded float32 graph of less than 2 GiB; it is changed.
        masks: names of the inputs that are masks.
        feeds: what the graph will be asked, for the ranges of its activations.

    Returns:
        The new graph, and how many of its nodes compute in integers or from weights of 8 bits.
    """
    name_nodes(model)
    chosen = _with_weights(model, middle(model, masks))
    last = _last(model, chosen)
    quantised = _quantised(model, chosen, feeds) if chosen else model
    _not_rounded(quantised, last)
    packed = _packed(quantised)
    topological(quantised)
    pruned(quantised)
    return quantised, len(chosen) + packed


def _with_weights(model: ModelProto, allowed: Collection[str]) -> list[str]:
    weights = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    return [
        node.name
        for node in model.graph.node
        if node.name in allowed and node.op_type in _QUANTISED and node.input[1] in weights
    ]


def _quantised(model: ModelProto, chosen: list[str], feeds: Feeds) -> ModelProto:
    # Imported here: an export in float32 does without.
    from onnxruntime.quantization import (  # noqa: PLC0415
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[Mapping[str, Array]] = iter(feeds)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder, quiet(), _runtime_quiet():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            str(target),
            Rows(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[*chosen, *_rectified(model, chosen)],
            op_types_to_quantize=[*sorted(_QUANTISED), "Relu"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Of these three, MatMul alone has a fast kernel that gives float32 whatever follows.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        return onnx.load(target)


def _rectified(model: ModelProto, chosen: Collection[str]) -> list[str]:
    """The ReLUs that follow: quantised with their product, they leave no bits to negative numbers."""
    outputs = {name for node in model.graph.node if node.name in chosen for name in node.output}
    return [node.name for node in model.graph.node if node.op_type == "Relu" and node.input[0] in outputs]


def _last(model: ModelProto, chosen: Collection[str]) -> set[str]:
    """The results of products that no other follows: answers, but for a scaling or an activation."""
    followed = followed_by_heavy(model)
    rectified = set(_rectified(model, chosen))
    into = {name for node in model.graph.node if node.name in rectified for name in node.input}
    nodes = (n for n in model.graph.node if n.op_type == "Gemm" and n.name in set(chosen) - followed)
    return {node.output[0] for node in nodes} - into


def _not_rounded(model: ModelProto, tensors: Collection[str]) -> None:
    """Take the rounding off some results: answers are not cut to 256 values within a range."""
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    rounding = {node.input[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    restoring = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for name in tensors:
        made = producer[name]
        if made.op_type == "DequantizeLinear":  # an output of the graph: the product has another name now
            product = producer[producer[made.input[0]].input[0]]
            product.output[0], made.output[0] = name, f"{name}.rounded"  # which nobody reads
        elif name in rounding:
            rounded = restoring[rounding[name].output[0]].output[0]
            for node in graph.node:
                node.input[:] = [name if given == rounded else given for given in node.input]


def _packed(model: ModelProto) -> int:
    """Store the weights of recurrent layers and embeddings in 8 bits, each row with its scale."""
    graph = model.graph
    tables = {
        t.name: t
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT and np.prod(list(t.dims), initial=1) >= _SMALL
    }
    users = [node for node in graph.node if node.op_type in _RECURRENT or is_table(node, tables)]
    names = {name for node in users for name in _weights(node) if name in tables}
    for name in names:
        weights = numpy_helper.to_array(tables[name])
        graph.initializer.remove(tables[name])
        scale = np.abs(weights).max(axis=-1, keepdims=True) / 127
        scale[scale == 0] = 1
        packed = np.rint(weights / scale).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(packed, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
        # Not DequantizeLinear: onnxruntime leaves that to run at every call, and folds these when it loads.
        graph.node.append(
            helper.make_node(
                "Cast", [f"{name}.int8"], [f"{name}.float"], f"{name}.cast", to=TensorProto.FLOAT
            )
        )
        graph.node.append(helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name], f"{name}.mul"))
    return sum(not names.isdisjoint(_weights(node)) for node in users)


def _weights(node: NodeProto) -> list[str]:
    return [node.input[0]] if node.op_type == "Gather" else list(node.input[1:3])


class _runtime_quiet:  # noqa: N801  # used as a function
    """Onnxruntime warns on stderr of what its own calibration leaves behind."""

    def __enter__(self) -> None:
        ort.set_default_logger_severity(4)

    def __exit__(self, *_: object) -> None:
        ort.set_default_logger_severity(2)
