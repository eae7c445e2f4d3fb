"""Do constructor and saved weights hold the whole model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from . import generators
from .differ import compare, same
from .history import RANDOM
from .outcome import Examination, Outcome, failed, passed, skipped
from .probe import ForwardError, OutputError, Probe


def saved_weights_complete(exam: Examination) -> Outcome:
    """The model built again, with this one's state_dict, gives the same answers."""
    hidden = [m for m in exam.observation.unregistered if any(True for _ in m.parameters())]
    note = f"; {len(hidden)} modules with weights ran that are not registered" if hidden else ""
    if exam.rebuild is None:
        return skipped(f"not judged: no constructor to build the model again{note}")
    if exam.observation.random:
        return skipped(RANDOM)
    root = exam.probe.module
    try:
        generators.stir(97)  # what a constructor draws must not come out equal by a common seed
        again = exam.rebuild()
        again.load_state_dict(root.state_dict())
        again.eval()
        difference = compare(exam.observation.outputs, Probe(exam.subject, again)(exam.inputs))
    except (ForwardError, OutputError, RuntimeError, KeyError) as error:
        return failed(
            f"the model cannot be built again and take its own state_dict: {error}",
            "let the constructor build the same model at every call",
            exam.probe.placer.root_place(),
        )
    if difference.identical:
        return passed(f"built again with its {len(again.state_dict())} saved tensors: bit-equal")
    lost = list(_unsaved(root, again))
    names = f": {', '.join(exam.probe.placer.attribute_name(*where) for where in lost[:4])}" if lost else ""
    owner, key = lost[0] if lost else ("", "")
    return failed(
        f"built again with its saved tensors, {difference}; what state_dict() leaves out differs"
        f"{names}{note}",
        "hold every module as an attribute of its own, in nn.ModuleList or nn.ModuleDict, and every tensor "
        "that is drawn in __init__ as a parameter or a persistent buffer",
        exam.probe.placer.attribute_place(owner, key),
    )


def _unsaved(one: nn.Module, two: nn.Module) -> Iterator[tuple[str, str]]:
    """Attributes that are in no state_dict and differ between two builds: (module, attribute)."""
    others = dict(two.named_modules())
    for name, module in one.named_modules():
        other = others.get(name)
        if other is None:
            continue
        for key, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if key.startswith("_") and key in vars(nn.Module()):
                continue
            if _differs(value, getattr(other, key, None)):
                yield name, key


def _differs(one: object, two: object) -> bool:
    if isinstance(one, nn.Module) and isinstance(two, nn.Module):
        return _differs(list(one.state_dict().values()), list(two.state_dict().values()))
    if isinstance(one, dict) and isinstance(two, dict):
        return _differs(list(one.values()), list(two.values()))
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) != len(two) or any(map(_differs, one, two))
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape != two.shape or not bool(same(one, two).all())
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return not np.array_equal(one, two)
    return isinstance(one, bool | int | float | str) and one != two
