"""What torch's functions do to a dropped unit, by the function's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

HOMOGENEOUS = frozenset({"relu", "leaky_relu", "prelu", "rrelu"})
"""f(0) = 0 and f(ax) = a f(x) for a > 0: dropout before and after give the same numbers."""

ACTIVATIONS = HOMOGENEOUS | {
    "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "logsigmoid", "log_sigmoid", "tanh",
    "softplus", "softsign", "hardtanh", "hardsigmoid", "hardswish", "tanhshrink", "softshrink", "hardshrink",
    "threshold", "glu", "softmax", "log_softmax", "softmin", "exp",
}  # fmt: skip

BATCH_NORMS = frozenset({"batch_norm"})

LINEAR = frozenset({
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
})  # fmt: skip

PASSING = frozenset({
    "view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "swapaxes",
    "permute", "movedim", "t", "contiguous", "clone", "to", "float", "expand", "getitem", "chunk", "split",
    "unbind", "narrow", "select", "cat", "concat", "concatenate", "stack", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "max_pool2d_with_indices", "mean", "pad", "interpolate", "pixel_shuffle",
})  # fmt: skip
"""The units stay the units: reshaping, joining, pooling."""

RANDOM = frozenset({
    "bernoulli", "rand", "rand_like", "randn", "randn_like", "normal", "uniform", "poisson", "multinomial",
    "geometric", "gumbel_softmax",
})  # fmt: skip


def operation(func: Callable[..., Any]) -> str:
    """The name of a torch function, without the underscores of in-place and dunder forms."""
    return str(getattr(func, "__name__", "")).strip("_")


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_in(each)
