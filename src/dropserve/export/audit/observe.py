"""Run the model a few times on one batch and note everything that moves meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from dropserve.dropout.places import module_path

from . import generators
from .counts import kept_numbers
from .differ import Difference, compare, same
from .probe import ForwardError, OutputError, Probe, Tensors

FORWARDS = 3  # always run
_MORE_FORWARDS = 24  # run while they are cheap
_MANY_FORWARDS = 200  # run while they are cheap and a number held by the model counts up
_CHEAP = 0.15  # seconds


@dataclass
class Observation:
    """What a few forwards of one batch did.

    Attributes:
        outputs: of the first forward.
        error: why the first forward gave no outputs.
        forwards: how many were run.
        moved: generators whose state moved, and in how many of the forwards that looked.
        looked: forwards that looked at generators, weights and inputs.
        difference: greatest difference of a later forward from the first.
        differing: number of the first forward that differed, counted from 1; 0 if none.
        state: parameters and buffers whose values changed, and by how much.
        inputs: inputs that were modified in place, and by how much.
        training: registered modules in train mode, before or after.
        unregistered: modules that ran and that ``model.modules()`` does not reach.
    """

    outputs: Tensors = field(default_factory=dict[str, torch.Tensor])
    error: ForwardError | OutputError | None = None
    forwards: int = 0
    looked: int = 0
    moved: dict[str, int] = field(default_factory=dict[str, int])
    difference: Difference = field(default_factory=Difference)
    differing: int = 0
    state: dict[str, float] = field(default_factory=dict[str, float])
    inputs: dict[str, float] = field(default_factory=dict[str, float])
    training: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    unregistered: list[nn.Module] = field(default_factory=list[nn.Module])

    @property
    def random(self) -> bool:
        """Whether the same batch gives different answers, so that no comparison means anything."""
        return self.differing > 0


def global_digests() -> dict[str, generators.Digest]:
    """The global generators by the name that checks use."""
    return {
        "torch": generators.torch_state,
        "numpy": generators.numpy_state,
        "python": generators.python_state,
    }


def observe(probe: Probe, inputs: Tensors) -> Observation:
    """Run the model and look."""
    seen = Observation()
    seen.training.update(training_modules(probe.module))
    numbers = kept_numbers(probe.module)
    start = time.perf_counter()
    limit = FORWARDS
    while seen.forwards < limit:
        try:
            outputs = _look(probe, inputs, seen) if seen.forwards < FORWARDS else probe(inputs)
        except (ForwardError, OutputError) as error:
            seen.error = seen.error or error
            break
        seen.forwards += 1
        if seen.forwards == 1:
            seen.outputs = outputs
        elif not seen.differing:
            seen.difference = compare(seen.outputs, outputs)
            seen.differing = 0 if seen.difference.identical else seen.forwards
        if seen.forwards == FORWARDS:
            counts = numbers != kept_numbers(probe.module)
            limit = _MANY_FORWARDS if counts else _MORE_FORWARDS
        budget = _CHEAP * (1 if limit <= _MORE_FORWARDS else 5)
        if seen.forwards >= FORWARDS and (seen.differing or time.perf_counter() - start > budget):
            break
    seen.training.update(training_modules(probe.module))
    return seen


def training_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Registered modules that are in train mode, by name; the model itself is ``""``."""
    return {module_path(name, model): module for name, module in model.named_modules() if module.training}


def materialise(probe: Probe, inputs: Tensors) -> None:
    """Let lazy modules make their weights: they draw them in their first forward, rightly."""
    if any(is_lazy(p) for p in probe.module.parameters()):
        try:
            probe.raw(inputs)
        except ForwardError:
            return  # the observed forward fails again, and is reported


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, saved or not."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: t.detach() for name, t in named if not is_lazy(t)}


def change(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Tensors whose values differ, with the greatest difference (infinite for a new shape)."""
    changed: dict[str, float] = {}
    for name, one in before.items():
        other = after.get(name)
        if other is None or other.shape != one.shape or other.dtype != one.dtype:
            changed[name] = float("inf")
        elif not bool(same(one, other).all()):
            changed[name] = float((one.double() - other.double()).abs().max())
    return changed


def _look(probe: Probe, inputs: Tensors, seen: Observation) -> Tensors:
    generators.stir(seen.forwards + 1)
    private = generators.private_generators(probe.module)
    digests = {**global_digests(), **private}
    before = {name: digest() for name, digest in digests.items()}
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    # The first forward may fill a buffer that serves as a cache; no forward may touch a parameter.
    weights = {name for name, _ in probe.module.named_parameters(remove_duplicate=False)}
    state = {
        name: tensor.clone()
        for name, tensor in all_state(probe, seen.unregistered).items()
        if seen.forwards or name in weights
    }
    registered = {id(module) for module in probe.module.modules()}

    def note(module: nn.Module, _args: object) -> None:
        if id(module) not in registered and all(module is not other for other in seen.unregistered):
            seen.unregistered.append(module)

    handle = register_module_forward_pre_hook(note)
    try:
        return probe(given, copy=False)
    finally:
        handle.remove()
        seen.looked += 1
        for name, digest in digests.items():
            if digest() != before[name]:
                seen.moved[name] = seen.moved.get(name, 0) + 1
        seen.inputs.update(change(inputs, given))
        seen.state.update(change(state, all_state(probe, seen.unregistered)))


def all_state(probe: Probe, unregistered: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    """Parameters and buffers, of modules that are not registered too."""
    state = state_of(probe.module)
    for module in unregistered:
        held = probe.placer.name(module)
        state |= {f"{held}.{name}": tensor for name, tensor in state_of(module).items()}
    return state
