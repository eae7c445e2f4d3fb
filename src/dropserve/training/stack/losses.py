"""Losses of a stack: from outputs [M, B, ...] and targets [M, B] to the loss of each row [M, B]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from dropserve.training.stack.net import Loss


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of one value a row: outputs [M, B, 1] or [M, B]."""
    return (output.reshape(target.shape) - target).square()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats of logits [M, B, C] and class numbers [M, B]."""
    return smoothed_cross_entropy(0.0)(output, target)


def smoothed_cross_entropy(smoothing: float) -> Loss:
    """Cross entropy with a share of the target spread over all classes."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        rows = functional.cross_entropy(
            output.flatten(0, 1), target.flatten(), reduction="none", label_smoothing=smoothing
        )
        return rows.view(target.shape)

    return loss
