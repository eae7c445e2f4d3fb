"""What training on a GPU needs beside the moving: sums that repeat, and errors that say what to do."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer import trainer

from dropserve.errors import TrainingError
from dropserve.training.hardware import Hardware

_NOT_THE_USERS = tuple(
    f"{folder}{os.sep}"
    for folder in (Path(torch.__file__).parent, Path(lightning.__file__).parent, Path(__file__).parents[1])
)
# torch's words for an operation whose tensors lie on two devices; the last are those of convolutions.
_APART = re.compile(r"on the same device|on the expected device|Input type .* and weight type .* be the same")


@contextmanager
def accelerated(hardware: Hardware) -> Generator[None]:
    """On a CPU, leave GPUs alone; on one of them, repeatable sums, and 32 bits where they are asked for.

    torch rounds the factors of convolutions, not of matrix products, to the 10 bits of TF32 unless told
    otherwise. Whoever has chosen by torch's newer names for that is left alone.

    Raises:
        TrainingError: for what only an accelerator refuses, with what to change.
    """
    if hardware.device == "cpu":
        with _no_gpu():
            yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, matrix products may differ
    torch.use_deterministic_algorithms(True, warn_only=True)
    rounds = hardware.precision == "32" and _rounds_convolutions()
    if rounds:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).split(". ", maxsplit=1)[0]
        raise TrainingError(
            f"{hardware}: {first}. All training rows lie in its memory beside the model: take a lower "
            "training.batch_size or a smaller model, or train with --device cpu"
        ) from error
    except RuntimeError as error:
        if not _APART.search(str(error)):
            raise
        raise TrainingError(
            f"{hardware}: {_users_line(error)}the model mixes tensors of two devices: {error}. Make each "
            "tensor where the rows are (device=x.device), or in the constructor with register_buffer; or "
            "train with --device cpu"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        if rounds:
            torch.backends.cudnn.allow_tf32 = True


@contextmanager
def _no_gpu() -> Generator[None]:
    """Keep Lightning from reading the generator of every GPU before it trains on a CPU.

    That would take half a gigabyte of each GPU's memory, and fail where another program has all of it.
    """
    module: Any = trainer
    before = module.isolate_rng  # stands around a check before training that we leave out
    module.isolate_rng = partial(before, include_cuda=False)
    try:
        yield
    finally:
        module.isolate_rng = before


def _rounds_convolutions() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch's answer where its older and newer names have been used side by side
        return False


def _users_line(error: RuntimeError) -> str:
    """The innermost line that is neither torch's, nor Lightning's, nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((*_NOT_THE_USERS, "<"))]
    return f"{Path(theirs[-1].filename).name}:{theirs[-1].lineno}: " if theirs else ""
