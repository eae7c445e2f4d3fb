from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from dropserve.export.artefacts import Artefacts, build
from dropserve.export.onnx import export_onnx
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import RunManifest, SourceRecord
from dropserve.model import load_class
from dropserve.signature import Axis, Signature, TensorSpec
from dropserve.store import Store, Stored


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


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(4, 6, 3), nn.ReLU()
        )
        self.end = nn.Linear(6, 3)
        self.body[1].running_mean.uniform_(-1, 1)  # type: ignore[union-attr,operator]
        self.body[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(nn.functional.dropout(self.body(x).mean((2, 3)), 0.3, self.training))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.end = nn.Dropout(0.4), nn.Linear(4 * 36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        h = self.first(x).relu()
        h = h + self.second(h).relu()
        return self.end(self.drop(h.reshape(size, -1)))


class Transformer(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.end, self.axis = nn.Linear(8, 3), 1 if batch_first else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.body(x if self.axis else x.transpose(0, 1)).mean(self.axis))


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.body = nn.LSTM(8, 10, 2, dropout=0.3, batch_first=batch_first)
        self.end, self.batch_first = nn.Linear(10, 3), batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = self.body(x if self.batch_first else x.transpose(0, 1))[0]
        return self.end(steps[:, -1] if self.batch_first else steps[-1])


class Selu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(16, 16), nn.SELU(),
            nn.FeatureAlphaDropout(0.2), nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Several(nn.Module):
    """Two inputs, one of whole numbers and variable length; a dict of outputs; attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 8), nn.Linear(4, 8)
        self.drop, self.end = nn.Dropout(0.25), nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor, features: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.embed(tokens)
        query = self.mix(features)[:, None]
        found = nn.functional.scaled_dot_product_attention(
            query, words, words, dropout_p=0.1 if self.training else 0.0
        )
        pooled = self.drop(found[:, 0].relu())
        return {"logits": self.end(pooled), "words": self.drop(words).sum(-1)}


LENGTH = Axis(name="L", maximum=12)
_SEQUENCE = (TensorSpec(name="input", shape=(LENGTH, 8)),)
_FLAT = (TensorSpec(name="input", shape=(8,)),)
_IMAGE = (TensorSpec(name="input", shape=(1, 6, 6)),)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[TensorSpec, ...]]] = {
    "mlp": (MLP, _FLAT),
    "cnn": (CNN, _IMAGE),
    "residual": (Residual, _IMAGE),
    "transformer": (Transformer, _SEQUENCE),
    "transformer-batch-second": (lambda: Transformer(batch_first=False), _SEQUENCE),
    "lstm": (Recurrent, _SEQUENCE),
    "lstm-batch-second": (lambda: Recurrent(batch_first=False), _SEQUENCE),
    "selu": (Selu, _FLAT),
    "several": (
        Several,
        (TensorSpec(name="tokens", dtype="int64", shape=(LENGTH,)), TensorSpec(name="features", shape=(4,))),
    ),
}


def make_subject(name: str) -> Subject:
    make, inputs = NETS[name]
    torch.manual_seed(0)
    return Subject(name, make().eval(), inputs)


_SLOW = {"transformer-batch-second", "lstm-batch-second", "selu"}


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in NETS], scope="session"
)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Subject, Artefacts]:
    """One of the nine models, untrained and in eval mode, with all of its graphs; they are shared: copy
    before changing a file."""
    subject = make_subject(request.param)
    return subject, build(subject, tmp_path_factory.mktemp(request.param), ExportSettings())


@pytest.fixture(scope="session")
def built_mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Artefacts]:
    """The MLP alone."""
    subject = make_subject("mlp")
    return subject, build(subject, tmp_path_factory.mktemp("mlp"), ExportSettings())


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


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=12):
        super().__init__()
        self.first, self.last = nn.Linear(6, hidden), nn.Linear(hidden, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.first(x))))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "model_store")


@pytest.fixture
def publish(store: Store, tmp_path: Path) -> Callable[..., Stored[RunManifest]]:
    """A published run of a small network, its source edited; weights are the untrained ones."""

    def make(
        *edits: tuple[str, str], rows: Mapping[str, Any] | None = None, **changes: Any
    ) -> Stored[RunManifest]:
        source = NET
        for old, new in edits:
            assert old in source
            source = source.replace(old, new)
        file = tmp_path / "net.py"
        file.write_text(source)
        loaded = load_class(f"{file}:Net")
        torch.manual_seed(0)
        module = loaded.build({})
        with store.staging("net", RunManifest) as staging:
            folder = staging.folder
            (folder / "source").mkdir()
            (folder / "source/net.py").write_text(source)
            save_file(module.state_dict(), folder / "weights.safetensors")
            if rows is not None:
                np.savez(folder / "validation.npz", **rows)
            values: dict[str, Any] = {
                "name": "net",
                "id": staging.id,
                "task": "raw",
                "signature": Signature(inputs=(TensorSpec(name="input", shape=(6,)),), outputs=()),
                "source": SourceRecord(
                    spec=loaded.spec, sha256=loaded.sha256, copy_file="source/net.py", arguments={}
                ),
                "metrics": {"test_accuracy": 0.5},
            }
            return store.publish(staging, RunManifest(**(values | changes)))

    return make
