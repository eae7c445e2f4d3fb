"""Bisection of TorchScript files: beside a trace of the eager model on the very inputs that fail.

Such a trace records what eager does on these inputs, every decision that Python takes among it. Where the
file has no such operator, or another value, the two part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.dropout.places import module_path
from dropserve.export.audit.written import written_place
from dropserve.export.comparison import Array
from dropserve.export.torchscript import ScriptProgram, trace

from .beside import Recording, Value, first_difference
from .finding import Finding

_WRITTEN = {"prim::Constant", "prim::NumToTensor"}  # nothing is computed; a file may change their dtype


def find_in_script(name: str, path: Path, program: nn.Module, inputs: Mapping[str, Array]) -> Finding:
    """Bisect a TorchScript file.

    Args:
        name: what the finding calls it.
        path: the file.
        program: the eager program; holds the user's model as ``model``.
        inputs: in the order of ``forward``.
    """
    module = ScriptProgram(path, list(inputs), ()).module
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs.values()]
    with no_fused_attention():
        traced, _ = trace(program, tensors)
    right = record(traced, tensors, program)
    try:
        got = record(module, tensors, program)
    except Exception as problem:  # noqa: BLE001  # whatever a runtime raises says where
        text = str(problem)
        last = [line for line in text.strip().splitlines() if line.strip()][-1:]
        return Finding(name, note=f"it does not run: {' '.join(last)}", where=written_place(text))
    return first_difference(name, right, got, "the file")


def record(module: Any, inputs: Sequence[torch.Tensor], program: nn.Module) -> Recording:
    """Every tensor that a ``torch.jit.ScriptModule`` computes, calls of submodules opened up, in order."""
    inside: Any = torch._C  # pyright: ignore[reportPrivateUsage]  # there is no public way to look inside
    graph, held = inside._jit_pass_lower_graph(module.inlined_graph.copy(), module._c)
    weights = dict(reversed([*module.named_parameters(), *module.named_buffers()]))
    names = {tensor.data_ptr(): name for name, tensor in weights.items()}
    weighing = {
        value.debugName(): names.get(tensor.data_ptr(), "")
        for value, tensor in zip([*graph.inputs()][len(inputs) :], held, strict=True)
    }
    found = [
        (node, value)
        for node in graph.nodes()
        for value in node.outputs()
        if value.type().kind() == "TensorType" and node.kind() not in _WRITTEN
    ]
    # Copies, because a later operator may write into the same memory.
    _return(graph, [_copied(graph, node, value) for node, value in found])
    run = inside._create_function_from_graph("watched", graph)
    with torch.no_grad():
        results = run(*inputs, *held)
    values = [
        Value(
            operator=node.kind(),
            name=value.debugName(),
            line=(node.sourceRange() or "").partition("\n")[0],
            where=_where(program, node),
            array=result.detach().numpy(),
            settings=tuple(_settings(node)),
            reads=tuple(weighing[name] for name in _leaves(node) if weighing.get(name)),
        )
        for (node, value), result in zip(found, results, strict=True)
    ]
    return Recording(values, {name: tensor.detach().numpy() for name, tensor in weights.items()})


def _copied(graph: Any, node: Any, value: Any) -> Any:
    nothing = graph.create("prim::Constant")
    nothing.output().setType(torch.NoneType.get())
    nothing.insertAfter(node)
    copy = graph.create("aten::clone", [value, nothing.output()], 1)
    copy.output().setType(torch.TensorType.get())
    copy.insertAfter(nothing)
    return copy.output()


def _return(graph: Any, values: list[Any]) -> None:
    for index in reversed(range(len([*graph.outputs()]))):
        graph.eraseOutput(index)
    together = graph.create("prim::TupleConstruct", values, 1)
    together.output().setType(torch.TupleType([value.type() for value in values]))
    graph.appendNode(together)
    graph.registerOutput(together.output())


def _settings(node: Any) -> list[Any]:
    """The constants that an operator takes, those in lists too."""
    found: list[Any] = []
    for given in node.inputs():
        maker = given.node()
        if maker.kind() == "prim::Constant":
            value = given.toIValue()
            found.append(value.tolist() if isinstance(value, torch.Tensor) else value)
        elif maker.kind() == "prim::ListConstruct":
            found.append(_settings(maker))
    return found


def _leaves(node: Any) -> list[str]:
    names: list[str] = []
    for given in node.inputs():
        in_list = given.node().kind() == "prim::ListConstruct"
        names += _leaves(given.node()) if in_list else [given.debugName()]
    return names


def _where(program: nn.Module, node: Any) -> str:
    """Where a node comes from; a loaded file has kept the lines, but not the modules."""
    model: Any = program.model
    stack, scope = node.sourceRange() or "", node.scopeName()
    if not scope:
        return written_place(stack)
    path = scope.rpartition("/")[2].removeprefix("__module.")
    inner = "" if path == "model" else path.removeprefix("model.")
    kind = type(model.get_submodule(inner)).__name__
    return written_place(stack, module_path(inner, model), kind)
