"""Choose dropout rate, learning rate, weight decay and noise on training rows alone.

Every function here takes a :class:`~dropserve.training.uci.splits.Part` of training rows and knows of no
others. All candidates on all inner folds train as one stack. A first round gives each a quarter of the steps,
and the best quarter goes on to a second round with all of them: successive halving (Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import TrainingError
from dropserve.training.stack import Member, StackSettings, train_stack
from dropserve.training.uci.density import Noise, beta_likelihood, finite, fit_noise
from dropserve.training.uci.network import Standard, build, sample
from dropserve.training.uci.splits import Part
from dropserve.uncertainty.metrics import rmse


@dataclass(frozen=True)
class Space:
    """What is searched, and how long; the same for every table.

    Attributes:
        rates: dropout rates.
        learning_rates: of AdamW, cosine schedule.
        weight_decays: of AdamW.
        steps: of the optimiser, in the second round and in the last training.
        first_share: of the steps, in the first round.
        kept_share: of the candidates that reach the second.
        samples: T of the validation.
        fold_rows: tables with fewer training rows get ``folds`` inner folds, others hold out the last fifth.
        folds: inner folds of small tables.
    """

    rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    learning_rates: tuple[float, ...] = (0.015, 0.006)
    weight_decays: tuple[float, ...] = (1e-3, 0.03)
    steps: int = 10_000
    first_share: float = 0.25
    kept_share: float = 0.25
    samples: int = 50
    fold_rows: int = 2000
    folds: int = 5


@dataclass(frozen=True)
class Candidate:
    """One point of the search space."""

    rate: float
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Choice:
    """What was chosen for a split.

    Attributes:
        candidate: with the greatest validation log-likelihood of those that trained to the end.
        noise: fitted on the same held-out rows.
        log_likelihood: mean over the held-out rows, in nats.
        rmse: of the mean over samples, on the held-out rows.
        tried: each candidate's figures in its last round, best first.
    """

    candidate: Candidate
    noise: Noise
    log_likelihood: float
    rmse: float
    tried: tuple[tuple[Candidate, float, float], ...]


@dataclass(frozen=True)
class _Judged:
    candidate: Candidate
    noise: Noise
    log_likelihood: float
    rmse: float


def choose(part: Part, space: Space, *, seed: int, told: Callable[[float], None] | None = None) -> Choice:
    """Search for one split.

    Args:
        part: its training rows.
        space: what to search.
        seed: of all that is drawn.
        told: called now and then with the share that is done.

    Raises:
        TrainingError: if no candidate gives a finite answer.
    """
    folds = inner_folds(len(part), space)
    candidates = [
        Candidate(*each) for each in product(space.rates, space.learning_rates, space.weight_decays)
    ]
    tell = told or _ignore
    first = _round(part, candidates, folds, space, space.first_share, seed, lambda done: tell(0.4 * done))
    kept = [each.candidate for each in first[: math.ceil(len(candidates) * space.kept_share)]]
    second = _round(part, kept, folds, space, 1.0, seed, lambda done: tell(0.4 + 0.6 * done))
    if not second:
        raise TrainingError(
            f"none of {len(candidates)} candidates gave finite numbers on the inner validation rows; the "
            "table's values may be too far apart"
        )
    best = second[0]
    rest = [each for each in first if each.candidate not in kept]
    tried = tuple((each.candidate, each.log_likelihood, each.rmse) for each in (*second, *rest))
    return Choice(best.candidate, best.noise, best.log_likelihood, best.rmse, tried)


def inner_folds(rows: int, space: Space) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to train on and rows to validate on, by place in the part: folds, or the last fifth."""
    every = np.arange(rows)
    if rows >= space.fold_rows:
        cut = rows * 4 // 5
        return [(every[:cut], every[cut:])]
    edges = np.linspace(0, rows, space.folds + 1).astype(np.intp)
    return [(np.concatenate([every[:a], every[b:]]), every[a:b]) for a, b in pairwise(edges)]


def settings_for(rows: int, steps: int) -> StackSettings:
    """Batches that grow with the table, and the epochs that make so many steps."""
    batch = 2 ** min(8, max(5, round(math.log2(rows / 20))))
    batches = max(1, math.ceil(rows / batch))
    return StackSettings(epochs=max(1, round(steps / batches)), batch_size=batch, schedule="cosine")


def _ignore(_: float) -> None:
    """Nobody watches."""


def _round(
    part: Part,
    candidates: Sequence[Candidate],
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    space: Space,
    share: float,
    seed: int,
    told: Callable[[float], None],
) -> list[_Judged]:
    """Train candidates on all folds and judge them on what was held out; the best first."""
    train = [part.take(inner) for inner, _ in folds]
    held = [part.take(outer) for _, outer in folds]
    standards = [Standard.of(each) for each in train]
    rows = [standard.rows(each) for standard, each in zip(standards, train, strict=True)]
    settings = settings_for(min(len(each) for each in train), round(space.steps * share))
    members = [
        Member(
            rows[fold],
            # The same for all candidates: what differs between them is then the candidate.
            seed=seed + fold,
            rate=candidate.rate,
            learning_rate=candidate.learning_rate,
            weight_decay=candidate.weight_decay,
        )
        for candidate in candidates
        for fold in range(len(folds))
    ]
    total, done = len(members) * settings.epochs, 0

    def count(epochs: int) -> None:
        nonlocal done
        done += epochs
        told(done / total)

    features = part.features.shape[1]
    stack = train_stack(lambda: build(features), members, beta_likelihood, settings, on_epoch=count)
    judged: list[_Judged] = []
    target = np.concatenate([each.target for each in held])
    for number, candidate in enumerate(candidates):
        parts = [
            sample(
                stack,
                number * len(folds) + fold,
                standards[fold],
                held[fold],
                samples=space.samples,
                seed=seed,
            )
            for fold in range(len(folds))
        ]
        samples = parts[0].joined(*parts[1:])
        if finite(samples):
            noise, likelihood = fit_noise(samples, target)
            judged.append(_Judged(candidate, noise, likelihood, rmse(samples.mean, target)))
    return sorted(judged, key=lambda each: -each.log_likelihood)
