"""Randomness that begins at a seed and leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int, device: str = "cpu") -> None:
    """Seed torch, on the CPU and on the device in use, numpy and Python.

    ``torch.manual_seed`` would seed GPUs that others use, and those that nobody has begun to use yet.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the user's model may use it
    torch.default_generator.manual_seed(seed)
    if device == "cuda":
        torch.cuda.manual_seed(seed)
    elif device == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Generator[None]:
    """Seed torch, numpy and Python inside, and leave their states as they were outside."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # see above
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        seed_all(seed, device)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002  # see above
