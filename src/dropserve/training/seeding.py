"""Randomness that begins at a seed and leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed torch, on every device, numpy and Python."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the user's model may use it
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Generator[None]:
    """Seed torch, numpy and Python inside, and leave their states as they were outside."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # see above
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002  # see above
