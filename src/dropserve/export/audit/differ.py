"""Compare the outputs of two forwards: shapes first, then values, and NaN never passes for equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

Tensors = Mapping[str, torch.Tensor]
ROUNDING = 1e-3  # in float64 rounding shrinks by far more than this; what is real stays


@dataclass(frozen=True)
class Difference:
    """How far two sets of outputs are apart.

    Attributes:
        output: the output that differs most.
        absolute: greatest absolute difference, infinite where NaN meets a number.
        relative: the same as a share of the output's greatest magnitude.
        shape: what is wrong with names, shapes or dtypes; empty when they agree.
    """

    output: str = ""
    absolute: float = 0.0
    relative: float = 0.0
    shape: str = ""

    @property
    def identical(self) -> bool:
        """Not a bit differs."""
        return self.absolute == 0 and not self.shape

    def within(self, tolerance: float) -> bool:
        """Whether shapes agree and no value is further away than a share of the scale."""
        return not self.shape and self.relative <= tolerance

    @property
    def size(self) -> str:
        """A difference that is small enough, in words."""
        return "bit-equal" if self.identical else f"largest difference {self.relative:.2g} of the scale"

    def __str__(self) -> str:
        if self.shape:
            return self.shape
        return f"{self.output} differs by {self.absolute:.3g} ({self.relative:.2g} of its scale)"


def compare(expected: Tensors, got: Tensors, *, finite: bool = False) -> Difference:
    """The greatest difference over all outputs.

    Args:
        expected: outputs by name.
        got: the same from elsewhere.
        finite: compare only where the expected value is a finite number.
    """
    if list(expected) != list(got):
        return Difference(shape=f"outputs {list(expected)} against {list(got)}")
    worst = Difference()
    for name, one in expected.items():
        other = got[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            return Difference(name, shape=f"{name}: {_describe(one)} against {_describe(other)}")
        if finite and (one.is_floating_point() or one.is_complex()):
            other = torch.where(one.isfinite(), other, one)
        absolute, scale = _distance(one, other)
        relative = absolute / scale if scale else (float("inf") if absolute else 0.0)
        if relative > worst.relative or not worst.output:
            worst = Difference(name, absolute, relative)
    return worst


def rows(outputs: Tensors, picked: slice | torch.Tensor) -> dict[str, torch.Tensor]:
    """Some rows of every output."""
    return {name: tensor[picked] for name, tensor in outputs.items()}


def widened(batch: Tensors) -> dict[str, torch.Tensor]:
    """The inputs of a copy of the model in float64."""
    return {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}


def same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Element by element, whether two tensors of one shape hold the same value; NaN equals NaN."""
    equal = one == other
    if one.is_floating_point() or one.is_complex():
        equal |= one.isnan() & other.isnan()
    return equal


def _distance(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    if not one.numel():
        return 0.0, 1.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    a, b = one.to(wide), other.to(wide)
    gap = torch.where(same(a, b), 0.0, (a - b).abs().to(torch.float64))
    gap = gap.nan_to_num(nan=float("inf"), posinf=float("inf"))
    size = a.abs().to(torch.float64)
    finite = size[size.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    return float(gap.max()), max(scale, torch.finfo(torch.float32).tiny)


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
