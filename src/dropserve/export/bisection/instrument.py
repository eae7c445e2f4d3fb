"""Look into an ONNX graph: every tensor as an output, or every tensor computed from given ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from dropserve.export.comparison import Array
from dropserve.export.external import loadable
from dropserve.export.onnx import OnnxProgram

HERE = ".here"  # ends the name of what a node computes, where its readers are given something else


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph as it is written, without any optimisation."""
    with loadable(model) as source:
        return OnnxProgram(source, "disabled")(feeds)


def made(model: ModelProto) -> list[str]:
    """Names of the tensors that the nodes make, in the order of the graph."""
    return [name for node in model.graph.node for name in node.output if name]


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """For each tensor, the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


def watched(model: ModelProto, nodes: int | None = None) -> ModelProto:
    """The same graph with every tensor an output.

    Args:
        model: a graph.
        nodes: keep only so many of its nodes, from the start; with none, the inputs are handed on.
    """
    part = _copy(model)
    if nodes is not None:
        del part.graph.node[nodes:]
    if nodes == 0:
        taken = [value.name for value in part.graph.input]
        part.graph.node.extend(helper.make_node("Identity", [name], [name + HERE]) for name in taken)
    part.graph.output.extend(map(_untyped, made(part)))
    return part


def until(model: ModelProto, node: NodeProto) -> ModelProto:
    """The part of a graph before a node, all that it makes as outputs."""
    return watched(model, [*model.graph.node].index(node))


def cut(model: ModelProto, given: Mapping[str, Array]) -> ModelProto:
    """The same graph, each node reading given tensors rather than what the nodes before it made.

    What a node makes itself is an output, under its own name and ``HERE`` where that tensor is given.
    """
    part = _copy(model)
    _feed(part, given)
    part.graph.output.extend(map(_untyped, made(part)))
    return part


def rerun(model: ModelProto, feeds: Mapping[str, Array], given: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a graph, some of its tensors given, which are among the results."""
    part = _copy(model)
    _feed(part, given)
    rest = [value.name for value in model.graph.output if value.name not in given]
    if not rest:  # no runtime takes a graph without outputs
        return dict(given)
    part.graph.output.extend(map(_untyped, rest))
    return {**run(part, {**feeds, **given}), **given}


def ancestors(model: ModelProto, name: str, stop: Collection[str]) -> list[NodeProto]:
    """The nodes behind a tensor, back to those in ``stop``, in the order of the graph."""
    makers = producers(model)
    wanted, found = [name], set[str]()
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or found.intersection(node.output):
            continue
        found.update(filter(None, node.output))
        wanted += [given for given in node.input if given not in stop]
    return [node for node in model.graph.node if found.intersection(node.output)]


def _copy(model: ModelProto) -> ModelProto:
    """A copy that states nothing of its tensors: what a changed graph states may be wrong."""
    part = ModelProto()
    part.CopyFrom(model)
    del part.graph.value_info[:], part.graph.output[:]
    return part


def _feed(part: ModelProto, given: Mapping[str, Array]) -> None:
    for node in part.graph.node:
        for index, name in enumerate(node.output):
            if name in given:
                node.output[index] = name + HERE
    part.graph.input.extend(_value(name, array) for name, array in given.items())


def _value(name: str, array: Array) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def _untyped(name: str) -> ValueInfoProto:
    return ValueInfoProto(name=name)
