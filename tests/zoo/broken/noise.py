"""Random numbers that are no dropout: noise, sampling, shuffling, and generators of every make."""

import os
import random

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class BernoulliMask(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        keep = torch.bernoulli(torch.full((16,), 0.9))  # PLACE
        return self.fc(x) * keep


class GaussianNoise(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return self.fc(x) + 1e-9 * torch.randn_like(x)  # PLACE


class _DropPath(nn.Module):
    def forward(self, x):
        keep = torch.rand(x.shape[0], 1) > 0.01  # PLACE
        return x * keep / 0.99


class DropPath(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.drop_path = _DropPath()

    def forward(self, x):
        for block in self.blocks:
            x = x + self.drop_path(torch.relu(block(x)))
        return x


class RandomisedLeaky(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return F.rrelu(self.fc(x), training=True)  # PLACE


class FractionalPool(nn.Module):
    """torch draws its pooling regions in eval mode as well."""

    INPUTS = ("3,9,9",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.pool = nn.FractionalMaxPool2d(2, output_size=4)
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        x = self.pool(x)  # PLACE
        return self.fc(x.flatten(1))


class GumbelSoftmax(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return F.gumbel_softmax(self.fc(x), tau=0.5)  # PLACE


class VariationalSampling(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(16, 8)
        self.decoder = nn.Linear(4, 16)

    def sample(self, mean, log_variance):
        noise = torch.randn_like(mean)  # PLACE
        return mean + noise * (0.5 * log_variance).exp()

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(self.sample(mean, log_variance))


class SampledToken(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 30)

    def forward(self, x):
        chances = self.fc(x).softmax(dim=1)
        return torch.multinomial(chances, 1)  # PLACE


class ShuffledFeatures(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        order = torch.randperm(x.shape[1])  # PLACE
        return self.fc(x[:, order])


class LayerBuiltInForward(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def forward(self, x):
        head = nn.Linear(16, 4)  # PLACE
        return head(x)


class NumpyNoise(nn.Module):
    INPUTS = ("16",)
    CHECK = "numpy-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        noise = np.random.normal(size=(16,)).astype(np.float32)  # noqa: NPY002  # PLACE
        return self.fc(x + torch.from_numpy(noise))


class NumpyPrivateGenerator(nn.Module):
    INPUTS = ("16",)
    CHECK = "private-random-state"

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        scale = float(self.rng.random())  # PLACE
        return self.fc(x) * scale


class RarePrivateGenerator(nn.Module):
    """Draws at every call and acts once in a million: two forwards never differ."""

    INPUTS = ("16",)
    CHECK = "private-random-state"

    def __init__(self):
        super().__init__()
        self.settings = {"rng": random.Random(3)}
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.fc(x)
        if self.settings["rng"].random() < 1e-6:  # PLACE
            x = torch.zeros_like(x)
        return x


class TorchPrivateGenerator(nn.Module):
    INPUTS = ("16",)
    CHECK = "private-random-state"

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        mask = torch.empty(16).bernoulli_(0.9, generator=self.generator)  # PLACE
        return self.fc(x) * mask


_GENERATOR = torch.Generator().manual_seed(5)


class GlobalPrivateGenerator(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        mask = torch.rand(16, generator=_GENERATOR) < 0.9  # PLACE
        return self.fc(x) * mask


class PythonRandomBranch(nn.Module):
    INPUTS = ("16",)
    CHECK = "python-random-state"

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(16, 4) for _ in range(3))

    def forward(self, x):
        head = random.choice(self.heads)  # PLACE
        return head(x)


class LayerDrop(nn.Module):
    INPUTS = ("16",)
    CHECK = "python-random-state"

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            if random.random() > 0.1:  # PLACE
                x = torch.relu(layer(x))
        return x


class OperatingSystemEntropy(nn.Module):
    INPUTS = ("16",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        level = int.from_bytes(os.urandom(4), "big") / 2**32
        return self.fc(x) + level  # PLACE


class SeededInForward(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        torch.manual_seed(0)  # PLACE
        return self.fc(x) * (torch.rand(16) > 0.1)


class ForkedNoise(nn.Module):
    """The state is put back and the seed is fixed: equal bits at every call, random in any export."""

    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            noise = torch.rand_like(x)  # PLACE
        return self.fc(x + noise)


class FreshGenerator(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        generator = torch.Generator().manual_seed(7)
        mask = torch.bernoulli(torch.full_like(x, 0.5), generator=generator)  # PLACE
        return self.fc(x * mask)


class ScratchMemory(nn.Module):
    """The last column of what it allocates is never written."""

    INPUTS = ("16",)
    CHECK = "initialised-memory"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        out = x.new_empty(x.shape[0], 4)  # PLACE
        out[:, :3] = self.fc(x)
        return torch.relu(out)


class HalfFilledTable(nn.Module):
    INPUTS = ("16",)
    CHECK = "initialised-memory"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        table = torch.empty(4)  # PLACE
        table[0] = 1.0
        return self.fc(x) + table
