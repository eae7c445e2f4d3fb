"""Train a multilayer perceptron with dropout on one folder, and ask it about the test images of both."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dropserve.dropout.statistics import ClassificationStatistics, classification
from dropserve.errors import DataError, TrainingError, UsageError
from dropserve.training.ood.images import Images, read_part
from dropserve.training.stack import (
    Member,
    Rows,
    Stack,
    StackSettings,
    cross_entropy,
    mask_block,
    sample_outputs,
    train_stack,
)
from dropserve.training.whole_files import read_json, write_whole
from dropserve.uncertainty.metrics import accuracy, ece, nll
from dropserve.uncertainty.ood import detection, scores

SAMPLES = 50
_METHOD = 1  # raised whenever the same settings would give other results


@dataclass(frozen=True)
class Setup:
    """How the net is trained; none of it was chosen on the test images of either folder.

    Attributes:
        hidden: units of each hidden layer.
        rate: dropout after each hidden layer.
        input_rate: dropout of the pixels.
        epochs: with AdamW and a cosine schedule; the weights of the last are kept.
        rows: training images, the first so many; all if None.
    """

    hidden: tuple[int, ...] = (512, 512)
    rate: float = 0.5
    input_rate: float = 0.2
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    rows: int | None = None


@dataclass(frozen=True)
class SeedResult:
    """One net.

    Attributes:
        seed: of its training.
        plain: accuracy, nll and ece on the usual test images, dropout off.
        sampled: the same by the mean over 50 samples with dropout on.
        auroc: for each score, how well it tells strange test images from usual ones; ``plain_...`` are those
            of one pass with dropout off, which has no mutual information.
        seconds: of the clock.
    """

    seed: int
    plain: dict[str, float]
    sampled: dict[str, float]
    auroc: dict[str, float]
    seconds: float


def run(
    usual: Path,
    strange: Path,
    folder: Path,
    *,
    seeds: int = 3,
    setup: Setup | None = None,
    told: Callable[[float], None] | None = None,
) -> list[SeedResult]:
    """Do every seed that is not done yet.

    Args:
        usual: folder of what is trained on, with labels.
        strange: folder whose test images are to be told apart; its labels are not read.
        folder: of the results.
        seeds: how many nets.
        setup: how they are trained.
        told: called now and then with the share that is done.

    Raises:
        DataError: if the files do not fit.
        UsageError: for no seeds.
        TrainingError: if training diverged.
    """
    if seeds < 1:
        raise UsageError(f"seeds {seeds}: expected at least 1")
    setup, tell = setup or Setup(), told or _ignore
    train, test = read_part(usual, "train"), read_part(usual, "test")
    other = read_part(strange, "test", labels=False)
    if not train.size == test.size == other.size:
        raise DataError(
            f"images of {list(train.size)} and {list(test.size)} in {usual}, {list(other.size)} in "
            f"{strange}: expected one size"
        )
    digest = hashlib.sha256(json.dumps([_METHOD, asdict(setup)]).encode())
    for images in (train, test, other):
        digest.update(images.pixels.tobytes() + images.labels.tobytes())
    found: list[SeedResult] = []
    for seed in range(seeds):
        path = folder / f"{usual.name}-{strange.name}-{digest.hexdigest()[:12]}-{seed}.json"
        known = read_json(path)
        if known is None:

            def share(done: float, seed: int = seed) -> None:
                tell((seed + done) / seeds)

            result = _one(train, test, other, setup, seed, share)
            write_whole(path, asdict(result))
        else:
            try:
                result = SeedResult(**known)
            except TypeError as error:
                raise DataError(f"{path}: not a result of this benchmark ({error}); remove it") from error
        found.append(result)
        tell((seed + 1) / seeds)
    return found


def _ignore(_: float) -> None:
    """Nobody watches."""


def _one(
    train: Images, test: Images, other: Images, setup: Setup, seed: int, told: Callable[[float], None]
) -> SeedResult:
    begin = time.perf_counter()
    pixels, labels = train.pixels[: setup.rows], train.labels[: setup.rows]
    mean, deviation = float(pixels.mean()), float(pixels.std()) or 1.0

    def standard(images: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy((images - mean) / deviation)

    classes, sites = int(train.labels.max()) + 1, len(setup.hidden)
    settings = StackSettings(setup.epochs, setup.batch_size, schedule="cosine")
    member = Member(
        Rows(standard(pixels), torch.from_numpy(labels)),
        seed=seed,
        rate=(setup.input_rate, *([setup.rate] * sites)),
        learning_rate=setup.learning_rate,
        weight_decay=setup.weight_decay,
    )
    epochs = 0

    def count(_: int) -> None:
        nonlocal epochs
        epochs += 1
        told(0.9 * epochs / setup.epochs)

    stack = train_stack(
        lambda: _build(pixels.shape[1], classes, setup.hidden),
        [member],
        cross_entropy,
        settings,
        on_epoch=count,
    )
    if not stack.outcomes[0].best_epoch:
        raise TrainingError(f"seed {seed}: training diverged; lower the learning rate")
    usual, strange = standard(test.pixels), standard(other.pixels)
    plain = [_probabilities(stack.predict(rows)).numpy() for rows in (usual, strange)]
    sampled = [_statistics(stack, rows, seed) for rows in (usual, strange)]
    plain_scores = [
        {"max_probability": 1 - p[0].max(1), "predictive_entropy": -(p[0] * np.log(p[0] + 1e-300)).sum(1)}
        for p in plain
    ]
    aurocs = {
        f"plain_{name}": detection(plain_scores[0][name], plain_scores[1][name]).auroc
        for name in plain_scores[0]
    }
    inside, outside = (scores(each) for each in sampled)
    aurocs |= {name: detection(inside[name], outside[name]).auroc for name in inside}
    return SeedResult(
        seed,
        _judged(plain[0][0], test.labels),
        _judged(sampled[0].mean, test.labels),
        aurocs,
        time.perf_counter() - begin,
    )


def _build(pixels: int, classes: int, hidden: tuple[int, ...]) -> nn.Module:
    layers: list[nn.Module] = [nn.Dropout(0.1)]  # each member has rates of its own
    width = pixels
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(0.1)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def _probabilities(logits: Tensor) -> Tensor:
    return functional.softmax(logits.double(), dim=-1)


def _statistics(stack: Stack, rows: Tensor, seed: int) -> ClassificationStatistics:
    parts = sample_outputs(stack, 0, rows, samples=SAMPLES, seed=seed)
    probabilities = torch.cat([_probabilities(part) for part in parts], dim=1).numpy()
    if len(probabilities) == 1:
        probabilities = np.repeat(probabilities, 2, axis=0)  # without dropout all samples are one
    return classification(probabilities, scheme="balanced", block=mask_block(stack.rates[0]))


def _judged(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    return {
        "accuracy": accuracy(probabilities, labels),
        "nll": nll(probabilities, labels),
        "ece": ece(probabilities, labels),
    }
