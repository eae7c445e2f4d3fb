"""What is exported before something is planted. Each model is here for an operator that others lack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dropserve.export.subject import Subject
from dropserve.signature import parse_input


class Dense(nn.Module):
    """Square layers, so that weights may be transposed and not be noticed by any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.leaky, self.drop, self.out = nn.LeakyReLU(0.1), nn.Dropout(0.3), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaky(self.first(x))
        x = torch.relu(self.second(self.drop(x)))
        x = x + torch.tanh(self.third(x))
        return self.out(self.drop(x))


class Pictures(nn.Module):
    """Convolutions, a normalisation that no exporter can fold away, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.drop, self.out = nn.BatchNorm2d(6), nn.Dropout2d(0.25), nn.Linear(6, 3)
        nn.init.uniform_(self.norm.running_var, 0.01, 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.one(x)))
        x = x + self.drop(torch.relu(self.two(x)))
        return self.out(x.mean((2, 3)))


class Sequences(nn.Module):
    """A transformer with GELU, of any length up to 7."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 2)
        for part in self.body.parameters():  # the layers are copies: of one another no more
            nn.init.normal_(part, 0.0, 0.3) if part.dim() > 1 else nn.init.normal_(part, 0.5, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x).mean(1))


class Recurrent(nn.Module):
    """Two layers of LSTM, dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 6, 2, dropout=0.3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Simple(nn.Module):
    """A plain recurrent layer, whose translation is our own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Deciding(nn.Module):
    """Does something else for few rows: an exporter sees one of the two, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        if x.shape[0] < 3:
            h = h * 1.5
        return self.out(h)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dense": (Dense, "12"),
    "pictures": (Pictures, "2,6,6"),
    "sequences": (Sequences, "L<=7,8"),
    "recurrent": (Recurrent, "6,5"),
    "simple": (Simple, "6,5"),
    "deciding": (Deciding, "5"),
}


def subject(name: str) -> Subject:
    make, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    return Subject(name, module.eval(), (parse_input(shape),))
