"""Put nodes in order and drop those that nobody needs."""

from __future__ import annotations

from onnx import ModelProto, NodeProto


def topological(model: ModelProto) -> None:
    """Order the nodes so that each comes after what it reads; converters append theirs at the end."""
    nodes = [_copy(node) for node in model.graph.node]
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    ordered: list[int] = []
    seen: set[int] = set()
    for last in range(len(nodes)):
        waiting = [(last, False)]
        while waiting:
            index, ready = waiting.pop()
            if ready:
                ordered.append(index)
            elif index not in seen:
                seen.add(index)
                waiting.append((index, True))
                waiting += [(producer[name], False) for name in _read(nodes[index]) if name in producer]
    del model.graph.node[:]
    model.graph.node.extend(nodes[index] for index in ordered)


def pruned(model: ModelProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            kept.append(_copy(node))
            wanted.update(_read(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in wanted:
            del graph.initializer[index]
    made = {name for node in kept for name in node.output}
    for index in reversed(range(len(graph.value_info))):
        if graph.value_info[index].name not in made:
            del graph.value_info[index]


def _read(node: NodeProto) -> list[str]:
    """What a node reads, in its subgraphs too."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            names += [name for inner in graph.node for name in _read(inner)]
            names += [value.name for value in graph.output]
    return names


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
