"""The one network of a split, trained on all its training rows with what was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dropserve.training.stack import Member, Stack, train_stack
from dropserve.training.uci.choose import Choice, Space, settings_for
from dropserve.training.uci.density import Noise, Samples, beta_likelihood
from dropserve.training.uci.network import Standard, build, sample
from dropserve.training.uci.splits import Part


@dataclass(frozen=True)
class Predictor:
    """A trained network with its scaling and its noise; nothing in it is chosen any more.

    Attributes:
        stack: of this one network.
        standard: its scaling.
        noise: of its predictions.
        seed: of its masks.
    """

    stack: Stack
    standard: Standard
    noise: Noise
    seed: int

    def samples(self, part: Part, count: int) -> Samples:
        """Monte Carlo dropout of some rows; their target is not looked at."""
        return sample(self.stack, 0, self.standard, part, samples=count, seed=self.seed)

    @property
    def sound(self) -> bool:
        """Whether training gave a network of finite numbers."""
        return bool(torch.isfinite(self.stack.parameters).all())


def refit(part: Part, choice: Choice, space: Space, *, seed: int) -> Predictor:
    """Train on all training rows of a split, for as many steps as the choice had.

    Args:
        part: the training rows.
        choice: made on the same rows.
        space: says how many steps.
        seed: of weights, batches and masks.
    """
    standard = Standard.of(part)
    one = choice.candidate
    member = Member(
        standard.rows(part),
        seed=seed,
        rate=one.rate,
        learning_rate=one.learning_rate,
        weight_decay=one.weight_decay,
    )
    features = part.features.shape[1]
    settings = settings_for(len(part), space.steps)
    stack = train_stack(lambda: build(features), [member], beta_likelihood, settings)
    return Predictor(stack, standard, choice.noise, seed)
