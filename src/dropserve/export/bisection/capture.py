"""Where the exporter has seen another computation than eager does on the inputs that fail.

An exporter runs the model once, on rows of its own. A decision that Python takes there, by the number of rows
for one, is what the graph has for ever.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from dropserve.dropout.mode import no_fused_attention
from dropserve.export.comparison import Array
from dropserve.export.exportable import Exportable
from dropserve.export.onnx import dynamic_axes

from .beside import Recording, Value, first_difference
from .eager import Eager, arguments
from .finding import Finding


def find_in_capture(name: str, eager: Eager, feeds: Mapping[str, Array]) -> Finding:
    """The first operator that the exporter has seen otherwise than eager runs it on some inputs.

    Args:
        name: what the finding calls the graph.
        eager: the program.
        feeds: its inputs.
    """
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in eager.inputs)
    examples = tuple(eager.examples[spec.name] for spec in eager.inputs)
    # AUTO takes a decision by the number of rows as the exporter does: in silence.
    shapes = (tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in dynamic_axes(eager.inputs)),)
    with torch.no_grad(), no_fused_attention(), Exportable():
        seen = torch.export.export(eager.program, examples, dynamic_shapes=shapes)
        now = torch.export.export(eager.program, tensors)
    return first_difference(
        name, _record(eager, now, feeds), _record(eager, seen, feeds), "the exporter has seen"
    )


def _record(eager: Eager, exported: torch.export.ExportedProgram, feeds: Mapping[str, Array]) -> Recording:
    run = _Run(exported.graph_module)
    with torch.no_grad():
        run.run(*arguments(exported, [feeds[spec.name] for spec in eager.inputs]))
    values: list[Value] = []
    for node, tensor in run.tensors:
        step = eager.step_of(node)
        line = node.meta.get("stack_trace") or ""
        values.append(Value(step.operator, node.name, line, step.where, tensor))
    return Recording(values, {})


class _Run(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.tensors: list[tuple[fx.Node, Array]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor) and n.target is not operator.getitem:
            self.tensors.append((n, value.detach().numpy().copy()))
        return value
