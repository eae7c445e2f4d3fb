"""The network of the serving benchmarks, as a user of TorchServe would hand it over: 64-256-256-10."""

import torch
from torch import nn


class Net(nn.Module):
    """Two hidden layers, each followed by dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 64]`` to logits ``[N, 10]``."""
        return self.layers(x)
