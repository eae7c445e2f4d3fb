"""The first node of an ONNX graph that does not compute what eager computes from the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto

from dropserve.export.comparison import Array

from .instrument import HERE, cut, made, producers, rerun, run, watched
from .measure import error

FLOOR = 2e-6  # of a tensor's scale: what kernels of one operator differ by, at most (measured: 6e-7)
_MANY = 12  # suspects whose part in the outputs' error is measured
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Suspect:
    """A tensor that differs though everything it is computed from agrees.

    Attributes:
        tensor: its name.
        node: what makes it.
        expected: what eager has.
        got: what the node makes of eager's tensors.
    """

    tensor: str
    node: NodeProto
    expected: Array
    got: Array


@dataclass(frozen=True)
class Verdict:
    """What a search says.

    Attributes:
        culprit: the first suspect that matters for the outputs; None if no node differs by itself.
        others: the other suspects.
        mended: error of the outputs once the culprit's tensor is what eager has; None without outputs.
    """

    culprit: Suspect | None
    others: tuple[Suspect, ...] = ()
    mended: float | None = None


class Search:
    """One graph on one set of inputs, against known tensors.

    Every known tensor is handed to the nodes that read it, so that each node is judged on inputs that are
    right: nothing adds up on the way, and a node is a suspect by its own doing alone. A node between known
    tensors counts with the next known one.

    Args:
        model: the graph.
        feeds: its inputs.
        known: tensors as they should be, by name; those that the graph does not make are left aside.
        outputs: what the graph's outputs should be.
        noise: for each tensor, the error that is allowed.
    """

    def __init__(
        self, model: ModelProto, feeds: Arrays, known: Arrays, outputs: Arrays, noise: Mapping[str, float]
    ) -> None:
        self.model, self.feeds, self.outputs, self.noise = model, feeds, outputs, noise
        shared = {name: known[name] for name in made(model) if name in known}
        # Readers cannot be handed another dtype than they were written for.
        self.strange = {name: a for name, a in shared.items() if a.dtype != self.actual[name].dtype}
        self.known = {name: a for name, a in shared.items() if name not in self.strange}

    @cached_property
    def actual(self) -> dict[str, Array]:
        """Every tensor as the graph computes it."""
        return run(watched(self.model), self.feeds)

    @cached_property
    def errors(self) -> dict[str, float]:
        """For each known tensor, how far the graph's own is from it when all it reads is right."""
        return {name: error(value, self.local[name]) for name, value in self.known.items()}

    @cached_property
    def local(self) -> dict[str, Array]:
        """The known tensors as their nodes make them from known ones."""
        feeds = {**self.feeds, **self.known}
        try:
            found = run(cut(self.model, self.known), feeds)
        except Exception:  # noqa: BLE001  # right tensors may not fit a wrong graph: then as it runs
            return {name: self.actual[name] for name in self.known}
        return {name: found[name + HERE] for name in self.known}

    def suspects(self) -> list[Suspect]:
        """All nodes that differ by themselves, in the order of the graph."""
        makers = producers(self.model)
        found: list[Suspect] = []
        for name in made(self.model):
            if name in self.strange:
                found.append(Suspect(name, makers[name], self.strange[name], self.actual[name]))
            elif name in self.known and self.errors[name] > max(FLOOR, self.noise.get(name, 0.0)):
                found.append(Suspect(name, makers[name], self.known[name], self.local[name]))
        return found

    def verdict(self, tolerance: float, effect: Callable[[Suspect], float]) -> Verdict:
        """Name the first suspect that matters for the outputs.

        Args:
            tolerance: error of the outputs that counts as none.
            effect: error of the outputs if this suspect were the only one.
        """
        found = self.suspects()
        effects = [effect(suspect) for suspect in found[:_MANY]]
        least = min(tolerance / 2, max(effects, default=0.0) / 2)  # many small ones may add up
        for index, (suspect, size) in enumerate(zip(found, effects, strict=False)):
            if size >= least:
                others = (*found[:index], *found[index + 1 :])
                return Verdict(suspect, others, self.output_error({suspect.tensor: suspect.expected}))
        return Verdict(None)

    def output_error(self, given: Arrays) -> float | None:
        """The greatest error of the outputs when some tensors are given; None without outputs to compare."""
        if not self.outputs:
            return None
        try:
            got = rerun(self.model, self.feeds, given)
        except Exception:  # noqa: BLE001  # a graph that does not run is as wrong as can be
            return float("inf")
        return max(
            error(value, got[name]) if name in got else float("inf") for name, value in self.outputs.items()
        )


def first_failing(model: ModelProto, feeds: Arrays) -> tuple[NodeProto | None, str]:
    """The first node with which a graph does not run, by halving the graph; and what is raised there.

    None if the graph runs, or if not even its inputs are taken (then the message says so).
    """
    nodes = list(model.graph.node)
    message = ""

    def fails(count: int) -> bool:
        nonlocal message
        try:
            run(watched(model, count), feeds)
        except Exception as problem:  # noqa: BLE001  # whatever a runtime raises is what is looked for
            message = " ".join(str(problem).split())
            return True
        return False

    if not fails(len(nodes)):
        return None, ""
    if fails(0):
        return None, message
    low, high = 0, len(nodes)  # runs with low nodes, fails with high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    fails(high)
    return nodes[high - 1], message
