"""Where an interrupted training goes on: one file, written after each epoch, gone once the run is published.

Lightning dumps and restores model, optimiser, schedule, progress and early stopping; beside them stand the
learning curve, the best weights (both from :class:`~dropserve.training.learner.Recorder`) and the state of
every generator, so that what is resumed ends with the same bits as what was never interrupted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from dropserve.errors import TrainingError
from dropserve.training.learner import Batches, Epoch, Recorder


@dataclass(frozen=True)
class Progress:
    """How far an interrupted training came.

    Attributes:
        curve: a row for each finished epoch.
        finished: whether only publishing was left to do.
        recorder: what :class:`~dropserve.training.learner.Recorder` knew.
    """

    curve: tuple[Epoch, ...]
    finished: bool
    recorder: dict[str, Any]


class Checkpoint:
    """The file of one training, named by everything that decides its outcome.

    Args:
        folder: where checkpoints are kept; made when the first is written.
        name: of the model.
        identity: recipe, hashes of data, split and source, versions: JSON. Another identity, another file.
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{name}-{digest[:16]}.ckpt"

    def read(self) -> Progress | None:
        """How far it came; None if there is nothing to go on from.

        Raises:
            TrainingError: if the file is damaged.
        """
        if not self.path.is_file():
            return None
        try:
            callbacks = load(self.path)["callbacks"]
            recorder = callbacks[Recorder.__qualname__]
            curve = tuple(Epoch(**row) for row in recorder["curve"])
            return Progress(curve, bool(callbacks[Keeper.__qualname__]["finished"]), recorder)
        except (
            Exception
        ) as error:  # torch, zipfile and pickle each have their own; torch's text advises unsafely
            raise TrainingError(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__}); "
                "remove it, or train with --fresh, to start over"
            ) from error

    def discard(self) -> None:
        """Remove it, and what killed processes left half-written beside it."""
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink(missing_ok=True)


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values, no code."""
    return torch.load(path, map_location="cpu", weights_only=True)


class AtomicFiles(CheckpointIO):
    """A reader finds the former checkpoint or the new one, never half of one."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Write to a file beside it, then rename.

        Raises:
            OSError: with the file's name, such as for a full disk; the former checkpoint stays.
        """
        del storage_options
        buffer = io.BytesIO()  # torch's own file writer reports a full disk by other errors than OSError
        torch.save(checkpoint, buffer)
        path = Path(path)
        beside = path.with_name(f"{path.name}.{os.getpid()}")  # the same command may run twice at once
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(buffer.getbuffer())
            beside.replace(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            beside.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """As :func:`load`, whatever was asked for."""
        del map_location, weights_only
        return load(os.fspath(path))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


class Keeper(LightningCheckpoint):
    """Writes the checkpoint when everything of an epoch is done.

    Its base class is what makes Lightning call it last, after early stopping has decided.

    Args:
        checkpoint: where to.
        batches: of training; their order has a generator of its own.
        epochs: how many there can be.
    """

    def __init__(self, checkpoint: Checkpoint, batches: Batches, epochs: int) -> None:
        self._path, self._batches, self._epochs = checkpoint.path, batches, epochs
        self._finished = False
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Called by Lightning while it dumps."""
        return {"finished": self._finished, "generators": self._generators()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Called by Lightning while it restores."""
        self._restored = state_dict["generators"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the generators where they were; building the model has moved them."""
        del trainer, pl_module
        if self._restored is None:
            return
        states = self._restored
        torch.set_rng_state(states["torch"])
        if states["cuda"] is not None:
            torch.cuda.set_rng_state(states["cuda"])
        version, numbers, rest = states["python"]
        random.setstate((version, tuple(numbers), rest))
        name, keys, *others = states["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), *others))  # noqa: NPY002  # the user's model may use it
        self._batches.set_order_state(states["order"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write: the schedule has stepped and early stopping has decided."""
        del pl_module
        self._finished = trainer.should_stop or trainer.current_epoch + 1 >= self._epochs
        trainer.save_checkpoint(self._path)

    def _generators(self) -> dict[str, Any]:
        """As tensors and plain values, which is all that loads without code."""
        name, keys, *others = np.random.get_state()  # noqa: NPY002  # see on_train_start
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "python": random.getstate(),
            "numpy": (name, np.asarray(keys).tolist(), *others),
            "order": self._batches.order_state(),
        }
