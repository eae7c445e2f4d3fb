from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from dropserve.export.onnx import export_onnx
from dropserve.signature import TensorSpec


class Tuple(nn.Module):
    """A program as the exporters want it, from a function of (module, *tensors)."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.call(self.module, *tensors)
        return result if isinstance(result, tuple) else (result,)


@pytest.fixture(autouse=True, scope="session")
def _one_registry() -> None:
    """The exporter compiles its whole operator library at every call: two thirds of a small export."""
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]


@pytest.fixture
def to_onnx(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    """Export ``call(module, *tensors)`` and read the graph back."""

    def export(
        module: nn.Module,
        call: Callable[..., Any],
        specs: Sequence[TensorSpec],
        outputs: Sequence[str] = ("output",),
        examples: Mapping[str, torch.Tensor] | None = None,
    ) -> onnx.ModelProto:
        program = Tuple(module, call).eval()
        given = examples or {spec.name: torch.randn(2, *spec.sized()) for spec in specs}
        path = tmp_path / "program.onnx"
        export_onnx(program, specs, outputs, given, path, opset=18)
        return onnx.load(path)

    return export
