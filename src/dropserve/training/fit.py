"""Train a module on a dataset with Lightning: seeded, quiet, and with no file but a checkpoint."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from dropserve.errors import TrainingError, UsageError
from dropserve.model import set_mode
from dropserve.training.accelerator import accelerated
from dropserve.training.checkpoint import AtomicFiles, Checkpoint, Keeper
from dropserve.training.data import Dataset
from dropserve.training.hardware import Hardware, choose_hardware
from dropserve.training.learner import MONITORED, Batches, Epoch, Learner, Recorder
from dropserve.training.recipe import Recipe
from dropserve.training.seeding import seeded
from dropserve.training.team import ALONE, OwnDraws, OwnSignals, Team


@dataclass(frozen=True)
class Fitted:
    """What training made.

    Attributes:
        model: on the CPU, in eval mode, with the weights of the best epoch.
        curve: a row for each epoch.
        best: the row of the best epoch, by what the recipe monitors.
        stopped_early: whether validation stopped improving before the last epoch.
        hardware: what it was trained on.
    """

    model: nn.Module
    curve: tuple[Epoch, ...]
    best: Epoch
    stopped_early: bool
    hardware: Hardware


def _ignore(_: object) -> None:
    """Nobody watches."""


def fit(
    build: Callable[[], nn.Module],
    dataset: Dataset,
    recipe: Recipe,
    *,
    on_epoch: Callable[[Epoch], None] = _ignore,
    on_progress: Callable[[float], None] = _ignore,
    checkpoint: Checkpoint | None = None,
    team: Team = ALONE,
) -> Fitted:
    """Train from scratch, or from a checkpoint; the same recipe on the same machine gives the same weights.

    Args:
        build: makes a fresh module; called with the training seed set.
        dataset: scaled rows; only its training and validation parts are touched.
        recipe: how to train.
        on_epoch: called after each epoch.
        on_progress: called now and then with the epochs done so far.
        checkpoint: read first, and written after each epoch; whoever publishes the result discards it.
        team: this process among those that train; each of them calls this function.

    Raises:
        TrainingError: if the loss stopped being a number, the checkpoint is damaged, or the model does not
            fit the device.
        OSError: if the checkpoint cannot be written.
        UsageError: if the device is not there, or the team is not of the size that the recipe asks for.
        KeyboardInterrupt: on Ctrl-C; nothing was written.
    """
    settings = recipe.training
    hardware = choose_hardware(settings)
    device = hardware.device
    recorder = Recorder(recipe, on_epoch, on_progress)
    done = checkpoint.read() if checkpoint else None
    if team.size != hardware.devices and not (done and done.finished):
        raise UsageError(f"training.devices: got {hardware.devices}, but {team.size} processes train")
    with (
        team.at_work(device),
        seeded(settings.seed, device),
        _quiet(),
        _interruptible(),
        accelerated(hardware),
    ):
        target = dataset.preprocessing.target
        learner = Learner(build(), recipe, unit=target.scale[0] if target else 1.0)
        if done and done.finished:
            recorder.load_state_dict(done.recorder)
        else:
            batches, validation = _batches(dataset, recipe, hardware, team)
            learner.weight = None if team.alone else batches.weight
            strategy = team.strategy(device, unused=not team.alone and _unused(learner, dataset))
            callbacks = _callbacks(recipe, recorder, checkpoint, batches, team)
            trainer = _trainer(recipe, hardware, callbacks, strategy, keeps=checkpoint is not None)
            path = checkpoint.path if checkpoint and done else None
            trainer.fit(learner, batches, validation, ckpt_path=path)
    if recorder.best is None or not recorder.weights:
        raise TrainingError(
            f"the validation loss was {recorder.curve[0].validation_loss} from the first epoch on; lower "
            f"optimiser.learning_rate (now {recipe.optimiser.learning_rate:g}), or mend the model"
        )
    last = recorder.curve[-1]
    if settings.monitor == "nothing" and recorder.best != last:
        raise TrainingError(
            f"the validation loss was {last.validation_loss} in the last epoch, the one that "
            'training.monitor = "nothing" keeps; lower optimiser.learning_rate '
            f"(now {recipe.optimiser.learning_rate:g})"
        )
    model = learner.model.cpu()
    model.load_state_dict(recorder.weights)
    return Fitted(
        model=set_mode(model),
        curve=tuple(recorder.curve),
        best=recorder.best,
        stopped_early=len(recorder.curve) < settings.epochs,
        hardware=hardware,
    )


def _callbacks(
    recipe: Recipe, recorder: Recorder, checkpoint: Checkpoint | None, batches: Batches, team: Team
) -> list[pl.Callback]:
    epochs, patience = recipe.training.epochs, recipe.training.patience
    callbacks: list[pl.Callback] = [recorder]
    if not team.alone:
        callbacks.append(OwnSignals())
    if team.rank:
        callbacks.append(OwnDraws(recipe.training.seed, team.rank))
    if patience:
        callbacks.append(EarlyStopping(MONITORED, patience=patience, check_finite=True))
    if checkpoint:
        callbacks.append(Keeper(checkpoint, batches, epochs))
    return callbacks


def _trainer(
    recipe: Recipe, hardware: Hardware, callbacks: list[pl.Callback], strategy: Any, *, keeps: bool
) -> pl.Trainer:
    precision: Any = hardware.precision  # Lightning's type lists every synonym
    return pl.Trainer(
        accelerator=hardware.device,
        devices=hardware.devices,
        strategy=strategy,
        precision=precision,
        max_epochs=recipe.training.epochs,
        callbacks=callbacks,
        plugins=[AtomicFiles()],
        logger=False,
        enable_checkpointing=keeps,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _batches(dataset: Dataset, recipe: Recipe, hardware: Hardware, team: Team) -> tuple[Batches, Batches]:
    place = team.root(hardware.device)

    def part(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.from_numpy(dataset.features[rows]).to(place)
        return features, torch.from_numpy(dataset.target[rows]).to(place)

    train, validation = part(dataset.split.train), part(dataset.split.validation)
    fewest = min(len(dataset.split.train), len(dataset.split.validation))
    if fewest < 2 * team.size:
        raise UsageError(
            f"training.devices: got {team.size}; allowed here: 1 to {fewest // 2}, 2 rows of training and of "
            "validation for each"
        )
    size, seed = recipe.training.batch_size, recipe.training.seed
    return (
        Batches(*train, size, seed, recipe.augmentation, team),
        Batches(*validation, max(size, 1024), team=team),
    )


def _unused(learner: Learner, dataset: Dataset) -> bool:
    """Whether some parameter takes no part in the loss: processes that wait for its gradient must know."""
    rows = torch.from_numpy(dataset.features[dataset.split.train[:2]])
    target = torch.from_numpy(dataset.target[dataset.split.train[:2]])
    training = learner.training
    learner.eval()
    with torch.random.fork_rng(devices=[]):
        loss = learner.loss(learner.model(rows), target)
        learning = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        found: Any = torch.autograd.grad(loss, learning, allow_unused=True)
    learner.train(training)
    return any(gradient is None for gradient in found)


@contextmanager
def _quiet() -> Generator[None]:
    """Without Lightning's notes about devices, loaders and its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _interruptible() -> Generator[None]:
    """Give Ctrl-C its meaning back: Lightning turns it into ``sys.exit(1)`` and goes deaf to the next one."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main else None
    try:
        yield
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error  # Lightning's own would end with status 0
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
