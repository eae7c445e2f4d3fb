"""Forwards that change something, or rest on what earlier ones left behind."""

import datetime as dt
import time

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class HiddenBatchNorm(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)
        self.norms = [nn.BatchNorm1d(8)]

    def forward(self, x):
        return self.norms[0](self.fc(x))  # PLACE


class _KeptInTrain(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def train(self, mode=True):  # noqa: ARG002
        return super().train(True)

    def forward(self, x):
        return self.norm(x)  # PLACE


class BatchNormInTrain(nn.Module):
    INPUTS = ("3,8,8",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = _KeptInTrain()

    def forward(self, x):
        return self.block(self.conv(x)).mean((2, 3))


class FunctionalBatchNorm(nn.Module):
    INPUTS = ("16",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("variance", torch.ones(16))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, training=True)  # PLACE


class RunningMean(nn.Module):
    INPUTS = ("16",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # PLACE
        return self.fc(x - self.mean)


class CountingBuffer(nn.Module):
    """The count is not used, and still every exported file would have to carry it."""

    INPUTS = ("16",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        self.calls += 1  # PLACE
        return self.fc(x)


class RenormalisedEmbedding(nn.Module):
    """``max_norm`` rewrites the weights of the rows it looks up, in eval mode too."""

    INPUTS = ("4:int64",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, max_norm=0.5)

    def forward(self, x):
        return self.table(x).mean(1)  # PLACE


class ClampedWeights(nn.Module):
    INPUTS = ("16",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        self.fc.weight.data.mul_(0.999)  # PLACE
        return self.fc(x)


class SpectralNormInTrain(nn.Module):
    INPUTS = ("16",)
    CHECK = "modules-in-eval"

    def __init__(self):
        super().__init__()
        self.fc = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 4))

    def train(self, mode=True):  # noqa: ARG002  # PLACE
        return super().train(True)

    def forward(self, x):
        return self.fc(x)


class WarmUp(nn.Module):
    """Another answer after the fifteenth call."""

    INPUTS = ("16",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        self.calls += 1
        return self.fc(x) * (1.0 if self.calls % 15 else 0.5)  # PLACE


class FirstInputKept(nn.Module):
    INPUTS = ("16",)
    CHECK = "call-history"

    def __init__(self):
        super().__init__()
        self.reference = None
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        if self.reference is None:
            self.reference = x.mean(dim=1, keepdim=True)
        return self.fc(x - self.reference.mean())  # PLACE


class GrowingCache(nn.Module):
    INPUTS = ("16",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.past = []
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        self.past.append(self.fc(x))
        return torch.stack(self.past).mean(0)  # PLACE


class CarriedState(nn.Module):
    INPUTS = ("5,8",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.hidden = None

    def forward(self, x):
        hidden = self.hidden
        if hidden is not None and hidden.shape[1] != x.shape[0]:
            hidden = None
        out, self.hidden = self.rnn(x, hidden)  # PLACE
        return out[:, -1]


_SEEN = []


class GlobalState(nn.Module):
    INPUTS = ("16",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        _SEEN.append(1)
        return self.fc(x) / len(_SEEN)  # PLACE


class TimeOfDay(nn.Module):
    INPUTS = ("16",)
    CHECK = "clock-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        if dt.datetime.now(dt.UTC).hour >= 12:
            return self.fc(x) * 2  # PLACE
        return self.fc(x)  # PLACE


class SunsetDate(nn.Module):
    INPUTS = ("16",)
    CHECK = "clock-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.fc(x)
        if time.time() > 2_500_000_000:
            x = x * 0.5
        return torch.relu(x)  # PLACE


class GradientMode(nn.Module):
    INPUTS = ("16",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.fc(x)
        return x * 0.9 if torch.is_grad_enabled() else x  # PLACE


class InPlaceOnInput(nn.Module):
    INPUTS = ("16",)
    CHECK = "input-unchanged"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x -= 0.5  # PLACE
        return self.fc(x)


class InPlaceActivationFirst(nn.Module):
    INPUTS = ("3,6,6",)
    CHECK = "input-unchanged"

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x):
        x = self.act(x)  # PLACE
        return self.conv(x)


class InPlaceThroughView(nn.Module):
    INPUTS = ("16",)
    CHECK = "input-unchanged"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x[:, 0] = 1.0  # PLACE
        return self.fc(x)


class InPlaceThroughNumpy(nn.Module):
    INPUTS = ("16",)
    CHECK = "input-unchanged"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        array = x.numpy()
        array.clip(0, 1, out=array)  # PLACE
        return self.fc(x)
