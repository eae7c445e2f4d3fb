"""Whether a module is a plain chain of linear layers, ReLU and dropout, found by tracing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import fx, nn


@dataclass(frozen=True)
class Linear:
    """A linear layer, by the names of its parameters; ``bias`` is empty if there is none."""

    weight: str
    bias: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Relu:
    """A rectifier."""


@dataclass(frozen=True)
class Dropout:
    """The dropout of a site, counted from 0 in the order of calls; ``p`` is the module's own rate."""

    site: int
    p: float


Step = Linear | Relu | Dropout


def chain(model: nn.Module) -> tuple[Step, ...] | None:
    """The steps of a multilayer perceptron in the order in which they run; None for any other module.

    A layer that is called twice, has frozen parameters, or works on more than one tensor is no such chain.
    """
    if any(True for _ in model.buffers()) or not all(p.requires_grad for p in model.parameters()):
        return None
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception:  # noqa: BLE001  # control flow by the data, among others: then it is no chain
        return None
    steps: list[Step] = []
    for before, node in pairwise(nodes):
        if node.op == "output":
            break
        if (
            node.all_input_nodes != [before]
            or len(before.users) != 1
            or (before.op == "placeholder") != (before is nodes[0])
        ):
            return None
        step = _step(model, node, sum(isinstance(step, Dropout) for step in steps))
        if step is None:
            return None
        steps += step
    last = nodes[-1]
    names = [name for step in steps if isinstance(step, Linear) for name in (step.weight, step.bias) if name]
    whole = len(names) == len(set(names)) and set(names) == {name for name, _ in model.named_parameters()}
    return tuple(steps) if whole and names and last.args == (nodes[-2],) else None


def _step(model: nn.Module, node: fx.Node, sites: int) -> list[Step] | None:
    """A list of the one step that a node is; empty if it changes nothing; None if it is no step."""
    if node.op == "call_module":
        return _module_step(model.get_submodule(str(node.target)), f"{node.target}.", sites)
    target: Any = node.target
    if (node.op == "call_function" and target in _RELU) or (node.op == "call_method" and target == "relu"):
        return [Relu()]
    return None


_RELU: tuple[Callable[..., Any], ...] = (torch.relu, F.relu)


def _module_step(module: nn.Module, prefix: str, sites: int) -> list[Step] | None:
    match module:
        case nn.Linear():
            bias = "" if module.bias is None else f"{prefix}bias"  # pyright: ignore[reportUnnecessaryComparison]
            return [Linear(f"{prefix}weight", bias, module.in_features, module.out_features)]
        case nn.ReLU():
            return [Relu()]
        case nn.Dropout():
            return [Dropout(sites, module.p)]
        case nn.Identity():
            return []
        case _:
            return None
