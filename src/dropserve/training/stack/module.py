"""Many modules of any kind at once: ``torch.func.functional_call`` under ``vmap``."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dropserve.dropout.calls import DropoutCall, parse_dropout
from dropserve.dropout.mode import DropoutMode, no_fused_attention
from dropserve.errors import UnmaskableError
from dropserve.model import set_mode

_ROWS = 4  # of the trial that finds the sites
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class StackedModule:
    """Modules of one class and one set of arguments.

    Implements :class:`~dropserve.training.stack.net.StackedNet`.

    Args:
        template: one of them; only its structure is used.
        rows: some rows as it takes them, at least four.

    Raises:
        UnmaskableError: if a dropout has no mask that multiplies, or the batch is not its first axis.
    """

    def __init__(self, template: nn.Module, rows: Tensor) -> None:
        self._template = copy.deepcopy(template).requires_grad_(requires_grad=False)
        self._learning = {name: p.shape for name, p in template.named_parameters() if p.requires_grad}
        self._rest = [
            *(name for name, p in template.named_parameters() if not p.requires_grad),
            *(name for name, _ in template.named_buffers()),
        ]
        self._kept = set(template.state_dict(keep_vars=True))
        self._shared = _shared_names(template)
        self.mixes_rows = any(isinstance(module, _NORMS) for module in template.modules())
        trial = _Trial()
        with torch.random.fork_rng(devices=[]), torch.no_grad(), no_fused_attention(), trial:
            set_mode(copy.deepcopy(template), training=True)(
                rows[:_ROWS].to(next(template.parameters()).dtype, copy=True)
            )
        self.rates = tuple(rate for rate, _ in trial.sites)
        self._shapes = tuple(shape for _, shape in trial.sites)
        self._order = tuple(trial.order)

    def another(self) -> StackedModule:
        """The same: vmap needs no work space, but a module's mode is its own."""
        twin = copy.copy(self)
        twin._template = copy.deepcopy(self._template)
        return twin

    def site_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each site's mask per row."""
        return self._shapes

    def gather(self, models: Sequence[nn.Module], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters that learn [M, P], and the rest of the state [M, ...] by name."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()

        states = [dict(model.named_parameters()) | dict(model.named_buffers()) for model in models]
        flat = torch.stack(
            [torch.cat([cast(state[name]).reshape(-1) for name in self._learning]) for state in states]
        )
        return flat, {name: torch.stack([cast(state[name]) for state in states]) for name in self._rest}

    def state(self, parameters: Tensor, rest: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
        """A member's state, as ``load_state_dict`` of its module takes it."""
        own = {name: value[0] for name, value in self._views(parameters[member : member + 1]).items()}
        own |= {name: value[member] for name, value in rest.items()}
        own |= {other: own[name] for other, name in self._shared.items()}
        return {name: value.detach().clone() for name, value in own.items() if name in self._kept}

    def forward(
        self, parameters: Tensor, rest: Mapping[str, Tensor], rows: Tensor, masks: Sequence[Tensor] | None
    ) -> Tensor:
        """Outputs [M, B, ...] in eval mode, dropout off, or by masks."""
        with torch.no_grad():
            # Dropout must be called for a mask to be put in its place; the rest stays in eval mode.
            return self._call(self._views(parameters), rest, rows, masks, training=False)

    def gradient(
        self,
        parameters: Tensor,
        rest: Mapping[str, Tensor],
        rows: Tensor,
        masks: Sequence[Tensor],
        loss: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The gradient [M, P] and the losses [M]; running statistics in ``rest`` are updated."""
        leaves = {name: view.detach().requires_grad_() for name, view in self._views(parameters).items()}
        losses = loss(self._call(leaves, rest, rows, masks, training=True))
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return torch.cat([slope.reshape(len(slope), -1) for slope in slopes], dim=1), losses.detach()

    def _call(
        self,
        parameters: Mapping[str, Tensor],
        rest: Mapping[str, Tensor],
        rows: Tensor,
        masks: Sequence[Tensor] | None,
        *,
        training: bool,
    ) -> Tensor:
        given = [] if masks is None else [mask[:, : rows.shape[1]] for mask in masks]

        def one(own: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, *mask: Tensor) -> Any:
            with no_fused_attention(), _Given(self._order, None if masks is None else mask):
                return functional_call(self._template, (own, fixed), (x,))

        self._template.train(training)
        axes = (0, 0, 0, *([0] * len(given)))
        return vmap(one, in_dims=axes)(dict(parameters), dict(rest), rows, *given)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self._learning.values()]
        parts = flat.split(sizes, dim=1)
        return {
            name: part.view(len(flat), *shape)
            for (name, shape), part in zip(self._learning.items(), parts, strict=True)
        }


class _EveryRate(DropoutMode):
    """A rate of 0 is a site as well: members may have another rate there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        call = parse_dropout(func, args, kwargs or {})
        return (
            super().__torch_function__(func, types, args, kwargs) if call is None else self.on_dropout(call)
        )


class _Trial(_EveryRate):
    """Finds the dropout sites of a module in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[tuple[float, tuple[int, ...]]] = []
        self.order: list[int | None] = []  # for each call its site; None for one that is never on

    def on_dropout(self, call: DropoutCall) -> Tensor:
        """Note the site; nothing is dropped."""
        self.order.append(len(self.sites) if call.active else None)
        if call.active:
            shape = call.noise_shape
            if call.alpha:
                raise UnmaskableError(
                    f"{call.kind}: stacked training multiplies by masks, and this dropout also shifts; use "
                    "nn.Dropout, or train one by one with `dropserve train`"
                )
            if not shape or shape[0] != _ROWS:
                raise UnmaskableError(
                    f"{call.kind} on a tensor of {list(call.input.shape)} for {_ROWS} rows: stacked training "
                    "needs the rows on axis 0"
                )
            self.sites.append((call.p, shape[1:]))
        return call.input.clone()


class _Given(_EveryRate):
    """Multiplies by masks in the place of dropout, or leaves it out."""

    def __init__(self, order: Sequence[int | None], masks: Sequence[Tensor] | None) -> None:
        super().__init__()
        self._order, self._masks = iter(order), masks

    def on_dropout(self, call: DropoutCall) -> Tensor:
        """The mask of this call's site."""
        site = next(self._order)
        return call.input if self._masks is None or site is None else call.masked(self._masks[site], None)


def _shared_names(module: nn.Module) -> dict[str, str]:
    """For each further name of a tied tensor, the name under which it is listed once."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            shared[name] = known
    return shared
