"""Models composed at random from sound blocks, with at most one trap among them.

Every block maps [batch, 16] to [batch, 16], so that any order and nesting is a model.
"""

from __future__ import annotations

import inspect
import random

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn

WIDTH = 16


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return torch.tanh(self.fc(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Dropout(0.2))
        self.out = nn.Linear(32, WIDTH)

    def forward(self, x):
        return x + self.out(self.body(x))


class Guarded(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.3, training=self.training)


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        return self.norm(x)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)

    def forward(self, x):
        x = x.view(x.shape[0], 4, 4)
        return (x + self.attn(x, x, x, need_weights=False)[0]).flatten(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4, num_layers=2, dropout=0.2)

    def forward(self, x):
        out, _ = self.rnn(x.view(-1, 4, 4).transpose(0, 1))
        return out.transpose(0, 1).reshape(-1, WIDTH)


class Convolving(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.drop = nn.Conv1d(4, 4, 3, padding=1), nn.Dropout1d(0.1)

    def forward(self, x):
        return self.drop(torch.relu(self.conv(x.view(-1, 4, 4)))).flatten(1)


class Nested(nn.Module):
    """Two branches that are added: blocks within blocks."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = nn.Sequential(*left), nn.Sequential(*right)

    def forward(self, x):
        return self.left(x) + self.right(x)


BLOCKS = (Dense, Residual, Guarded, Normalised, Attending, Recurrent, Convolving)


class TrapFunctional(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1)  # PLACE


class TrapHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops = [nn.Dropout(0.1)]

    def forward(self, x):
        return self.drops[0](x)  # PLACE


class TrapBuilt(nn.Module):
    def forward(self, x):
        return nn.AlphaDropout(0.1)(x)  # PLACE


class TrapSwitched(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        self.drop.train()  # PLACE
        return self.drop(x)  # PLACE


class TrapAttention(nn.Module):
    def forward(self, x):
        q = x.view(-1, 4, 4)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.1).flatten(1)  # PLACE


class TrapNoise(nn.Module):
    def forward(self, x):
        return x + 1e-6 * torch.randn(WIDTH)  # PLACE


class TrapNumpy(nn.Module):
    def forward(self, x):
        return x * float(np.random.uniform(0.9, 1.1))  # noqa: NPY002  # PLACE


class TrapPython(nn.Module):
    def forward(self, x):
        return -x if random.random() < 0.01 else x  # PLACE


class TrapPrivate(nn.Module):
    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(2)

    def forward(self, x):
        return x * float(self.rng.uniform(0.9, 1.1))  # PLACE


class TrapBatchNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)

    def forward(self, x):
        return self.norm(x)  # PLACE


class TrapMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)  # PLACE


class TrapCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1  # PLACE
        return x


class TrapCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x / self.calls  # PLACE


class TrapSize(nn.Module):
    def forward(self, x):
        return x * (1 + 1 / len(x))  # PLACE


class TrapBranch(nn.Module):
    def forward(self, x):
        return torch.stack([row / (1 + row.abs().max().item()) for row in x])  # PLACE


TRAPS = (
    TrapFunctional, TrapHidden, TrapBuilt, TrapSwitched, TrapAttention, TrapNoise, TrapNumpy, TrapPython,
    TrapPrivate, TrapBatchNorm, TrapMean, TrapCounter, TrapCalls, TrapSize, TrapBranch,
)  # fmt: skip


def compose(seed: int, trap: type[nn.Module] | None = None) -> nn.Module:
    """A random model; with a trap, the same model and the trap somewhere in it."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    blocks = _blocks(rng, depth=2)
    spots = [blocks, *(branch for block in blocks if isinstance(block, list) for branch in block)]
    spot = rng.choice(spots)
    place = rng.randint(0, len(spot))
    if trap is not None:
        spot.insert(place, trap())
    return nn.Sequential(*_built(blocks), nn.Linear(WIDTH, 3))


def places(trap: type[nn.Module]) -> tuple[str, ...]:
    """``file:line`` of the lines of a trap that may be named as its place."""
    lines, start = inspect.getsourcelines(trap)
    return tuple(f"composed.py:{start + i}" for i, line in enumerate(lines) if "# PLACE" in line)


def _blocks(rng, depth):
    chosen = []
    for _ in range(rng.randint(1, 4)):
        if depth and rng.random() < 0.25:
            chosen.append([_blocks(rng, 0), _blocks(rng, 0)])
        else:
            chosen.append(rng.choice(BLOCKS)())
    return chosen


def _built(blocks):
    return [Nested(*map(_built, block)) if isinstance(block, list) else block for block in blocks]
