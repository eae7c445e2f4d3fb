"""Which torch functions are dropout, and what their masks look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from dropserve.signature import SiteKind


@dataclass(frozen=True)
class DropoutCall:
    """One call of a dropout function.

    Attributes:
        kind: which dropout.
        input: the activations.
        p: probability that a unit is dropped.
        active: whether the call would drop anything now (its ``training`` argument).
        inplace: whether the result replaces the input's content.
    """

    kind: SiteKind
    input: Tensor
    p: float
    active: bool
    inplace: bool

    @property
    def alpha(self) -> bool:
        """Whether dropped units are replaced by a value of their own, which takes a shift."""
        return "alpha" in self.kind

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of torch's own mask for this input; 1 where units fall together."""
        return noise_shape(self.kind, tuple(self.input.shape))

    def masked(self, scale: Tensor, shift: Tensor | None) -> Tensor:
        """The activations under a mask that broadcasts against them."""
        if self.inplace:
            self.input.mul_(scale)
            return self.input if shift is None else self.input.add_(shift)
        scaled = self.input * scale
        return scaled if shift is None else scaled + shift


def noise_shape(kind: SiteKind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of torch's mask for an input of some shape."""
    if kind in {"dropout", "alpha_dropout"}:
        return shape
    # dropout1d and dropout3d take an input of one axis less for one without a batch, so axis 0 is then
    # the channels; dropout2d never does (torch issue 77081).
    unbatched = (kind == "dropout1d" and len(shape) == 2) or (kind == "dropout3d" and len(shape) == 4)
    kept = 1 if unbatched else 2
    return shape[:kept] + (1,) * (len(shape) - kept)


def parse_dropout(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> DropoutCall | None:
    """Read a call of a dropout function; None if the function is another one."""
    kind = _KINDS.get(func)
    if kind is None:
        return None
    names = ("input", "p", "training", "inplace") if func in _FUNCTIONAL else ("input", "p", "train")
    given: dict[str, Any] = dict(zip(names, args, strict=False)) | dict(kwargs)
    call = DropoutCall(
        kind=kind,
        input=given["input"],
        p=float(given.get("p", 0.5)),
        active=bool(given.get("train", given.get("training", func not in _OFF_BY_DEFAULT))),
        inplace=bool(given.get("inplace", False)) or func in _INPLACE,
    )
    # torch.feature_dropout is the function below all of dropout1d to dropout3d.
    by_axes: dict[int, SiteKind] = {2: "dropout", 3: "dropout1d", 5: "dropout3d"}
    return replace(call, kind=by_axes.get(call.input.dim(), kind)) if func in _FEATURE else call


_FUNCTIONAL: dict[Callable[..., Any], SiteKind] = {
    F.dropout: "dropout",
    F.dropout1d: "dropout1d",
    F.dropout2d: "dropout2d",
    F.dropout3d: "dropout3d",
    F.alpha_dropout: "alpha_dropout",
    F.feature_alpha_dropout: "feature_alpha_dropout",
}
_KINDS: dict[Callable[..., Any], SiteKind] = {
    **_FUNCTIONAL,
    torch.dropout: "dropout",
    torch.dropout_: "dropout",
    torch.feature_dropout: "dropout2d",
    torch.feature_dropout_: "dropout2d",
    torch.alpha_dropout: "alpha_dropout",
    torch.alpha_dropout_: "alpha_dropout",
    torch.feature_alpha_dropout: "feature_alpha_dropout",
    torch.feature_alpha_dropout_: "feature_alpha_dropout",
}
_FEATURE = frozenset({torch.feature_dropout, torch.feature_dropout_})
_OFF_BY_DEFAULT = frozenset({F.alpha_dropout, F.feature_alpha_dropout})
_INPLACE = frozenset(
    {torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_}
)
