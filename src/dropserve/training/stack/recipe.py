"""A recipe's training as a member of a stack: the same loss, batches, optimiser and schedule as `fit`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dropserve.errors import UsageError
from dropserve.training.data import Dataset
from dropserve.training.learner import beta_nll, gaussian_nll
from dropserve.training.recipe import Recipe
from dropserve.training.stack.batches import Rows
from dropserve.training.stack.losses import smoothed_cross_entropy, squared_error
from dropserve.training.stack.member import StackSettings
from dropserve.training.stack.net import Loss


def check_stackable(recipe: Recipe) -> None:
    """Refuse what members of a stack do not do.

    Raises:
        UsageError: naming the key.
    """
    if recipe.augmentation.flip or recipe.augmentation.shift:
        raise UsageError("augmentation: many trainings at once do not augment; leave the table out")
    settings = recipe.training
    if settings.monitor != "loss":
        raise UsageError(
            f"training.monitor = {settings.monitor!r}: many trainings at once keep the epoch with the lowest "
            "validation loss; leave it out"
        )
    if settings.device not in {"auto", "cpu"}:
        raise UsageError(
            f"training.device = {settings.device!r}: many trainings at once run on the CPU; leave it out, or "
            "write 'cpu'"
        )
    if settings.devices > 1 or settings.precision not in {"auto", "32"}:
        raise UsageError(
            f"training.devices = {settings.devices}, training.precision = {settings.precision!r}: many "
            "trainings at once run in one process and in 32 bits; leave both out"
        )


def stack_settings(recipe: Recipe) -> StackSettings:
    """What a recipe says that all members share. Nothing stops early: the best epoch is kept either way."""
    return StackSettings(
        epochs=recipe.training.epochs,
        batch_size=recipe.training.batch_size,
        optimiser=recipe.optimiser.name,
        momentum=recipe.optimiser.momentum,
        schedule=recipe.optimiser.schedule,
    )


def stack_losses(recipe: Recipe) -> tuple[Loss, Loss]:
    """The losses of a recipe's training and validation rows."""
    if recipe.task == "classification":
        return smoothed_cross_entropy(recipe.training.label_smoothing), smoothed_cross_entropy(0.0)
    if recipe.training.noise == "heteroscedastic":
        return _pair_learns, _pair_likelihood
    return squared_error, squared_error


def part_rows(dataset: Dataset, rows: NDArray[np.int64]) -> Rows:
    """Some rows of a dataset as the model takes them."""
    return Rows(torch.from_numpy(dataset.features[rows]), torch.from_numpy(dataset.target[rows]))


def _pair_learns(output: Tensor, target: Tensor) -> Tensor:
    return beta_nll(output.flatten(0, 1), target.flatten()).view(target.shape)


def _pair_likelihood(output: Tensor, target: Tensor) -> Tensor:
    return gaussian_nll(output.flatten(0, 1), target.flatten()).view(target.shape)
