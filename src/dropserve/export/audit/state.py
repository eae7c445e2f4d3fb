"""Does a forward leave things as they were: weights, buffers, and the caller's inputs."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]  # the base of all

from .observe import all_state, state_of
from .outcome import Examination, Outcome, failed, passed
from .places import Place
from .watch import changing_places


def weights_unchanged(exam: Examination) -> Outcome:
    """No parameter or buffer changes in a forward."""
    seen = exam.observation
    count = len(all_state(exam.probe, seen.unregistered))
    if not seen.state:
        return passed(f"{count} parameters and buffers bit-equal before and after {seen.looked - 1} forwards")
    names = list(seen.state)

    # A change that happens once shows in an unused model only; a copy does not reach unregistered modules.
    registered = set(names) <= set(state_of(exam.probe.module))
    probe = exam.unused() if registered else exam.probe

    def digest() -> bytes:
        state = all_state(probe, () if registered else seen.unregistered)
        return _digest([state[name] for name in names if name in state])

    places = changing_places(probe, exam.inputs, digest)
    changed = ", ".join(f"{name} (by {size:.3g})" for name, size in list(seen.state.items())[:4])
    norm = _normalisation(places[0] if places else None)
    if norm is not None:
        why = f"{type(norm).__name__} is in train mode and updates its running statistics"
        remedy = (
            "put it in eval mode: call eval() on the whole model last; hold modules where modules() reaches"
        )
    else:
        why, remedy = (
            "",
            "compute into new tensors; keep what a forward must remember out of the served model",
        )
    evidence = f"{len(names)} of {count} parameters and buffers change: {changed}"
    return failed(
        f"{evidence}; {why}" if why else evidence,
        remedy,
        places[0] if places else exam.probe.placer.root_place(),
    )


def input_unchanged(exam: Examination) -> Outcome:
    """The caller's tensors hold the same values after the forward."""
    seen = exam.observation
    if not seen.inputs:
        return passed(f"{len(exam.inputs)} inputs bit-equal before and after {seen.looked} forwards")
    given = {name: tensor.clone() for name, tensor in exam.inputs.items()}
    watched = [given[name] for name in seen.inputs]
    places = changing_places(exam.probe, given, lambda: _digest(watched), copy=False)
    changed = ", ".join(f"{name} (by {size:.3g})" for name, size in seen.inputs.items())
    quoted = f" ({places[0].source})" if places and places[0].source else ""
    return failed(
        f"forward writes into its input: {changed}{quoted}; a caller that uses it again gets other numbers",
        "use the operation that returns a new tensor (mul instead of mul_, inplace=False), or clone first",
        places[0] if places else exam.probe.placer.root_place(),
    )


def _digest(tensors: list[torch.Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(
            tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b""
        )
        digest.update(repr(tensor.tolist()).encode() if not tensor.ndim else b"")
    return digest.digest()


def _normalisation(place: Place | None) -> nn.Module | None:
    module = place.module if place is not None else None
    return module if isinstance(module, _NormBase) and module.training else None
