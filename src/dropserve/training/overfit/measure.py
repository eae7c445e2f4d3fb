"""What is measured of trained members: scores, the gap, co-adaptation, and the effect of averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dropserve.dropout.calls import DropoutCall
from dropserve.dropout.mode import DropoutMode, no_fused_attention
from dropserve.model import set_mode
from dropserve.training.stack import Loss, Rows, Stack, sample_outputs

SAMPLES = 50
_ROWS = 256  # of a pass
_CORRELATED_ROWS, _CORRELATED_UNITS = 2000, 512


@dataclass(frozen=True)
class Kind:
    """How outputs are judged.

    Attributes:
        classifies: accuracy, or RMSE.
        loss: of each row, dropout off.
        unit: what one step of the standardised target is in its own unit.
    """

    classifies: bool
    loss: Loss
    unit: float

    def score(self, answers: Tensor, target: Tensor) -> float:
        """Accuracy of probabilities or logits [N, C], or RMSE of values [N, ...] in the target's unit."""
        if self.classifies:
            return float((answers.argmax(1) == target).double().mean())
        return self.unit * math.sqrt(float((_values(answers) - target).double().square().mean()))


def _values(answers: Tensor) -> Tensor:
    """The predicted value of each row; a heteroscedastic head gives it first."""
    return answers.reshape(len(answers), -1)[:, 0]


def outputs(stack: Stack, rows: Rows) -> Tensor:
    """Outputs [M, N, ...], dropout off."""
    parts = [stack.predict(part) for part in rows.features.split(_ROWS)]
    return torch.cat(parts, dim=1)


def scores(stack: Stack, rows: Rows, kind: Kind) -> list[tuple[float, float]]:
    """Score and mean loss of each member on some rows, dropout off."""
    answers = outputs(stack, rows)
    target = rows.target.expand(len(stack), *rows.target.shape)
    losses = kind.loss(answers, target).double().mean(1).tolist()
    return [(kind.score(each, rows.target), loss) for each, loss in zip(answers, losses, strict=True)]


def averaged(stack: Stack, rows: Rows, kind: Kind, *, seed: int) -> list[float]:
    """Each member's score by the mean over 50 samples with dropout on, balanced masks shared by all rows.

    Classes by mean probability, values by mean value; a member without dropout scores as it does without.
    """
    found: list[float] = []
    for member in range(len(stack)):
        means: list[Tensor] = []
        for output in sample_outputs(stack, member, rows.features, samples=SAMPLES, seed=seed):
            answers = functional.softmax(output.double(), dim=2) if kind.classifies else output.double()
            means.append(answers.mean(0))
        found.append(kind.score(torch.cat(means), rows.target))
    return found


def co_adaptation(model: nn.Module, features: Tensor) -> float:
    """How much hidden units go together: the mean absolute correlation of two units of one layer.

    Over rows, dropout off, at the tensors that dropout is applied to, the net's input left out; units that
    are constant are left out, and of very wide layers the first 512 are taken. NaN if no layer has two live
    units.
    """
    seen = _Seen(features[:_CORRELATED_ROWS].clone())  # a first layer in place would write into them
    with torch.no_grad(), no_fused_attention(), seen:
        set_mode(model)(seen.features)
    layers = [value for layer in seen.layers if (value := _correlation(layer)) is not None]
    return float(np.mean(layers)) if layers else math.nan


def _correlation(layer: NDArray[np.float64]) -> float | None:
    centred = layer - layer.mean(axis=0)
    length = np.sqrt(np.square(centred).sum(axis=0))
    live = length > 1e-9 * max(1.0, float(length.max(initial=0.0)))
    if live.sum() < 2:
        return None
    unit = centred[:, live] / length[live]
    correlation = np.abs(unit.T @ unit)
    count = len(correlation)
    return float((correlation.sum() - np.trace(correlation)) / (count * (count - 1)))


class _Seen(DropoutMode):
    """Keeps what dropout would have been applied to."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features
        self.layers: list[NDArray[np.float64]] = []

    def on_dropout(self, call: DropoutCall) -> Tensor:
        """Units are what falls together: of channels the mean is taken."""
        if call.input.data_ptr() != self.features.data_ptr():
            shape = call.noise_shape
            together = [axis for axis, size in enumerate(shape) if size == 1 and call.input.shape[axis] > 1]
            units = call.input.double().mean(dim=together) if together else call.input.double()
            self.layers.append(units.reshape(len(units), -1)[:, :_CORRELATED_UNITS].numpy())
        return call.input
