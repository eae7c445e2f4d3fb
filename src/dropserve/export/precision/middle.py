"""Which nodes of a graph are worth a lower precision, and which must keep float32."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
from onnx import ModelProto, NodeProto, TensorProto

# Products with weights: where the bytes and the arithmetic are.
HEAVY = frozenset({"Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})

# What torch.amp computes in float32 ("CUDA ops that can autocast to float32"): sums, powers, exponentials.
_WIDE = (
    "Acos Asin BatchNormalization Cosh CumSum Exp GroupNormalization InstanceNormalization Log LogSoftmax "
    "LayerNormalization LpNormalization Mod Pow RMSNormalization Reciprocal ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceMean ReduceProd ReduceSum ReduceSumSquare Sinh Softmax Softplus Sqrt Tan"
)

_MOVES = (
    "Cast CastLike Concat Expand Flatten Gather GatherElements GatherND Identity Pad Reshape Slice Split "
    "Squeeze Tile Transpose Unsqueeze"
)


def name_nodes(model: ModelProto) -> None:
    """Give each node a name of its own: tools choose nodes by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def middle(model: ModelProto, masks: Collection[str]) -> set[str]:
    """Names of the nodes that may compute in a lower precision.

    Those between the first and the last product with weights: what comes before is the scaling of raw inputs,
    what comes after is that of the targets, and both may hold numbers of any size. Among them, those that
    need no more range or precision. Never those that a mask reaches first: a mask is multiplied in float32,
    so that 1/(1 - p) is what was drawn.

    Args:
        model: its nodes have names.
        masks: names of the inputs that are masks.
    """
    nodes = list(model.graph.node)
    tables = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    heavy = [node for node in nodes if node.op_type in HEAVY or is_table(node, tables)]
    after = _reached(nodes, heavy)
    before = _leading(nodes, heavy)
    wide = set(_WIDE.split())
    masking = {node.name for node in touched(model, masks)}
    return {n.name for n in nodes if n.name in after & before and n.op_type not in wide} - masking


def moves(node: NodeProto) -> bool:
    """Whether a node moves numbers and computes none."""
    return node.op_type in _MOVES.split()


def is_table(node: NodeProto, initializers: Collection[str]) -> bool:
    """Whether a node looks rows up in a table of weights: an embedding."""
    return node.op_type == "Gather" and node.input[0] in initializers


def touched(model: ModelProto, masks: Collection[str]) -> list[NodeProto]:
    """The nodes that a mask enters before it meets anything else, and those in which it does."""
    alone, found = set(masks), list[NodeProto]()
    for node in model.graph.node:
        if alone.isdisjoint(node.input):
            continue
        found.append(node)
        if moves(node):
            alone.update(node.output)
    return found


def value_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor that shape inference can tell."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def followed_by_heavy(model: ModelProto) -> set[str]:
    """Names of the nodes after which a product with weights still comes."""
    nodes = list(model.graph.node)
    heavy = [node for node in nodes if node.op_type in HEAVY]
    read = {name for node in heavy for name in node.input if name}
    return _leading(nodes, [node for node in nodes if not read.isdisjoint(node.output)])


def _leading(nodes: Sequence[NodeProto], ends: Iterable[NodeProto]) -> set[str]:
    """Names of the nodes that lead to some, themselves among them."""
    return _reached([_turned(node) for node in reversed(nodes)], [_turned(node) for node in ends])


def _reached(nodes: Iterable[NodeProto], sources: Iterable[NodeProto]) -> set[str]:
    """Names of the nodes that follow from some, themselves among them."""
    first = {node.name for node in sources}
    names, tensors = set[str](), set[str]()
    for node in nodes:
        if node.name in first or not tensors.isdisjoint(filter(None, node.input)):
            names.add(node.name)
            tensors.update(filter(None, node.output))
    return names


def _turned(node: NodeProto) -> NodeProto:
    """The node with inputs and outputs exchanged, to walk a graph backwards."""
    return NodeProto(name=node.name, op_type=node.op_type, input=node.output, output=node.input)
