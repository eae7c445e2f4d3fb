"""What differs between the trainings of a stack, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from dropserve.training.stack.batches import Rows


@dataclass(frozen=True)
class Member:
    """One training of a stack.

    Attributes:
        train: what it learns from, as the model takes it.
        seed: of its initial weights, the order of its batches, and its masks.
        validation: what picks its best epoch; None keeps the weights of the last one.
        rate: dropout rate of every site, or of each; None keeps the module's own.
        learning_rate: of the first epoch.
        weight_decay: as the optimiser understands it.
    """

    train: Rows
    seed: int = 0
    validation: Rows | None = None
    rate: float | tuple[float, ...] | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


@dataclass(frozen=True)
class StackSettings:
    """What all members of a stack share; the names are those of a recipe.

    Attributes:
        dtype: of parameters and arithmetic.
    """

    epochs: int = 100
    batch_size: int = 64
    patience: int = 0
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    dtype: torch.dtype = torch.float32
