"""fp16: weights and the products with them in half precision, float32 at the edges and around the masks."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dropserve.errors import ExportError
from dropserve.export.quiet import quiet

from .middle import middle, name_nodes, value_types
from .order import pruned, topological

LARGEST = float(np.finfo(np.float16).max)


def to_fp16(model: ModelProto, masks: Collection[str]) -> tuple[ModelProto, int]:
    """Convert a graph; its inputs and outputs keep their types.

    Args:
        model: a float32 graph; it is changed.
        masks: names of the inputs that are masks.

    Returns:
        The new graph, and how many of its nodes were converted.

    Raises:
        ExportError: if a weight is beyond what fp16 can hold.
    """
    # Imported here: an export in float32 does without.
    from onnxruntime.transformers.float16 import (  # noqa: PLC0415
        DEFAULT_OP_BLOCK_LIST,
        convert_float_to_float16,
    )

    name_nodes(model)
    chosen = {n.name for n in model.graph.node if n.op_type not in DEFAULT_OP_BLOCK_LIST}
    chosen &= middle(model, masks)
    _require_range(model, chosen)
    kept = [node.name for node in model.graph.node if node.name not in chosen]
    with quiet():
        converted: ModelProto = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    del converted.graph.value_info[:]  # some of it is wrong now, and nobody needs it
    topological(converted)
    _without_detours(converted)
    return converted, len(chosen)


def _require_range(model: ModelProto, chosen: Collection[str]) -> None:
    """The converter cuts a weight off at the largest number without a word."""
    used = {name for node in model.graph.node if node.name in chosen for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            largest = float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))
            if largest > LARGEST:
                raise ExportError(
                    f"weight {tensor.name!r} holds {largest:.3g}, and fp16 ends at {LARGEST:.0f}: use "
                    "--precision fp32, or scale the weight in the model"
                )


def _without_detours(model: ModelProto) -> None:
    """Let float32 that was to become half precision and float32 again stay as it is.

    The converter casts every input of the graph, then casts back before a node that keeps float32: masks
    would be rounded on the way to their product.
    """
    types, graph = value_types(model), model.graph
    narrowed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT16) and types.get(node.input[0]) == TensorProto.FLOAT
    }
    direct = {
        node.output[0]: narrowed[node.input[0]]
        for node in graph.node
        if _casts_to(node, TensorProto.FLOAT) and node.input[0] in narrowed
    }
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.output[0] in direct and node.output[0] in outputs:
            source = direct[node.output[0]]
            straight = helper.make_node("Identity", [source], list(node.output), name=node.name)
            node.CopyFrom(straight)
            continue
        for index in range(len(node.input)):
            while node.input[index] in direct:
                node.input[index] = direct[node.input[index]]
    pruned(model)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == kind for a in node.attribute)
