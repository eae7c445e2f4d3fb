"""Many multilayer perceptrons at once: a batched matrix product for each layer, gradients written by hand.

This takes about half the time of the same through ``torch.func`` and autograd, which allocate each
intermediate result anew (benchmarks/stacked_training.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dropserve.training.stack.chain import Dropout, Linear, Step

Shape = tuple[int, ...]


class StackedMLP:
    """Chains of linear layers, ReLU and dropout on rows [features].

    Implements :class:`~dropserve.training.stack.net.StackedNet`.

    Args:
        steps: what :func:`~dropserve.training.stack.chain.chain` found.
    """

    mixes_rows = False

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self.rates = tuple(step.p for step in steps if isinstance(step, Dropout))
        self._scratch: dict[object, Tensor] = {}
        self._places: dict[str, tuple[slice, Shape]] = {}
        for step in steps:
            if isinstance(step, Linear):
                self._place(step.weight, (step.outputs, step.inputs))
                if step.bias:
                    self._place(step.bias, (step.outputs,))

    def _place(self, name: str, shape: Shape) -> None:
        start = self._size
        self._places[name] = slice(start, start + math.prod(shape)), shape

    @property
    def _size(self) -> int:
        return max((place.stop for place, _ in self._places.values()), default=0)

    def another(self) -> StackedMLP:
        """The same with a work space of its own."""
        return StackedMLP(self._steps)

    def site_shapes(self) -> tuple[Shape, ...]:
        """Shape of each site's mask per row."""
        width = next(step.inputs for step in self._steps if isinstance(step, Linear))
        shapes: list[Shape] = []
        for step in self._steps:
            if isinstance(step, Dropout):
                shapes.append((width,))
            elif isinstance(step, Linear):
                width = step.outputs
        return tuple(shapes)

    def gather(self, models: Sequence[nn.Module], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters [M, P]; there is no other state."""
        flat = torch.empty((len(models), self._size), dtype=dtype)
        for row, model in zip(flat, models, strict=True):
            for name, parameter in model.named_parameters():
                row[self._places[name][0]] = parameter.detach().to(dtype).reshape(-1)
        return flat, {}

    def state(self, parameters: Tensor, rest: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
        """A member's state, as ``load_state_dict`` of its module takes it."""
        del rest
        row = parameters[member]
        return {name: row[place].reshape(shape).clone() for name, (place, shape) in self._places.items()}

    def forward(
        self, parameters: Tensor, rest: Mapping[str, Tensor], rows: Tensor, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Outputs [M, B, outputs] of rows [M, B, features]."""
        del rest
        return self._forward(parameters, rows.clone(), masks, {}).clone()

    def gradient(
        self,
        parameters: Tensor,
        rest: Mapping[str, Tensor],
        rows: Tensor,
        masks: Sequence[Tensor],
        loss: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The gradient [M, P] and the losses [M]."""
        del rest
        kept: dict[int, Tensor] = {}
        output = self._forward(parameters, rows, masks, kept)
        leaf = output.detach().requires_grad_()
        losses = loss(leaf)
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
        gradient = self._space("gradient", parameters.shape, parameters)
        self._backward(parameters, gradient, slope.contiguous(), masks, kept, output)
        return gradient, losses.detach()

    def _forward(
        self, parameters: Tensor, rows: Tensor, masks: Sequence[Tensor] | None, kept: dict[int, Tensor]
    ) -> Tensor:
        """Run, and keep what each linear layer was given."""
        values = rows
        for number, step in enumerate(self._steps):
            match step:
                case Linear():
                    kept[number] = values
                    weight = self._of(parameters, step.weight).transpose(1, 2)
                    out = self._space(number, (*rows.shape[:2], step.outputs), rows)
                    if step.bias:
                        bias = self._of(parameters, step.bias)[:, None]
                        values = torch.baddbmm(bias, values, weight, out=out)
                    else:
                        values = torch.bmm(values, weight, out=out)
                case Dropout():
                    if masks is not None:
                        values.mul_(masks[step.site][:, : rows.shape[1]])
                case _:
                    values.relu_()
        return values

    def _backward(
        self,
        parameters: Tensor,
        gradient: Tensor,
        slope: Tensor,
        masks: Sequence[Tensor],
        kept: Mapping[int, Tensor],
        output: Tensor,
    ) -> None:
        """Fill the gradient. Steps between two linear layers work in place on one tensor, ``values``.

        A rectifier's slope is 0 where that tensor is 0 in the end: where it was not the rectifier, it was a
        mask, and then the slope is 0 as well.
        """
        values, first = output, min(kept)
        for number, step in reversed(list(enumerate(self._steps))):
            match step:
                case Linear():
                    values = kept[number]
                    torch.bmm(slope.transpose(1, 2), values, out=self._of(gradient, step.weight))
                    if step.bias:
                        torch.sum(slope, 1, out=self._of(gradient, step.bias))
                    if number == first:
                        return
                    out = self._space(("slope", number), values.shape, values)
                    slope = torch.bmm(slope, self._of(parameters, step.weight), out=out)
                case Dropout():
                    slope.mul_(masks[step.site][:, : slope.shape[1]])
                case _:
                    torch.ops.aten.threshold_backward(slope, values, 0, grad_input=slope)

    def _of(self, flat: Tensor, name: str) -> Tensor:
        place, shape = self._places[name]
        return flat[:, place].view(len(flat), *shape)

    def _space(self, name: object, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory to write to, kept from step to step: what is freshly allocated is not in the cache."""
        shape = tuple(shape)
        found = self._scratch.get(name)
        if found is None or found.shape != shape or found.dtype != like.dtype:
            found = self._scratch[name] = like.new_empty(shape)
        return found
