"""The six networks on which benchmarks measure the heart, and one more kind of cell."""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from dropserve.dropout.program import masked_program
from dropserve.signature import TensorSpec, parse_input

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from heart_networks import Cnn, Mlp, Recurrent, Residual, Selu, Transformer, build


@dataclass(frozen=True)
class Network:
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    sites: int

    def rows(self, count, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *self.inputs[0].sized(), generator=generator)


NETWORKS = {
    "mlp": (Mlp, "10", 2),
    "cnn": (Cnn, "1,8,8", 3),
    "residual": (Residual, "3,6,6", 2),
    "transformer-5": (Transformer, "5,16", 8),
    "transformer-second-12": (partial(Transformer, batch_first=False), "12,16", 8),
    "lstm-12": (Recurrent, "12,8", 3),
    "lstm-second-5": (partial(Recurrent, batch_first=False), "5,8", 3),
    "gru-both-ways": (partial(Recurrent, cell=nn.GRU, bidirectional=True), "5,8", 3),
    "selu": (Selu, "10", 2),
}


@pytest.fixture(params=NETWORKS, scope="session")
def network(request):
    """Shared: tests do not change it."""
    make, shape, sites = NETWORKS[request.param]
    return Network(build(make), (parse_input(shape),), sites)


@pytest.fixture(scope="session")
def program(network):
    return masked_program(network.module, network.inputs)
