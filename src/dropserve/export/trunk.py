"""Cut a masked graph in two: the trunk, that no mask reaches and that runs once, and the head.

The trunk runs on B rows and the head on T x B, so a tensor may cross only if tiling it is the same as
computing it from tiled inputs. Three rules see to that:

- exactly one of its axes is the batch, alone and not folded with another (symbolic shapes tell). If it is
  not axis 0, the trunk moves it to the front and the head moves it back;
- none of its values is made from the number of rows. ``Shape`` gives such numbers; they may shape a tensor
  (``Reshape``, ``Expand``) but not become values of it. The head works them out again from its own inputs;
- *behaviour*: the crossing tensors are computed from rows and from tiled rows, and compared. A ``Reshape``
  that mixes rows on its way to the right shape is caught here.

What may not cross is computed in the head, so the cut moves up past it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper

from .external import loadable
from .flow import Flow, followable, measuring
from .onnx import Array, OnnxProgram

ROWS = ".rows"  # ends the name of a tensor that crosses under another name than it had

# Work that is not worth a cut: it moves or touches each number once, as tiling does.
_CHEAP = (
    "Abs Add And BatchNormalization BitwiseNot Cast CastLike Ceil Clip Concat Constant ConstantOfShape Div "
    "Equal Expand Flatten Floor Gather Greater GreaterOrEqual Identity IsInf IsNaN LeakyRelu Less "
    "LessOrEqual Max Min Mul Neg Not Or Pad Range Reciprocal Relu Reshape Round Shape Sign Size Slice Split "
    "Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
)


@dataclass(frozen=True)
class Split:
    """A masked graph in two parts.

    Attributes:
        trunk: takes every input, gives what the head needs of them; None if it would save nothing.
        head: takes the trunk's outputs (or the inputs, without a trunk) and the masks.
        reason: one line for people: how much runs once, or why there is no trunk.
    """

    trunk: ModelProto | None
    head: ModelProto
    reason: str


def split(
    model: ModelProto, masks: Collection[str], rows: Mapping[str, Array], folder: Path | None = None
) -> Split:
    """Cut a masked graph.

    Args:
        model: takes inputs and masks, axis 0 of each the batch.
        masks: names of the inputs that are masks.
        rows: a few rows for each other input, for the test of behaviour.
        folder: where the files are that hold its weights, if it has none itself; the parts then neither.

    Returns:
        The parts; without a trunk if nothing costly comes before the first mask, or if the graph holds
        control flow or local functions, whose insides this does not follow.
    """
    if not masks:
        return Split(None, model, "no masks")
    if not followable(model):
        return Split(None, model, "no trunk: the graph holds control flow")
    graph = Flow(model, masks)
    barred: set[str] = set()
    while True:
        cut = _Cut(graph, barred)
        if all(node.op_type in _CHEAP.split() for node in cut.trunk_nodes):
            return Split(None, model, "no trunk: nothing costly comes before the first mask")
        trunk = cut.trunk()
        if not (failed := _not_rowwise(trunk, rows, folder)):
            break
        barred |= {name.removesuffix(ROWS) for name in failed}
    total = len(model.graph.node)
    crossing = ", ".join(cut.crossing)
    reason = f"{len(cut.trunk_nodes)} of {total} nodes run once; the cut is at {crossing}"
    return Split(trunk, cut.head(), reason)


class _Cut:
    """The latest cut that the rules allow, but for the tensors in ``barred``."""

    def __init__(self, graph: Flow, barred: Collection[str]) -> None:
        self.graph = graph
        self.crossing: dict[str, None] = {}  # in the order in which they were met
        self._anchors: dict[str, str] = {}  # output of a Shape node: what the head measures instead
        self._head = self._gather_head(barred)
        self.trunk_nodes = _ancestors(graph, self.crossing)

    def _gather_head(self, barred: Collection[str]) -> set[str]:
        """Names that the head computes; on the way, what crosses and what it measures instead."""
        graph = self.graph
        wanted = [value.name for value in graph.outputs]
        computed: set[str] = set()
        shapes: list[NodeProto] = []
        while wanted or shapes:
            if not wanted:
                node = shapes.pop()
                self._measure(node, wanted)
                continue
            name = wanted.pop()
            node = graph.producer.get(name)
            if name in computed or name in self.crossing or name in graph.constants or not name:
                continue
            if name in graph.masked and node is None:
                continue
            if node is None or (graph.may_cross(name) and name not in barred):
                self.crossing[name] = None
                continue
            computed.update(node.output)
            if node.op_type in {"Shape", "Size"} and name not in graph.masked:
                shapes.append(node)  # late: by then it is known what crosses anyway
            else:
                wanted.extend(node.input)
        return computed

    def _measure(self, node: NodeProto, wanted: list[str]) -> None:
        """Take a length from a tensor that the head has; have one cross for it only if there is none."""
        graph, source = self.graph, node.input[0]
        if node.op_type == "Shape":
            for name in (*(value.name for value in graph.masks), *self.crossing):
                if graph.agree(node, name):
                    self._anchors[node.output[0]] = name
                    return
        if source not in self.crossing:
            wanted.append(source)

    def trunk(self) -> ModelProto:
        """The trunk: every input, to what crosses."""
        graph = self.graph
        nodes, outputs = list(self.trunk_nodes), []
        for name in self.crossing:
            if (alias := self._alias(name)) != name:
                axis = graph.batch_axis(name) or 0
                nodes.append(_move(name, alias, _front(graph, name) if axis else None))
            outputs.append(self._row_value(name))
        return _model(graph, nodes, graph.inputs, outputs, "trunk")

    def head(self) -> ModelProto:
        """The head: what crosses and the masks, to the outputs."""
        graph = self.graph
        nodes: list[NodeProto] = []
        for name in self.crossing:
            if (alias := self._alias(name)) != name:
                axis = graph.batch_axis(name) or 0
                back = np.argsort(_front(graph, name)).tolist() if axis else None
                nodes.append(_move(alias, name, back))
        for node in graph.nodes:
            if not self._head.intersection(node.output):
                continue
            anchor = self._anchors.get(node.output[0])
            nodes.append(node if anchor is None else measuring(node, anchor))
        inputs = [*(self._row_value(name) for name in self.crossing), *graph.masks]
        return _model(graph, nodes, inputs, graph.outputs, "head")

    def _alias(self, name: str) -> str:
        """Inputs and outputs cannot cross under their own names, nor what is moved to the front."""
        graph = self.graph
        taken = {value.name for value in (*graph.inputs, *graph.outputs)}
        return name + ROWS if name in taken or graph.batch_axis(name) else name

    def _row_value(self, name: str) -> onnx.ValueInfoProto:
        graph = self.graph
        dims = graph.dims(name)
        order = _front(graph, name) if graph.batch_axis(name) else range(len(dims))
        kind = graph.values[name].type.tensor_type.elem_type
        return helper.make_tensor_value_info(self._alias(name), kind, [dims[axis] for axis in order])


def _front(graph: Flow, name: str) -> list[int]:
    """The order of axes that puts the batch first."""
    axis = graph.batch_axis(name) or 0
    return [axis, *(other for other in range(len(graph.dims(name))) if other != axis)]


def _move(source: str, target: str, order: Sequence[int] | None) -> NodeProto:
    if order is None:
        return helper.make_node("Identity", [source], [target], name=f"row_{target}")
    return helper.make_node("Transpose", [source], [target], name=f"row_{target}", perm=list(order))


def _ancestors(graph: Flow, names: Iterable[str]) -> list[NodeProto]:
    """The nodes behind some tensors, in the graph's order."""
    wanted, seen = list(names), set[str]()
    while wanted:
        node = graph.producer.get(wanted.pop())
        if node is not None and not seen.issuperset(filter(None, node.output)):
            seen.update(node.output)
            wanted.extend(node.input)
    return [node for node in graph.nodes if seen.intersection(filter(None, node.output))]


def _model(
    graph: Flow,
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    name: str,
) -> ModelProto:
    used = {given for node in nodes for given in node.input}
    made = {given for node in nodes for given in node.output}
    ends = {value.name for value in (*inputs, *outputs)}
    part = ModelProto()
    part.CopyFrom(graph.model)
    del part.graph.node[:], part.graph.input[:], part.graph.output[:]
    del part.graph.initializer[:], part.graph.value_info[:]
    part.graph.name = name
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(t for key, t in graph.constants.items() if key in used)
    part.graph.value_info.extend(
        value for key, value in graph.values.items() if key in made and key not in ends
    )
    return part


def _not_rowwise(trunk: ModelProto, rows: Mapping[str, Array], folder: Path | None) -> set[str]:
    """Rule three: the outputs for which computing from tiled rows is not tiling."""
    with loadable(trunk, folder) as source:
        program = OnnxProgram(source, "disabled")
    failed: set[str] = set()
    count = len(next(iter(rows.values())))
    for some, times in ((count, 2), (max(1, count - 1), 3)):
        few = {name: array[:some] for name, array in rows.items()}
        tiled = {name: np.concatenate([array] * times) for name, array in few.items()}
        once, many = program(few), program(tiled)
        failed |= {name for name in once if not _same(np.concatenate([once[name]] * times), many[name])}
    return failed


def _same(expected: Array, got: Array) -> bool:
    if expected.shape != got.shape:
        return False
    if expected.dtype.kind not in "fc":
        return np.array_equal(expected, got)
    scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))) or 1.0
    return np.allclose(expected, got, rtol=0, atol=1e-4 * scale, equal_nan=True)
