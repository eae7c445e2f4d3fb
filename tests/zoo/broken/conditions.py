"""Faults that only some inputs meet, and answers that rest on more than the row: no list names them."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class OnlyInLargeBatches(nn.Module):
    INPUTS = ("8",)
    CHECK = "random-state-elsewhere"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if x.shape[0] > 16:
            x = F.dropout(x)  # PLACE
        return x


class OnlyForOneRow(nn.Module):
    INPUTS = ("8",)
    CHECK = "random-state-elsewhere"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if x.shape[0] == 1:
            x = x + torch.randn(8)  # PLACE
        return x


class OnlyForExtremes(nn.Module):
    INPUTS = ("8",)
    CHECK = "random-state-elsewhere"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        rows = []
        for row in x:
            if row.abs().max() > 20:  # PLACE
                row = row + torch.randn(8)  # noqa: PLW2901  # PLACE
            rows.append(row)
        return self.fc(torch.stack(rows))


class OnlyForShortInput(nn.Module):
    INPUTS = ("L<=9,8",)
    CHECK = "random-state-elsewhere"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if x.shape[1] < 9:
            x = F.dropout(x)  # PLACE
        return x


class BranchOnWholeBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if x.mean() > 0:  # PLACE
            x = x * 2
        return x


class ScaledByReadNumber(nn.Module):
    INPUTS = ("8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        s = x.abs().max().item()  # PLACE
        return self.fc(x / s)


class TransposedInput(nn.Module):
    INPUTS = ("4,8",)
    CHECK = "input-unchanged"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 8)

    def forward(self, x):
        x.transpose_(1, 2)  # PLACE
        return self.fc(x)


class CountingTensor(nn.Module):
    INPUTS = ("8",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.n = torch.zeros(1)

    def forward(self, x):
        self.n += 1  # PLACE
        return self.fc(x) * (1 + self.n)


class HiddenInstanceNorm(nn.Module):
    INPUTS = ("4,8",)
    CHECK = "weights-unchanged"

    def __init__(self):
        super().__init__()
        self.norms = [nn.InstanceNorm1d(4, track_running_stats=True)]

    def forward(self, x):
        return self.norms[0](x)  # PLACE


class WhitenedByBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        c = torch.cov(x.T)  # PLACE
        return x @ c


class SimilarityOfRows(nn.Module):
    INPUTS = ("8",)
    CHECK = "outputs-are-batched"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return x @ x.T  # PLACE


class NestedCounter(nn.Module):
    INPUTS = ("8",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.state = {"n": 0}

    def forward(self, x):
        self.state["n"] += 1
        x = self.fc(x)
        return x if self.state["n"] < 60 else x * 2  # PLACE
