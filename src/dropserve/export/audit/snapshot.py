"""Leave the model as it was found, whatever its forwards did to it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from .observe import state_of


@contextmanager
def kept_state(model: nn.Module) -> Generator[None]:
    """Put values of parameters and buffers, and train or eval mode, back at the end of the block."""
    modes = {module: module.training for module in model.modules()}
    values = {name: tensor.clone() for name, tensor in state_of(model).items()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        now = state_of(model)
        with torch.no_grad():
            for name, value in values.items():
                if name in now and now[name].shape == value.shape:
                    now[name].copy_(value)
