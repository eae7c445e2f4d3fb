"""The six networks of the heart: each hides its dropout in another way."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import nn

from dropserve.dropout.program import masked_program
from dropserve.signature import TensorSpec, parse_input


class Mlp(nn.Module):
    """A module and a function."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 16), nn.ReLU())
        self.out = nn.Linear(16, 5)

    def forward(self, x):
        return self.out(F.dropout(self.net(x), 0.2, training=self.training))


class Cnn(nn.Module):
    """Whole channels, with batch normalisation around."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3),
        )  # fmt: skip
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x):
        return self.out(self.drop(self.conv(x).flatten(1)))


class Residual(nn.Module):
    """Reads its batch size early."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.25)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        rows = x.shape[0]
        h = F.relu(self.first(x))
        h = h + self.drop(F.relu(self.norm(self.second(h))))
        h = F.dropout(h.reshape(rows, 6, -1).mean(-1), 0.1, training=self.training)
        return self.out(h).reshape(rows, 3)


class Transformer(nn.Module):
    """Attention dropout inside fused functions, batch first or second."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        h = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.out(h.mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    """Dropout between layers, inside one fused function."""

    def __init__(self, cell=nn.LSTM, batch_first=True, bidirectional=False):
        super().__init__()
        self.batch_first = batch_first
        self.rnn = cell(8, 12, 3, dropout=0.3, batch_first=batch_first, bidirectional=bidirectional)
        self.drop = nn.Dropout(0.4)
        self.out = nn.Linear(24 if bidirectional else 12, 2)

    def forward(self, x):
        h, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.out(self.drop(h[:, -1] if self.batch_first else h[-1]))


class Selu(nn.Module):
    """Dropped units take a value of their own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 32), nn.SELU(),
            nn.AlphaDropout(0.2), nn.Linear(32, 2),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


@dataclass(frozen=True)
class Network:
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    sites: int

    def rows(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.inputs[0].sized(), generator=generator)


NETWORKS = {
    "mlp": (Mlp, "10", 2),
    "cnn": (Cnn, "1,8,8", 3),
    "residual": (Residual, "3,6,6", 2),
    "transformer-5": (Transformer, "5,16", 8),
    "transformer-second-12": (partial(Transformer, batch_first=False), "12,16", 8),
    "lstm-12": (Recurrent, "12,8", 3),
    "lstm-second-5": (partial(Recurrent, batch_first=False), "5,8", 3),
    "gru-both-ways": (partial(Recurrent, nn.GRU, bidirectional=True), "5,8", 3),
    "selu": (Selu, "10", 2),
}


@pytest.fixture(params=NETWORKS, scope="session")
def network(request):
    """Shared: tests do not change it."""
    build, shape, sites = NETWORKS[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build()
        for part in module.modules():  # statistics that an untrained BatchNorm has not got
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return Network(module.eval(), (parse_input(shape),), sites)


@pytest.fixture(scope="session")
def program(network):
    return masked_program(network.module, network.inputs)
