"""Attention with its dropout in the open (Vaswani et al., "Attention is all you need", 2017)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from dropserve.errors import UnmaskableError


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What ``F.scaled_dot_product_attention`` computes, for query [..., L, E] and key, value [..., S, E].

    The attention probabilities [..., L, S] go through ``F.dropout``. A position that may look nowhere gets
    0 under a mask, as in torch; the ONNX exporter's own translation gives it a mean of the values.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), dim=-3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), dim=-3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        ones = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool, device=query.device)
        scores = scores.masked_fill(ones.tril().logical_not(), -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    probabilities = scores.softmax(dim=-1) if attn_mask is None else _safe_softmax(scores)
    if dropout_p > 0:
        probabilities = F.dropout(probabilities, dropout_p, training=True)
    return probabilities @ value


def _safe_softmax(scores: Tensor) -> Tensor:
    """A position that may look nowhere sees nothing, as torch has it, and not NaN."""
    blind = (scores == -math.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)


def multi_head_attention_forward(  # noqa: PLR0913, PLR0917  # the arguments of torch's function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,  # noqa: ARG001  # the arguments of torch's function
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,  # noqa: ARG001  # a hint of what the mask already says
) -> tuple[Tensor, Tensor | None]:
    """What ``F.multi_head_attention_forward`` computes, for query [L, N, E] and key, value [S, N, E].

    The attention probabilities are kept as [N, heads, L, S], so that rows stay on an axis of their own.

    Raises:
        UnmaskableError: for static keys or values, and for inputs without a batch axis.
    """
    if static_k is not None or static_v is not None or query.dim() != 3:
        raise UnmaskableError(
            f"attention over a query of shape {list(query.shape)}: static_k, static_v and inputs without a "
            "batch axis cannot be masked. Give batched inputs, and keys and values as tensors."
        )
    length, rows, width = query.shape
    q, k, v = _projected(
        (query, key, value),
        in_proj_weight,
        in_proj_bias,
        (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None,
    )
    extra = 0
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(1, rows, width)])
        v = torch.cat([v, bias_v.expand(1, rows, width)])
        extra += 1
    if add_zero_attn:
        nothing = k.new_zeros(1, rows, width)
        k, v = torch.cat([k, nothing]), torch.cat([v, nothing])
        extra += 1
    head_width = width // num_heads
    # [length, N, E] -> [N, heads, length, E / heads]
    q, k, v = (t.reshape(t.size(0), rows, num_heads, head_width).permute(1, 2, 0, 3) for t in (q, k, v))
    scores = (q * math.sqrt(1.0 / head_width)) @ k.transpose(-2, -1)
    biases = _biases(attn_mask, key_padding_mask, (rows, num_heads), query.dtype)
    for bias in biases:
        scores = scores + F.pad(bias, (0, extra))
    # torch goes through scaled_dot_product_attention when no weights are asked for.
    probabilities = _safe_softmax(scores) if biases and not need_weights else scores.softmax(dim=-1)
    weights = F.dropout(probabilities, dropout_p, training=training)
    mixed = (weights @ v).permute(2, 0, 1, 3).reshape(length, rows, width)
    output = F.linear(mixed, out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    return output, weights.mean(dim=1) if average_attn_weights else weights


def _projected(
    tensors: tuple[Tensor, Tensor, Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    separate: tuple[Tensor | None, Tensor | None, Tensor | None] | None,
) -> list[Tensor]:
    weights = separate if weight is None or separate is not None else weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if weights is None:
        raise UnmaskableError("attention has neither a packed nor separate projection weights")
    pairs = zip(tensors, weights, biases, strict=True)
    return [F.linear(tensor, w, b) for tensor, w, b in pairs if w is not None]


def _biases(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, rows_heads: tuple[int, int], dtype: torch.dtype
) -> list[Tensor]:
    """Masks as numbers to add to the scores [N, heads, L, S]."""
    biases: list[Tensor] = []
    if attn_mask is not None:
        mask = _additive(attn_mask, dtype)
        # [L, S] holds for all; [N * heads, L, S] has one for each row and head.
        biases.append(mask if mask.dim() == 2 else mask.reshape(*rows_heads, *mask.shape[1:]))
    if key_padding_mask is not None:
        biases.append(_additive(key_padding_mask, dtype)[:, None, None, :])
    return biases


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
