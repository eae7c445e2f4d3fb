"""What flows where in a masked graph: masks, values of the inputs, and the number of rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from onnx import AttributeProto, ModelProto, NodeProto

# The position of the input that only says how long the output is.
_FORM: Mapping[str, int] = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0}


class Flow:
    """What the rules need to know of a masked graph."""

    def __init__(self, model: ModelProto, masks: Collection[str]) -> None:
        graph = model.graph
        self.model = model
        self.masks = [value for value in graph.input if value.name in masks]
        self.inputs = [value for value in graph.input if value.name not in masks]
        self.outputs = list(graph.output)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.values = {v.name: v for v in (*graph.value_info, *graph.output, *graph.input)}
        self.batch = self.dims(self.masks[0].name)[0]
        self.masked = {value.name for value in self.masks}
        self.fed = {value.name for value in self.inputs}  # tensors whose values come from the inputs
        self.sized: set[str] = set()  # tensors whose values come from the number of rows
        self.nodes = [self._follow(self._unmasked(node)) for node in graph.node]
        self.producer = {name: node for node in self.nodes for name in node.output if name}

    def dims(self, name: str) -> tuple[int | str | None, ...]:
        """The axes of a tensor: numbers, symbols, None where unknown; ``(None,)`` if nothing is known."""
        value = self.values.get(name)
        if value is None or not value.type.tensor_type.HasField("shape"):
            return (None,)
        return tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None)
            for d in value.type.tensor_type.shape.dim
        )

    def measured(self, node: NodeProto) -> tuple[int | str | None, ...]:
        """The axes whose lengths a ``Shape`` or ``Size`` node gives."""
        dims = self.dims(node.input[0])
        if node.op_type == "Size" or dims == (None,):
            return dims
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return dims[slice(bounds.get("start", 0), bounds.get("end"))]

    def batch_axis(self, name: str) -> int | None:
        """The only axis that is the batch; None if there is none, or it is folded, or not known."""
        dims = self.dims(name)
        with_batch = [axis for axis, dim in enumerate(dims) if self._tells_rows(dim)]
        return with_batch[0] if len(with_batch) == 1 and dims[with_batch[0]] == self.batch else None

    def may_cross(self, name: str) -> bool:
        """Rules one and two."""
        if name in self.masked or name in self.sized or name not in self.fed:
            return False
        return self.batch_axis(name) is not None

    def _tells_rows(self, dim: int | str | None) -> bool:
        return dim is None or (isinstance(dim, str) and re.search(rf"\b{self.batch}\b", dim) is not None)

    def _unmasked(self, node: NodeProto) -> NodeProto:
        """The exporter reads the batch size wherever it stands, from a mask too; have an input tell it."""
        if node.op_type != "Shape" or node.input[0] not in self.masked:
            return node
        same = (value.name for value in self.inputs if self.agree(node, value.name))
        return measuring(node, next(same, node.input[0]))

    def agree(self, node: NodeProto, other: str) -> bool:
        """Whether a ``Shape`` node gives the same lengths when it measures another tensor."""
        measured = self.measured(node)
        return None not in measured and measured == self.measured(measuring(node, other))

    def _follow(self, node: NodeProto) -> NodeProto:
        given = set(node.input)
        if given & self.masked:
            self.masked.update(node.output)
        if node.op_type in {"Shape", "Size"}:
            if any(map(self._tells_rows, self.measured(node))):
                self.sized.update(node.output)
            return node
        if node.op_type == "EyeLike" and any(map(self._tells_rows, self.dims(node.input[0]))):
            self.sized.update(node.output)
        form = _FORM.get(node.op_type)
        values = {name for position, name in enumerate(node.input) if position != form}
        if values & self.fed:
            self.fed.update(node.output)
        if values & self.sized:
            self.sized.update(node.output)
        return node


def measuring(node: NodeProto, source: str) -> NodeProto:
    """The same ``Shape`` node for another tensor."""
    moved = NodeProto()
    moved.CopyFrom(node)
    moved.input[0] = source
    return moved


def followable(model: ModelProto) -> bool:
    """Whether all that happens is in the graph's own nodes: no control flow, no local functions."""
    kinds = {AttributeProto.GRAPH, AttributeProto.GRAPHS}
    inner = any(attribute.type in kinds for node in model.graph.node for attribute in node.attribute)
    return not inner and not model.functions
