"""Many modules of one architecture as one: what the stacked trainer asks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs [M, B, ...] and targets [M, B, ...] to the loss of each row [M, B]."""


class StackedNet(Protocol):
    """M modules whose parameters are the rows of one tensor [M, P].

    Attributes:
        rates: the modules' own dropout rates, one for each site.
        mixes_rows: whether a row's output in training depends on other rows (BatchNorm).
    """

    rates: tuple[float, ...]
    mixes_rows: bool

    def another(self) -> StackedNet:
        """The same with a work space of its own, for another thread."""
        ...

    def site_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each site's mask per row."""
        ...

    def gather(self, models: Sequence[nn.Module], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters that learn [M, P], and the rest of the state [M, ...] by name."""
        ...

    def state(self, parameters: Tensor, rest: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
        """A member's state, as ``load_state_dict`` of its module takes it."""
        ...

    def forward(
        self, parameters: Tensor, rest: Mapping[str, Tensor], rows: Tensor, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Outputs [M, B, ...] of rows [M, B, ...] in eval mode.

        Args:
            parameters: [M, P].
            rest: the rest of the state.
            rows: of each member.
            masks: [M, B or more, *units] for each site; none for dropout off.
        """
        ...

    def gradient(
        self,
        parameters: Tensor,
        rest: Mapping[str, Tensor],
        rows: Tensor,
        masks: Sequence[Tensor],
        loss: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """One step's gradient, in train mode.

        Args:
            parameters: [M, P].
            rest: the rest of the state; running statistics in it are updated.
            rows: [M, B, ...], may be changed.
            masks: [M, B or more, *units] for each site.
            loss: from outputs [M, B, ...] to the loss of each member [M].

        Returns:
            The gradient [M, P], overwritten by the next, and the losses [M].
        """
        ...
