"""Forms of torch's functions that the ONNX exporter can write for any length.

``torch.export`` follows ``torch.lstm`` into a loop over the steps of the example, so the length is baked in.
As operators of our own, whose shapes we declare, recurrent layers stay whole, and the exporter turns each
into ONNX's LSTM, GRU or RNN. Attention is written for four axes only: fewer are filled up. Under a mask it is
written as operators, since the exporter's form gives a mean of the values where a position may look nowhere,
and torch 0. RReLU in eval mode is a leaky ReLU, for which ONNX has an operator, and log-sigmoid is written so
that it does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_gru, aten_lstm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropserve.dropout.attention import multi_head_attention_forward, scaled_dot_product_attention

op: Any = opset18  # its stubs know tensors alone; the exporter's graph builder takes numbers too


class Exportable(TorchFunctionMode):
    """Puts what a model calls into forms that the exporter can write."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        explicit = _explicit(func, args, kwargs or {})
        if explicit is not None:
            return explicit(*args, **(kwargs or {}))
        whole = _WHOLE.get(func)
        packed = len(args) > 3 and not isinstance(args[3], bool)  # the overload for packed sequences
        if whole is None or packed or kwargs:
            return func(*args, **(kwargs or {}))
        return whole(*args)


def _explicit(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[..., Any] | None:
    """What computes the same and can be written; None if the function itself can."""
    if func is nn.functional.scaled_dot_product_attention:
        if kwargs.get("attn_mask", args[3] if len(args) > 3 else None) is not None:
            return scaled_dot_product_attention
        query = args[0] if args else kwargs["query"]
        return _attention if query.dim() < 4 else None
    if func is nn.functional.multi_head_attention_forward:
        masked = any(kwargs.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
        batched = args[0].dim() == 3 and kwargs.get("static_k") is None and kwargs.get("static_v") is None
        return multi_head_attention_forward if masked and batched else None
    return _SAME.get(func)


def _rrelu(
    input: Tensor,  # noqa: A002  # torch's own name
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """The randomised leaky ReLU of Xu et al. (2015); in eval mode its slope is the middle of the bounds."""
    if training:
        return nn.functional.rrelu(input, lower, upper, training, inplace)
    return nn.functional.leaky_relu(input, (lower + upper) / 2, inplace)


def _log_sigmoid(input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
    """As torch computes it; the exporter's log(sigmoid(x)) is minus infinity below -104."""
    return input.clamp(max=0) - torch.log1p(torch.exp(-input.abs()))


def _rrelu_(input: Tensor, *settings: Any, **named: Any) -> Tensor:  # noqa: A002  # torch's own name
    return _rrelu(input, *settings, **{**named, "inplace": True})


def _embedding(input: Tensor, weight: Tensor, *settings: Any, **named: Any) -> Tensor:  # noqa: A002  # torch's own name
    """Refuses ids below 0, as torch does; ONNX counts them from the end of the table."""
    refused = torch.where(input < 0, input - weight.shape[0], input)
    return nn.functional.embedding(refused, weight, *settings, **named)


_SAME: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.functional.embedding: _embedding,
    nn.functional.rrelu: _rrelu,
    torch.rrelu: _rrelu,
    torch.rrelu_: _rrelu_,
    nn.functional.logsigmoid: _log_sigmoid,
}


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention on [..., L, E] with an axis for heads put in: [B, 1, L, E]."""
    missing = 4 - query.dim()

    def four(tensor: Any) -> Any:
        short = isinstance(tensor, Tensor) and tensor.dim() >= 2
        return tensor[(slice(None),) * (tensor.dim() - 2) + (None,) * missing] if short else tensor

    given = [four(part) for part in (query, key, value, *args)]
    result = nn.functional.scaled_dot_product_attention(
        *given, **{name: four(part) for name, part in kwargs.items()}
    )
    return result.flatten(query.dim() - 2, query.dim() - 2 + missing)


@torch.library.custom_op("dropserve::lstm", mutates_args=())
def _lstm(  # noqa: PLR0913, PLR0917  # torch's own arguments
    input: Tensor,  # noqa: A002  # torch's own name
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.lstm(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)  # pyright: ignore[reportCallIssue, reportArgumentType]  # the stub names lists alone


@_lstm.register_fake
def _(input: Tensor, hx: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: A002
    return _steps(input, hx[0], settings), torch.empty_like(hx[0]), torch.empty_like(hx[1])


def _one_state(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    @torch.library.custom_op(f"dropserve::{name}", mutates_args=())
    def whole(  # noqa: PLR0913, PLR0917
        input: Tensor,  # noqa: A002
        hx: Tensor,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, Tensor]:
        return run(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)

    @whole.register_fake
    def _(input: Tensor, hx: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:  # noqa: A002
        return _steps(input, hx, settings), torch.empty_like(hx)

    return whole


def _steps(given: Tensor, state: Tensor, settings: Sequence[Any]) -> Tensor:
    """An output of the right shape: [L, N, directions * hidden], or [N, L, ...]."""
    bidirectional: bool = settings[-2]
    return given.new_empty(given.shape[0], given.shape[1], state.shape[2] * (2 if bidirectional else 1))


def _rnn(activation: str) -> Callable[..., Any]:
    def translate(  # noqa: PLR0913, PLR0917
        input: Any,  # noqa: A002
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,  # noqa: ARG001  # of eval mode
        train: bool,  # noqa: ARG001
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        directions = 2 if bidirectional else 1
        value = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        width = len(params) // (num_layers * directions)
        finals: list[Any] = []
        for layer in range(num_layers):
            first = layer * directions
            own = [params[(first + d) * width : (first + d + 1) * width] for d in range(directions)]
            weights = [_stack([part[i] for part in own]) for i in range(2)]
            if has_biases:
                weights.append(_stack([op.Concat(part[2], part[3], axis=0) for part in own]))
            outputs, final = op.RNN(
                value,
                *weights,
                initial_h=op.Slice(hx, [first], [first + directions], [0]),
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=hx.shape[2],
            )
            # [L, directions, N, H] to [L, N, directions * H]; 0 keeps a length as it is
            value = op.Reshape(op.Transpose(outputs, perm=[0, 2, 1, 3]), [0, 0, -1])
            finals.append(final)
        last = op.Concat(*finals, axis=0) if len(finals) > 1 else finals[0]
        return op.Transpose(value, perm=[1, 0, 2]) if batch_first else value, last

    return translate


def _stack(parts: Sequence[Any]) -> Any:
    """[directions, ...] from one tensor for each direction."""
    rows = [op.Unsqueeze(part, [0]) for part in parts]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]


_WHOLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: _lstm,
    torch.gru: _one_state("gru", torch.gru),
    torch.rnn_tanh: _one_state("rnn_tanh", torch.rnn_tanh),
    torch.rnn_relu: _one_state("rnn_relu", torch.rnn_relu),
}

# What the exporter writes for each: ``custom_translation_table`` of ``torch.onnx.export``.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.dropserve.lstm.default: aten_lstm,
    torch.ops.dropserve.gru.default: aten_gru,
    torch.ops.dropserve.rnn_tanh.default: _rnn("Tanh"),
    torch.ops.dropserve.rnn_relu.default: _rnn("Relu"),
}
