"""Explicit forms of the fused functions that hide a dropout.

Each takes the arguments of the function it stands for and computes the same, with its dropout as a plain
``F.dropout`` that a mode can see. They work on functions, not on modules: ``nn.MultiheadAttention``, the
transformer layers around it and ``nn.LSTM`` all end in one of these, and so do users' own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812  # as everyone writes it

from dropserve.dropout.attention import multi_head_attention_forward, scaled_dot_product_attention
from dropserve.dropout.recurrent import RECURRENT, has_dropout, layer_by_layer


def explicit_form(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """What to call in place of a fused function with dropout; None if it has none, or is not fused."""
    if func is F.scaled_dot_product_attention:
        p = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return scaled_dot_product_attention if p > 0 else None
    if func is F.multi_head_attention_forward:
        p = kwargs.get("dropout_p", args[10] if len(args) > 10 else 0.0)
        return multi_head_attention_forward if p > 0 else None
    if func in RECURRENT and has_dropout(args, kwargs):
        return layer_by_layer(func)
    return None
