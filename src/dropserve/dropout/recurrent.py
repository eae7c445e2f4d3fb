"""Stacked recurrent layers, one at a time, so that the dropout between them is in the open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from dropserve.errors import UnmaskableError

RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})

_NAMES = (
    "input",
    "hx",
    "params",
    "has_biases",
    "num_layers",
    "dropout",
    "train",
    "bidirectional",
    "batch_first",
)
_PACKED = (
    "data",
    "batch_sizes",
    "hx",
    "params",
    "has_biases",
    "num_layers",
    "dropout",
    "train",
    "bidirectional",
)


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # The overload for packed sequences has the weights fourth, where the other has a flag.
    packed = "data" in kwargs or (len(args) > 3 and not isinstance(args[3], bool))
    return dict(zip(_PACKED if packed else _NAMES, args, strict=False)) | dict(kwargs)


def has_dropout(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether there is a dropout between the layers of such a call."""
    given = _named(args, kwargs)
    return given["dropout"] > 0 and given["num_layers"] > 1


def layer_by_layer(func: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
    """The explicit form of one of ``RECURRENT``: the same function for each layer, ``F.dropout`` between.

    Raises:
        UnmaskableError: when called with packed sequences.
    """

    def explicit(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        given = _named(args, kwargs)
        if "data" in given:
            raise UnmaskableError(
                "dropout between the layers of a recurrent module that runs on a packed sequence cannot be "
                "masked: which step of which row a number belongs to depends on the lengths. Run it on the "
                "padded tensor, and pick each row's last step by its length."
            )
        several = isinstance(given["hx"], tuple | list)
        states = given["hx"] if several else (given["hx"],)
        weights, layers = given["params"], given["num_layers"]
        per_layer = len(weights) // layers
        directions = 2 if given["bidirectional"] else 1
        value = given["input"]
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(layers):
            if layer > 0:
                value = F.dropout(value, given["dropout"], training=given["train"])
            own = tuple(state[layer * directions : (layer + 1) * directions] for state in states)
            changed = {
                "input": value,
                "hx": own if several else own[0],
                "params": weights[layer * per_layer : (layer + 1) * per_layer],
                "num_layers": 1,
                "dropout": 0.0,
            }
            value, *final = func(*(given | changed).values())
            finals.append(tuple(final))
        return value, *(torch.cat(parts) for parts in zip(*finals, strict=True))

    return explicit
