"""Inputs and outputs of every kind."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class Tokens(nn.Module):
    INPUTS = ("7:int64",)

    def __init__(self):
        super().__init__()
        self.table, self.drop = nn.Embedding(50, 16), nn.Dropout(0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        return self.head(self.drop(self.table(tokens)).mean(1))


class VariableLength(nn.Module):
    INPUTS = ("L<=9,8",)

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out.mean(1))


class TwoInputs(nn.Module):
    INPUTS = ("8", "4:int64")

    def __init__(self):
        super().__init__()
        self.table, self.drop = nn.Embedding(10, 4), nn.Dropout(0.2)
        self.head = nn.Linear(24, 3)

    def forward(self, numbers, categories):
        x = torch.cat([numbers, self.table(categories).flatten(1)], dim=1)
        return self.head(self.drop(x))


class PaddingMask(nn.Module):
    INPUTS = ("6,16", "6:bool")

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)

    def forward(self, x, padding):
        padding = padding & (torch.arange(6) > 0)  # the first is never padding
        y, _ = self.attn(x, x, x, key_padding_mask=padding, need_weights=False)
        return (y * ~padding.unsqueeze(2)).sum(1)


class DictOutput(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x):
        return {"mean": self.mean(x), "deviation": F.softplus(self.spread(x))}


class TupleOutput(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x, x.argmax(dim=1)


class OneNumberPerRow(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 1)

    def forward(self, x):
        return self.fc(x).squeeze(1)


class ImpossibleClasses(nn.Module):
    """Minus infinity for classes that are ruled out."""

    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.register_buffer("allowed", torch.tensor([True, False, True, True]))

    def forward(self, x):
        return self.fc(x).masked_fill(~self.allowed, float("-inf"))


class Fourier(nn.Module):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 4)

    def forward(self, x):
        return self.fc(torch.fft.rfft(x, norm="ortho").abs())


class NoWeights(nn.Module):
    INPUTS = ("8",)

    def forward(self, x):
        return x.flip(1) * 2


class Doubles(nn.Module):
    INPUTS = ("8:float64",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4, dtype=torch.float64)

    def forward(self, x):
        return self.fc(x)
