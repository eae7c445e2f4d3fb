"""Where in the user's code the tensors of an ONNX graph come from."""

from __future__ import annotations

from onnx import ModelProto

from dropserve.export.audit.written import written_place

from .explain import Cause
from .instrument import producers
from .reference import Reference
from .search import Search

_SCOPES, _STACK = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.stack_trace"


class Placer:
    """Where the tensors of a graph come from.

    Args:
        model: the graph.
        right: how its tensors should be.
    """

    def __init__(self, model: ModelProto, right: Reference) -> None:
        self._eager = right.eager
        self._makers = producers(model)
        self._fresh = producers(right.eager.fresh)
        self._model = model

    def where(self, tensor: str, search: Search | None = None) -> str:
        """Modules and line of the operators that a tensor stands for."""
        step = self._eager.step(tensor)
        if step is None:
            return self._written(tensor)
        known = {} if search is None else {**search.feeds, **search.known}
        steps = [self._eager.step_of(node) for node in self._eager.region(tensor, known)]
        if search is None or len(steps) > 8:
            return step.where
        # modules that the tensor stands for, with the line of the last
        paths = dict.fromkeys(s.where.partition(" at ")[0] for s in steps if s.path and s.path != step.path)
        return ", ".join([*paths, step.where])

    def of_cause(self, tensor: str, cause: Cause, search: Search) -> str:
        """The module that holds the weights, or that makes a missing tensor, if that is the cause."""
        if cause.missing and (step := self._eager.step(cause.missing)) is not None:
            return step.where
        path = self._eager.own_path(cause.weights.rpartition(".")[0])
        known = {**search.feeds, **search.known}
        steps = [self._eager.step_of(node) for node in self._eager.region(tensor, known)]
        own = (step.where for step in steps if cause.weights and path and step.path == path)
        return next(own, self.where(tensor, search))

    def _written(self, tensor: str) -> str:
        """The place that the exporter wrote beside a node; else that of the next tensor which has one."""
        seen: set[str] = set()
        wanted = [tensor]
        while wanted:
            name = wanted.pop(0)
            if name in seen:
                continue
            seen.add(name)
            if (step := self._eager.step(name)) is not None:
                return step.where
            for node in (self._fresh.get(name), self._makers.get(name)):
                props = {p.key: p.value for p in node.metadata_props} if node is not None else {}
                owner = props.get(_SCOPES, "").rpartition(", ")[2].strip("[]'")
                if (step := self._eager.step(owner)) is not None:
                    return step.where
                if _STACK in props and (place := written_place(props[_STACK])):
                    return place
            wanted += [out for node in self._model.graph.node if name in node.input for out in node.output]
        return ""
