"""Choices and numbers that a trace would freeze, weights that no file would hold, and plain failures."""

import sys

import numpy as np
import torch
from torch import nn


class BranchPerRow(nn.Module):
    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return torch.stack([row if row.sum() > 0 else -row for row in x])  # PLACE


class NumberPerRow(nn.Module):
    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        scales = [row.abs().max().item() for row in x]  # PLACE
        return torch.stack([row / scale for row, scale in zip(x, scales, strict=True)])


class ThroughNumpy(nn.Module):
    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        ordered = torch.from_numpy(np.sort(x.numpy(), axis=1))  # PLACE
        return self.fc(ordered)


class ThroughLists(nn.Module):
    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        rows = [[min(max(value, -1.0), 1.0) for value in row] for row in x.tolist()]
        return self.fc(torch.tensor(rows))  # PLACE


class LoopUntilSmall(nn.Module):
    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        rows = []
        for row in x:
            while row.norm() > 1:  # PLACE
                row = row / 2  # noqa: PLW2901
            rows.append(row)
        return self.fc(torch.stack(rows))


class FarAwayBranch(nn.Module):
    """The other way is taken by large input only."""

    INPUTS = ("8",)
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return torch.stack([self.fc(row / 1000 if row.max() > 1000 else row) for row in x])  # PLACE


class LayersInList(nn.Module):
    INPUTS = ("8",)
    CHECK = "saved-weights-complete"

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(8, 8) for _ in range(2)]  # PLACE
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class UnsavedProjection(nn.Module):
    INPUTS = ("8",)
    CHECK = "saved-weights-complete"

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.projection = torch.randn(8, 8)  # PLACE

    def forward(self, x):
        return self.head(x @ self.projection)


class UnsavedBuffer(nn.Module):
    INPUTS = ("8",)
    CHECK = "saved-weights-complete"

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.register_buffer("frequencies", torch.randn(8), persistent=False)  # PLACE

    def forward(self, x):
        return self.head(torch.sin(x * self.frequencies))


class LogOfNegative(nn.Module):
    INPUTS = ("8",)
    CHECK = "finite-outputs"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.log(x)  # PLACE
        return self.fc(x)


class ZeroByZero(nn.Module):
    INPUTS = ("8",)
    CHECK = "finite-outputs"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.fc(x) - 1e6)
        return x / x.sum(1, keepdim=True)  # PLACE


class LostWeights(nn.Module):
    INPUTS = ("8",)
    CHECK = "finite-outputs"

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 4)
        with torch.no_grad():
            self.second.weight[0, 0] = float("nan")

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.second(x)  # PLACE


class Raises(nn.Module):
    INPUTS = ("8",)
    CHECK = "forward-runs"

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x):
        return self.body(x)  # PLACE


class Exits(nn.Module):
    INPUTS = ("8",)
    CHECK = "forward-runs"

    def forward(self, x):  # noqa: ARG002
        sys.exit("no licence")  # PLACE


class ReturnsText(nn.Module):
    INPUTS = ("8",)
    CHECK = "outputs-are-batched"

    def forward(self, x):  # PLACE
        return {"output": x, "status": "fine"}
