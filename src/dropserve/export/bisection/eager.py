"""The eager program, operator by operator, under the names that the exporter gives to its tensors."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from dropserve.dropout.places import module_path
from dropserve.export.audit.written import written_place
from dropserve.export.comparison import Array
from dropserve.export.onnx import translated
from dropserve.signature import TensorSpec


@dataclass(frozen=True)
class Step:
    """One operator of the eager program.

    Attributes:
        name: of the tensor that it makes.
        operator: such as ``aten.relu.default``.
        path: the module that runs it, as its author knows it; empty for the model itself.
        kind: class of that module.
        where: both, and the user's line.
    """

    name: str
    operator: str
    path: str
    kind: str
    where: str


class Eager:
    """What the exporter sees of a program: its operators, run by torch itself.

    Nothing is exported before it is asked for: only a failure pays for it.

    Args:
        program: holds the user's model as ``model``; gives a tuple of tensors.
        inputs: in the order of ``forward``.
        outputs: names in the order of what it returns.
        examples: what it was exported on.
        opset: ONNX operator set.
    """

    def __init__(
        self,
        program: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str],
        examples: Mapping[str, torch.Tensor],
        opset: int,
    ) -> None:
        self.program, self.inputs, self.outputs = program, tuple(inputs), tuple(outputs)
        self.examples, self._opset = examples, opset

    @cached_property
    def _translated(self) -> torch.onnx.ONNXProgram:
        return translated(self.program, self.inputs, self.outputs, self.examples, opset=self._opset)

    @cached_property
    def fresh(self) -> onnx.ModelProto:
        """What the exporter writes of the program now."""
        return self._translated.model_proto

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The operators that the exporter wrote, before they became ONNX."""
        return self._exported.graph_module

    @property
    def _exported(self) -> torch.export.ExportedProgram:
        exported = self._translated.exported_program
        if exported is None:
            raise RuntimeError("the exporter kept no program of torch's operators")
        return exported

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The operators by the name of the tensor that they make, in order; outputs under their own names."""
        found = {node.name: node for node in self.graph.graph.nodes if node.op == "call_function"}
        return found | {ours: found[theirs] for ours, theirs in self._renamed.items() if theirs in found}

    @cached_property
    def _renamed(self) -> dict[str, str]:
        """The name of each output, and that of the operator which gives it."""
        specs = self._exported.graph_signature.output_specs
        theirs = [spec.arg.name for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
        return dict(zip(self.outputs, theirs, strict=True))

    def values(
        self, arrays: Mapping[str, Array], given: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Every tensor that the program computes on some inputs, outputs included; some may be given."""
        run = _Run(self.graph, {self.nodes[name]: array for name, array in (given or {}).items()})
        with torch.no_grad():
            run.run(*self._arguments(arrays))
        found = run.arrays
        return found | {ours: found[theirs] for ours, theirs in self._renamed.items() if theirs in found}

    def run_from(
        self, name: str, known: Mapping[str, Array], arrays: Mapping[str, Array], without: fx.Node | None
    ) -> Array | None:
        """Compute one tensor from known ones, one operator left out.

        Args:
            name: the tensor.
            known: values that are taken as they are.
            arrays: the program's inputs.
            without: an operator that hands on its first tensor instead.
        """
        feeds = dict(zip(self._placeholders, self._arguments(arrays), strict=True))
        run = _Partial(self.graph, known, feeds, without)
        with torch.no_grad():
            value = run.value(self.nodes[name])
        return value.numpy() if isinstance(value, torch.Tensor) else None

    @cached_property
    def _placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.graph.nodes if node.op == "placeholder"]

    def _arguments(self, arrays: Mapping[str, Array]) -> list[Any]:
        return arguments(self._exported, [arrays[spec.name] for spec in self.inputs])

    def step(self, name: str) -> Step | None:
        """The operator that makes a tensor; None if the program has none of that name."""
        node = self.nodes.get(name)
        return None if node is None else self.step_of(node)

    def step_of(self, node: fx.Node) -> Step:
        """An operator, with its place."""
        if node.target is operator.getitem and isinstance(source := node.args[0], fx.Node):
            return self.step_of(source)
        scopes: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
        path, kind = [*scopes.values()][-1] if scopes else ("", "")
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
        path, kind = self.own_path(path), name.rpartition(".")[2]
        if kind == type(self.program).__name__ and not path:
            kind = type(self.program.model).__name__
        where = written_place(node.meta.get("stack_trace") or "", path, kind)
        return Step(node.name, str(node.target), path, kind, where)

    def own_path(self, path: str) -> str:
        """A module's path as the author of the model knows it."""
        model: Any = self.program.model
        return module_path("" if path == "model" else path.removeprefix("model."), model)

    def region(self, name: str, known: Mapping[str, object]) -> list[fx.Node]:
        """The operators between known tensors and one that they lead to, in order."""
        end = self.nodes.get(name)
        wanted, found = [end] if end is not None else [], set[fx.Node]()
        while wanted:
            node = wanted.pop()
            found.add(node)
            wanted += [
                other
                for other in node.all_input_nodes
                if other.op == "call_function" and other not in found and other.name not in known
            ]
        return [node for node in self.graph.graph.nodes if node in found]


def arguments(exported: torch.export.ExportedProgram, inputs: Sequence[Array]) -> list[Any]:
    """What the graph of an exported program takes: weights and constants, and then the inputs."""
    given = iter([torch.from_numpy(np.ascontiguousarray(array)) for array in inputs])
    held = {**exported.constants, **exported.state_dict}
    return [
        next(given) if spec.kind is InputKind.USER_INPUT else held[spec.target or ""]
        for spec in exported.graph_signature.input_specs
    ]


class _Run(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, given: Mapping[fx.Node, Array]) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.arrays: dict[str, Array] = {}
        self._given = given

    def run_node(self, n: fx.Node) -> Any:
        value = torch.from_numpy(self._given[n]) if n in self._given else super().run_node(n)
        if n.op == "call_function" and isinstance(value, torch.Tensor):
            self.arrays[n.name] = value.detach().numpy().copy()
        return value


class _Partial:
    """Values on demand: known ones as they are, the rest computed."""

    def __init__(
        self,
        graph: fx.GraphModule,
        known: Mapping[str, Array],
        feeds: Mapping[fx.Node, Any],
        without: fx.Node | None,
    ) -> None:
        self._run = fx.Interpreter(graph)
        self._without = without
        self._env: dict[fx.Node, Any] = dict(feeds)
        self._known = known

    def value(self, node: fx.Node, *, end: bool = True) -> Any:
        if node in self._env:
            return self._env[node]
        if node.name in self._known and not end:
            value: Any = torch.from_numpy(np.ascontiguousarray(self._known[node.name]))
        elif node is self._without:
            value = self.value(node.all_input_nodes[0], end=False)
        else:
            for other in node.all_input_nodes:
                self.value(other, end=False)
            self._run.env = self._env
            value = self._run.run_node(node)
        self._env[node] = value
        return value
