"""Say in words why numbers are drawn at a place, and what to change there.

Nothing is decided here: a check has seen by behaviour that something is random, and these patterns put
a name to it. A place that fits none of them still gets a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .modes import overriding_train
from .places import Place, Placer, held_at


@dataclass(frozen=True)
class Reason:
    """Why, and what to do."""

    why: str
    remedy: str


def explain(place: Place, placer: Placer) -> Reason:
    """The first pattern that fits."""
    return next(reason for pattern in _PATTERNS if (reason := pattern(place, placer)) is not None)


def _built_in_forward(place: Place, placer: Placer) -> Reason | None:
    module = place.module
    constructed = any(name.endswith((".__init__", "_uniform_")) for name in place.through)
    if constructed:
        return Reason(
            "a layer is built inside forward, with new random weights at every call",
            "build it once in __init__ and call it in forward",
        )
    if module is None or placer.is_registered(module) or not module.training:
        return None
    held = held_at(placer.root, module)
    kind = type(module).__name__
    if held:
        return Reason(
            f"this {kind} is held as {held}, in a place that modules() and eval() do not reach",
            "hold it in nn.ModuleList or nn.ModuleDict, or as an attribute of its own",
        )
    return Reason(
        f"this {kind} is no registered submodule (it is built inside forward, or held where modules() "
        "does not look), so eval() does not reach it",
        f"make the {kind} an attribute in __init__, and call it in forward",
    )


def _left_in_train(place: Place, placer: Placer) -> Reason | None:
    module = place.module
    if module is None or not module.training or not placer.is_registered(module):
        return None
    if module is placer.root and re.search(r"training\s*=\s*True", place.source):
        return None
    rebel = overriding_train(placer.root, module)
    if rebel is not None:
        return Reason(
            f"{type(rebel).__name__} overrides train() or eval(), so eval() of the model leaves "
            f"{place.path or 'it'} in train mode",
            "let train(mode) call super().train(mode), and change only what must stay in eval mode",
        )
    return Reason(
        f"{place.path or 'the model'} is in train mode while it is called",
        "call eval() on the whole model last, and train() of no part of it after that or in forward",
    )


def _torchscript(place: Place, placer: Placer) -> Reason | None:  # noqa: ARG001
    if not any(cls.__name__ == "ScriptModule" for cls in type(place.module).__mro__):
        return None
    return Reason(
        "the TorchScript graph draws numbers itself: a graph traced in train mode stays random after eval()",
        "call eval() before torch.jit.trace or torch.jit.script, and trace again",
    )


def _functional(place: Place, placer: Placer) -> Reason | None:  # noqa: ARG001
    source, through = place.source, " ".join(place.through)
    if "scaled_dot_product_attention" in source or "scaled_dot_product_attention" in through:
        return Reason(
            "scaled_dot_product_attention has no training flag: its dropout_p acts in eval mode too",
            "write dropout_p=self.p if self.training else 0.0",
        )
    found = re.search(r"\b(\w*dropout\w*)\b", through) or re.search(r"\b(\w*dropout\w*)\s*\(", source)
    if found:
        return Reason(
            f"{found[1]} is active in eval mode: as a function it does so unless it is told otherwise "
            "(training=True is its default)",
            f"write {found[1]}(..., training=self.training), or use the module of nn",
        )
    if "rrelu" in through or "rrelu" in source:
        return Reason("rrelu draws its slopes", "write rrelu(..., training=self.training)")
    return None


def _seeded(place: Place, placer: Placer) -> Reason | None:  # noqa: ARG001
    if not re.search(r"seed\(|seed_all\(", place.source):
        return None
    return Reason(
        "forward seeds a global generator, which every other user of it then shares",
        "seed in the training script; draw what forward needs in __init__ and keep it as a buffer",
    )


def _drawn(place: Place, placer: Placer) -> Reason:  # noqa: ARG001
    return Reason(
        "random numbers are drawn in forward whatever the mode",
        "put it under `if self.training:`, or draw once in __init__ and keep the numbers as a buffer",
    )


_PATTERNS: tuple[Callable[[Place, Placer], Reason | None], ...] = (
    _torchscript,
    _seeded,
    _built_in_forward,
    _left_in_train,
    _functional,
    _drawn,
)
