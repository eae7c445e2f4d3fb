"""Random operators in a TorchScript graph, its blocks and the methods that it calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .onnx_scan import Finding
from .operators import find_operator, is_random, uses_batch_statistics
from .written import written_place

_OPEN = object()  # an argument that is computed, not written down


def scan_script(module: Any) -> tuple[list[Finding], int]:
    """Operators that are random or normalise by the batch, and how many operators there are in all.

    Args:
        module: a ``torch.jit.ScriptModule``.
    """
    nodes = [node for node in _walk(module.inlined_graph) if "::" in node.schema()]
    findings = [found for node in nodes if (found := _judge(node)) is not None]
    return findings, len(nodes)


def _walk(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _walk(inner)


def _judge(node: Any) -> Finding | None:
    name, _, overload = node.schema().split("(")[0].partition(".")
    operator = find_operator(name, overload)
    if operator is None:
        return None
    arguments = [_value(argument) for argument in node.inputs()]
    if is_random(operator, arguments, {}):
        return Finding(name, "draws random numbers", written_place(node.sourceRange()))
    if uses_batch_statistics(operator, arguments, {}):
        return Finding(name, "normalises by the statistics of the batch", written_place(node.sourceRange()))
    return None


def _value(argument: Any) -> object:
    node = argument.node()
    return argument.toIValue() if node.kind() == "prim::Constant" else _OPEN
