"""The models of the shipped recipes. Add your own here, or in a file of your own beside it.

A recipe names a model as ``../models.py:MyModel`` (relative to the recipe) and passes ``[model.arguments]``
to its constructor. A classifier returns one logit for each class (no softmax), a regressor one number.
"""

from __future__ import annotations

import torch
from torch import nn


class MyModel(nn.Module):
    """The tutorial's model: 10 features in, 5 classes out, half of the hidden units dropped."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.hidden = nn.Linear(10, 20)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(p)
        self.output = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 10]`` to logits ``[N, 5]``."""
        return self.output(self.dropout(self.activation(self.hidden(x))))


class Greatest(nn.Module):
    """Of each group of neighbouring features the greatest: ``[N, units * pieces]`` to ``[N, units]``."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = pieces

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A hidden layer's non-linearity."""
        return x.unflatten(1, (-1, self.pieces)).amax(2)


class MLP(nn.Module):
    """A multilayer perceptron with dropout after each hidden layer, and on the inputs if asked.

    Args:
        inputs: features per row.
        outputs: classes, or 1 for regression.
        hidden: units in each hidden layer.
        dropout: share of hidden units dropped.
        input_dropout: share of inputs dropped; 0 for none.
        pieces: 1 for ReLU; else a unit is the greatest of so many linear ones: maxout, which was made to
            go with dropout (Goodfellow et al. 2013).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: list[int] | None = None,
        dropout: float = 0.5,
        input_dropout: float = 0.0,
        pieces: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        width = inputs
        for units in hidden or [64, 64]:
            bend = nn.ReLU() if pieces == 1 else Greatest(pieces)
            layers += [nn.Linear(width, units * pieces), bend, nn.Dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, inputs]`` to ``[N, outputs]``."""
        return self.layers(x)


class DigitsCNN(nn.Module):
    """Convolutions with BatchNorm, then dropout: no BatchNorm comes after a dropout.

    A BatchNorm behind a dropout learns the variance of thinned activations and meets another one when
    dropout is off (Li et al. 2018, arXiv:1801.05134).

    Args:
        channels: of the first convolution; the second has twice as many.
        dropout2d: share of channels dropped after the convolutions.
        dropout: share of hidden units dropped.
    """

    def __init__(self, channels: int = 32, dropout2d: float = 0.2, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout2d(dropout2d),
        )
        self.classifier = nn.Sequential(
            nn.Linear(2 * channels * 4 * 4, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of 64 pixels ``[N, 64]`` to logits ``[N, 10]``."""
        image = x.reshape(-1, 1, 8, 8)
        return self.classifier(self.features(image).flatten(1))
