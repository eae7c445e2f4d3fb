"""Which operators are random, decided by what torch says of them, not by a list of names.

torch tags every operator that draws random numbers ``nondeterministic_seeded``. Many carry the tag and
draw nothing when their own flag is off (``aten.dropout(x, 0.5, False)``), so the flag is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

_TRAIN_FLAGS = ("train", "training")
_RATES = ("dropout_p", "dropout")


def is_random(operator: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether this call of an operator draws random numbers.

    Args:
        operator: a ``torch._ops.OpOverload``.
        arguments: positional arguments of the call; anything but a constant counts as "on".
        keywords: keyword arguments of the call.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    values = _bind(operator, arguments, keywords)
    flags = [values[name] for name in _TRAIN_FLAGS if name in values]
    if flags:
        return flags[0] is not False and values.get("p", 1.0) != 0.0
    rates = [values[name] for name in _RATES if name in values]
    return not (rates and rates[0] == 0.0)


def uses_batch_statistics(operator: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether this call normalises by the statistics of its batch."""
    return "batch_norm" in operator.name() and _bind(operator, arguments, keywords).get("training") is True


def find_operator(name: str, overload: str) -> Any:
    """The operator of a TorchScript node such as ``aten::dropout``; None if torch has none."""
    namespace, _, short = name.partition("::")
    packet = getattr(getattr(torch.ops, namespace, None), short, None)
    return getattr(packet, overload or "default", None)


def _bind(operator: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    declared = operator._schema.arguments  # torch gives no public name to it
    values = {argument.name: argument.default_value for argument in declared if argument.has_default_value()}
    values.update(zip((argument.name for argument in declared), arguments, strict=False))
    values.update(keywords)
    return values
