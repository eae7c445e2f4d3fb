"""What a bisection found, for people and for ``export.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dropserve.export.comparison import json_safe

from .measure import Gap


@dataclass(frozen=True)
class Finding:
    """The first place where a graph and the eager model part.

    Attributes:
        graph: which graph, and how it was run.
        tensor: name of the first tensor that differs; empty if none was found.
        node: operator and name of the node that makes it.
        where: module, file and line of the user's code that it comes from.
        gap: how the tensor differs, computed from inputs on which both agree.
        cause: what is different about the node, where that could be told.
        mended: greatest error of the outputs, as a share of their scale, once this tensor is what eager
            has; None if that was not tried.
        others: further tensors that differ though their inputs agree.
        note: what else there is to say; why there is no tensor.
    """

    graph: str
    tensor: str = ""
    node: str = ""
    where: str = ""
    gap: Gap = field(default_factory=lambda: Gap(0.0))
    cause: str = ""
    mended: float | None = None
    others: tuple[str, ...] = ()
    note: str = ""

    def evidence(self) -> str:
        """A few sentences for the terminal."""
        if not self.tensor:
            return f"bisection of {self.graph}: {self.note}"
        text = f"{self.graph} first parts from eager at {self.tensor!r} ({self.node})"
        if self.gap.expected or self.gap.got:
            text += f", by {self.gap.error:.2g} of its scale; row {self.gap.row}: "
            text += f"expected {_few(self.gap.expected)}, got {_few(self.gap.got)}"
        parts = [text, self.gap.looks, self.cause, self._healed(), self.note]
        return "; ".join(part for part in parts if part)

    def figures(self) -> dict[str, Any]:
        """For ``export.json``."""
        return json_safe({**vars(self), "gap": vars(self.gap), "others": list(self.others)})

    def _healed(self) -> str:
        if self.mended is None:
            return ""
        if self.others:
            return f"{len(self.others)} more differ by themselves: {', '.join(self.others[:4])}"
        return f"given this tensor from eager, the outputs agree within {self.mended:.1g}"


def _few(values: list[Any]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"
