"""The six networks on which the heart is measured: each hides its dropout in another way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn


class Mlp(nn.Module):
    """A module and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 16), nn.ReLU())
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.out(F.dropout(self.net(x), 0.2, training=self.training))


class Cnn(nn.Module):
    """Whole channels, with batch normalisation around."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3),
        )  # fmt: skip
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.out(self.drop(self.conv(x).flatten(1)))


class Residual(nn.Module):
    """Reads its batch size early."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.25)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        rows = x.shape[0]
        h = F.relu(self.first(x))
        h = h + self.drop(F.relu(self.norm(self.second(h))))
        h = F.dropout(h.reshape(rows, 6, -1).mean(-1), 0.1, training=self.training)
        return self.out(h).reshape(rows, 3)


class Transformer(nn.Module):
    """Attention dropout inside fused functions, batch first or second."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.out(h.mean(1 if self.batch_first else 0))


class Recurrent(nn.Module):
    """Dropout between layers, inside one fused function."""

    def __init__(
        self,
        *,
        batch_first: bool = True,
        cell: Callable[..., nn.Module] = nn.LSTM,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.rnn = cell(8, 12, 3, dropout=0.3, batch_first=batch_first, bidirectional=bidirectional)
        self.drop = nn.Dropout(0.4)
        self.out = nn.Linear(24 if bidirectional else 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h, _ = self.rnn(x if self.batch_first else x.transpose(0, 1))
        return self.out(self.drop(h[:, -1] if self.batch_first else h[-1]))


class Selu(nn.Module):
    """Dropped units take a value of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 32), nn.SELU(),
            nn.AlphaDropout(0.2), nn.Linear(32, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)


# Name, how to build it, and the shape of a row; attention and LSTM in both layouts and at two lengths.
NETWORKS: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("MLP", Mlp, "10"),
    ("CNN, Dropout2d, BatchNorm", Cnn, "1,8,8"),
    ("residual CNN, early batch size", Residual, "3,6,6"),
    ("AlphaDropout, SELU", Selu, "10"),
    *(
        (
            f"{name}, batch {'first' if first else 'second'}, length {length}",
            partial(network, batch_first=first),
            f"{length},{width}",
        )
        for name, network, width in (("Transformer", Transformer, 16), ("LSTM", Recurrent, 8))
        for first in (True, False)
        for length in (5, 12)
    ),
]


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """A network in eval mode, always the same; BatchNorm has seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.get_buffer("running_mean"))
                nn.init.uniform_(part.get_buffer("running_var"), 0.5, 2)
    return module.eval()
