"""Layers and habits that look suspicious, and are sound."""

import math
import time

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations


class WeightNorm(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = parametrizations.weight_norm(nn.Linear(8, 4))

    def forward(self, x):
        return self.fc(x)


class SpectralNorm(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = parametrizations.spectral_norm(nn.Linear(8, 4))

    def forward(self, x):
        return self.fc(x)


class OldSpectralNorm(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.utils.spectral_norm(nn.Linear(8, 4))

    def forward(self, x):
        return self.fc(x)


class Norms(nn.Module):
    """Normalisation within a row, which needs no running statistics."""

    INPUTS = ("4,8",)

    def __init__(self):
        super().__init__()
        self.instance, self.group = nn.InstanceNorm1d(4), nn.GroupNorm(2, 4)
        self.layer, self.rms = nn.LayerNorm(8), nn.RMSNorm(8)

    def forward(self, x):
        return self.rms(self.layer(self.group(self.instance(x))))


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x * 2

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient * 2


class CustomGradient(nn.Module):
    INPUTS = ("8",)
    FORMATS = ("onnx",)  # TorchScript files hold no Python function

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return _Double.apply(self.fc(x))


class PositionalEncoding(nn.Module):
    INPUTS = ("6,8",)

    def __init__(self):
        super().__init__()
        position = torch.arange(64).unsqueeze(1)
        rate = torch.exp(torch.arange(0, 8, 2) * (-math.log(10_000.0) / 8))
        table = torch.zeros(1, 64, 8)
        table[0, :, 0::2], table[0, :, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        self.register_buffer("table", table, persistent=False)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.drop(x + self.table[:, : x.size(1)]))


class SeededInConstructor(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.rng = np.random.default_rng(3)
        self.projection = torch.randn(8, 8, generator=self.generator)
        self.shift = torch.from_numpy(self.rng.normal(size=8).astype(np.float32))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(x @ self.projection + self.shift)


class FrozenNorm(nn.Module):
    """Overrides train() to keep BatchNorm in eval, rightly."""

    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.1)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.drop(self.norm(self.fc(x)))


class ActivationsInDict(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.activations = {"relu": nn.ReLU(), "gelu": nn.GELU()}
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.activations["gelu"](self.fc(x))


class ActivationBuiltInForward(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return nn.Softmax(dim=1)(nn.ReLU()(self.fc(x)))


class TableMadeOnce(nn.Module):
    """A cache that depends on shapes alone, filled by the first forward and grown when needed."""

    INPUTS = ("6,8",)

    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.zeros(0, 8), persistent=False)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        if self.angles.size(0) < x.size(1):
            self.angles = torch.outer(torch.arange(x.size(1)), torch.linspace(0.1, 1, 8))
        return self.fc(x * torch.cos(self.angles[: x.size(1)]))


class LazyLayers(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.LazyLinear(16), nn.LazyLinear(4)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


class CheckedInput(nn.Module):
    """Reads a value to refuse bad input, and computes nothing from it."""

    INPUTS = ("8",)
    FORMATS = ()  # torch.export follows no decision taken from a value

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("the input has infinite or missing values")
        return self.fc(x)


class Chatty(nn.Module):
    """Counts its calls and takes the time, for a log only."""

    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.calls, self.seconds = 0, 0.0
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        start = time.perf_counter()
        self.calls += 1
        y = self.fc(x)
        self.seconds += time.perf_counter() - start
        return y


class InPlaceInside(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(8, 8), nn.Linear(8, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.fc1(x))
        x *= 0.5
        return self.fc2(x)


class TiedWeights(nn.Module):
    INPUTS = ("5:int64",)

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.table(x).mean(1))


class NormalisedRows(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return self.fc(x).log_softmax(dim=1)


class SoftExperts(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, x):
        shares, chosen = self.gate(x).topk(2, dim=1)
        weights = torch.zeros(x.shape[0], 3).scatter(1, chosen, shares.softmax(1))
        return sum(weights[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class IllConditioned(nn.Module):
    """Layers that multiply any difference: float32 rounding grows past a tolerance of 1e-5."""

    INPUTS = ("16",)
    FORMATS = ()  # no other runtime rounds as torch does, and here that is all the answer

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(9))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.9)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(layer(x))
        return x


class ZeroInitialised(nn.Module):
    """A residual branch that starts at nothing."""

    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Dropout(0.1)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x):
        return x + self.drop(self.fc2(torch.relu(self.fc1(x))))


class NoGradInside(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


class RepeatableTeacher(nn.Module):
    """A frozen helper held out of state_dict on purpose, the same at every construction."""

    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            teacher = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
            self.teacher = (teacher.eval().requires_grad_(requires_grad=False),)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.teacher[0](x))
