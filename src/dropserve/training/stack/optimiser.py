"""torch's AdamW, Adam and SGD over many members at once, each with its own rate and decay.

The arithmetic is that of ``torch.optim``, step for step; a member's parameters are one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass
class StackedOptimiser:
    """Updates parameters [M, P] in place.

    Attributes:
        name: ``adamw``, ``adam`` or ``sgd``.
        decay: weight decay of each member [M, 1].
        momentum: of ``sgd``.
        first: the running mean of gradients [M, P]; the velocity of ``sgd``.
        second: the running mean of their squares [M, P]; empty for ``sgd``.
        steps: done so far.
    """

    name: str
    decay: Tensor
    momentum: float
    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def fresh(
        cls, name: str, decay: Sequence[float], momentum: float, parameters: Tensor
    ) -> StackedOptimiser:
        """Before the first step."""
        first = torch.zeros_like(parameters)
        return cls(
            name,
            torch.tensor(list(decay), dtype=parameters.dtype)[:, None],
            momentum,
            first,
            torch.zeros_like(parameters) if name != "sgd" else first[:, :0],
        )

    def keep(self, index: Tensor) -> StackedOptimiser:
        """The same for some of the members."""
        return StackedOptimiser(
            self.name, self.decay[index], self.momentum, self.first[index], self.second[index], self.steps
        )

    def step(self, parameters: Tensor, gradient: Tensor, rate: Tensor) -> None:
        """One step.

        Args:
            parameters: [M, P], changed.
            gradient: [M, P], may be used as scratch.
            rate: learning rate of each member [M, 1].
        """
        if self.name == "adamw":
            parameters.mul_(1 - rate * self.decay)
        else:
            gradient.addcmul_(parameters, self.decay)
        if self.name == "sgd":
            if self.steps == 0:
                self.first.copy_(gradient)
            else:
                self.first.mul_(self.momentum).add_(gradient)
            self.steps += 1
            parameters.addcmul_(self.first, rate, value=-1)
            return
        self.steps += 1
        self.first.lerp_(gradient, 1 - _BETA1)
        self.second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        correction = (1 - _BETA2**self.steps) ** 0.5
        denominator = torch.sqrt(self.second, out=gradient).div_(correction).add_(_EPSILON)
        parameters.addcmul_(
            torch.div(self.first, denominator, out=denominator), rate / (1 - _BETA1**self.steps), value=-1
        )
