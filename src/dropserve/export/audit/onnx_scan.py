"""Random and mode-dependent operators in ONNX graphs: subgraphs and functions too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from .written import written_place

# Operators that draw numbers whatever their inputs. Dropouts of any domain are looked at one by one.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
_UNKNOWN = object()


@dataclass(frozen=True)
class Finding:
    """One node that has no business in a deterministic graph."""

    node: str
    why: str
    where: str


@dataclass
class _Scope:
    """Values that are fixed in a graph and in those around it."""

    fixed: dict[str, object] = field(default_factory=dict[str, object])
    outer: _Scope | None = None

    def value(self, name: str) -> object:
        if name in self.fixed:
            return self.fixed[name]
        return _UNKNOWN if self.outer is None else self.outer.value(name)


def scan(model: onnx.ModelProto) -> tuple[list[Finding], int]:
    """Nodes that are random or normalise by the batch, and how many nodes there are in all."""
    nodes: list[tuple[onnx.NodeProto, _Scope]] = [*_walk(model.graph.node, _scope(model.graph))]
    for function in model.functions:
        nodes += _walk(function.node, _Scope())
    findings = [found for node, scope in nodes if (found := _judge(node, scope)) is not None]
    return findings, len(nodes)


def _judge(node: onnx.NodeProto, scope: _Scope) -> Finding | None:
    why = ""
    if node.op_type in _RANDOM:
        why = "draws random numbers"
    elif "Dropout" in node.op_type:
        mode = node.input[2] if len(node.input) > 2 else ""
        if mode and scope.value(mode) is not False:
            known = scope.value(mode) is not _UNKNOWN
            why = (
                "has training_mode on" if known else f"can be turned on: training_mode is {mode!r}, not fixed"
            )
    elif node.op_type == "BatchNormalization" and _integer(node, "training_mode"):
        why = "normalises by the statistics of the batch"
    if not why:
        return None
    label = f"{node.op_type} {node.name or node.output[0]}"
    return Finding(label, why, _place(node))


def _walk(nodes: Iterator[onnx.NodeProto] | object, scope: _Scope) -> Iterator[tuple[onnx.NodeProto, _Scope]]:
    for node in nodes:  # type: ignore[attr-defined]  # a protobuf container
        if node.op_type == "Constant":
            scope.fixed[node.output[0]] = _constant(node)
        elif node.op_type == "Identity":
            scope.fixed[node.output[0]] = scope.value(node.input[0])
        yield node, scope
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _walk(graph.node, _scope(graph, scope))


def _scope(graph: onnx.GraphProto, outer: _Scope | None = None) -> _Scope:
    given = {value.name for value in graph.input}
    small = [tensor for tensor in graph.initializer if tensor.name not in given and _size(tensor.dims) == 1]
    return _Scope({tensor.name: _single(tensor) for tensor in small}, outer)


def _constant(node: onnx.NodeProto) -> object:
    tensors = [attribute.t for attribute in node.attribute if attribute.name == "value"]
    return _single(tensors[0]) if tensors and _size(tensors[0].dims) == 1 else _UNKNOWN


def _single(tensor: onnx.TensorProto) -> object:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _UNKNOWN
    return numpy_helper.to_array(tensor).reshape(-1)[0].item()


def _size(dims: Mapping[int, int] | object) -> int:
    return int(np.prod(list(dims), initial=1))  # type: ignore[call-overload]  # a protobuf container


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _place(node: onnx.NodeProto) -> str:
    written = {entry.key: entry.value for entry in node.metadata_props}
    scopes = written.get("pkg.torch.onnx.name_scopes", "").strip("[]").replace("'", "").split(", ")
    path = scopes[-2].removeprefix("model.").removeprefix("model") if len(scopes) > 1 else ""
    return written_place(written.get("pkg.torch.onnx.stack_trace", ""), path)
