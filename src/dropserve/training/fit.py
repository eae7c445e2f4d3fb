"""Train a module on a dataset with Lightning: seeded, quiet, and with no file but a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from dropserve.errors import TrainingError, UsageError
from dropserve.training.checkpoint import AtomicFiles, Checkpoint, Keeper
from dropserve.training.data import Dataset
from dropserve.training.learner import VALIDATION_LOSS, Batches, Epoch, Learner, Recorder
from dropserve.training.recipe import Recipe
from dropserve.training.seeding import seeded


@dataclass(frozen=True)
class Fitted:
    """What training made.

    Attributes:
        model: on the CPU, in eval mode, with the weights of the best epoch.
        curve: a row for each epoch.
        best: the row of the best epoch: the lowest validation loss.
        stopped_early: whether validation stopped improving before the last epoch.
        device: where it was trained.
    """

    model: nn.Module
    curve: tuple[Epoch, ...]
    best: Epoch
    stopped_early: bool
    device: str


def choose_device(wanted: str) -> str:
    """Turn ``auto`` into the best device there is.

    Raises:
        UsageError: if the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        usable = ", ".join(name for name in there if there[name])
        raise UsageError(
            f"device: got {wanted!r}, which torch {torch.__version__} does not see here; "
            f"allowed: auto, {usable}"
        )
    return wanted


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
) -> Fitted:
    """Train from scratch, or from a checkpoint; the same recipe on the same machine gives the same weights.

    Args:
        build: makes a fresh module; called with the training seed set.
        dataset: scaled rows; only its training and validation parts are touched.
        recipe: how to train.
        on_epoch: called after each epoch.
        on_progress: called now and then with the epochs done so far.
        checkpoint: read first, and written after each epoch; whoever publishes the result discards it.

    Raises:
        TrainingError: if the loss stopped being a number, or the checkpoint is damaged.
        OSError: if the checkpoint cannot be written.
        UsageError: if the device is not there.
        KeyboardInterrupt: on Ctrl-C; nothing was written.
    """
    settings = recipe.training
    device = choose_device(settings.device)
    recorder = Recorder(on_epoch, on_progress)
    done = checkpoint.read() if checkpoint else None
    with seeded(settings.seed, device), _quiet(), _deterministic(device), _interruptible():
        target = dataset.preprocessing.target
        learner = Learner(build(), recipe, unit=target.scale[0] if target else 1.0)
        if done and done.finished:
            recorder.load_state_dict(done.recorder)
        else:
            batches, validation = _batches(dataset, recipe, device)
            trainer = _trainer(recipe, device, recorder, checkpoint, batches)
            path = checkpoint.path if checkpoint and done else None
            trainer.fit(learner, batches, validation, ckpt_path=path)
    if recorder.best is None or not recorder.weights:
        raise TrainingError(
            f"the validation loss was {recorder.curve[0].validation_loss} from the first epoch on; lower "
            f"optimiser.learning_rate (now {recipe.optimiser.learning_rate:g}), or mend the model"
        )
    model = learner.model.cpu()
    model.load_state_dict(recorder.weights)
    return Fitted(
        model=model.eval(),
        curve=tuple(recorder.curve),
        best=recorder.best,
        stopped_early=len(recorder.curve) < settings.epochs,
        device=device,
    )


def _trainer(
    recipe: Recipe, device: str, recorder: Recorder, checkpoint: Checkpoint | None, batches: Batches
) -> pl.Trainer:
    epochs, patience = recipe.training.epochs, recipe.training.patience
    callbacks: list[pl.Callback] = [recorder]
    if patience:
        callbacks.append(EarlyStopping(VALIDATION_LOSS, patience=patience, check_finite=True))
    if checkpoint:
        callbacks.append(Keeper(checkpoint, batches, epochs))
    return pl.Trainer(
        accelerator=device,
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        plugins=[AtomicFiles()],
        logger=False,
        enable_checkpointing=checkpoint is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _batches(dataset: Dataset, recipe: Recipe, device: str) -> tuple[Batches, Batches]:
    def part(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.from_numpy(dataset.features[rows]).to(device)
        return features, torch.from_numpy(dataset.target[rows]).to(device)

    train, validation = part(dataset.split.train), part(dataset.split.validation)
    size, seed = recipe.training.batch_size, recipe.training.seed
    return Batches(*train, size, seed, recipe.augmentation), Batches(*validation, max(size, 1024))


@contextmanager
def _quiet() -> Generator[None]:
    """Without Lightning's notes about devices, loaders and its own deprecations."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _deterministic(device: str) -> Generator[None]:
    """On an accelerator, kernels that give the same sums every time, where torch has them."""
    if device == "cpu":
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products may differ
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


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
