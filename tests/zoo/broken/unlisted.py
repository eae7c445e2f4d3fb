"""Random numbers in places that no list names: the audit has to see what they do."""

import functools
import random
import secrets
import threading

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn
from torch.nn.utils import parametrize


class DropoutInHook(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.fc.register_forward_hook(lambda *call: F.dropout(call[2]))  # PLACE

    def forward(self, x):
        return self.fc(x)


class AlwaysTraining(nn.Dropout):
    @property
    def training(self):
        return True

    @training.setter
    def training(self, mode):
        pass


class FlagIsAProperty(nn.Module):
    INPUTS = ("8",)
    CHECK = "modules-in-eval"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = AlwaysTraining(0.1)

    def forward(self, x):
        x = self.fc(x)
        return self.drop(x)  # PLACE


class PutIntoDict(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.__dict__["drop"] = nn.Dropout(0.1)

    def forward(self, x):
        x = self.fc(x)
        return self.drop(x)  # PLACE


_DROP = nn.Dropout(0.1)


class GlobalModule(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return _DROP(x)  # PLACE


class ClassAttribute(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"
    drop = nn.Dropout(0.1)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return self.drop(x)  # PLACE


class PartialFunction(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = functools.partial(F.dropout, p=0.1)

    def forward(self, x):
        x = self.fc(x)
        return self.drop(x)  # PLACE


class _Jitter(nn.Module):
    def forward(self, w):
        return w + 1e-3 * torch.randn_like(w)  # PLACE


class NoisyWeights(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        parametrize.register_parametrization(self.fc, "weight", _Jitter())

    def forward(self, x):
        return self.fc(x)


class ConcreteDropout(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.logit = nn.Parameter(torch.tensor(-3.0))

    def forward(self, x):
        x = self.fc(x)
        u = torch.rand_like(x)  # PLACE
        return x * torch.sigmoid((torch.log(u) - torch.log(1 - u) - self.logit) / 0.1)


class SampledFromDistribution(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return torch.distributions.Normal(x, 1.0).rsample()  # PLACE


class SecretFactor(nn.Module):
    INPUTS = ("8",)
    CHECK = "repeated-forwards"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        k = secrets.randbelow(1000) / 1000
        return x * k  # PLACE


class InAnotherThread(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        out = []
        worker = threading.Thread(target=lambda: out.append(torch.dropout(x, 0.5, True)))
        worker.start()  # PLACE
        worker.join()  # PLACE
        return out[0]


@torch.jit.script
def fused(x: torch.Tensor):
    return torch.dropout(x, 0.1, True)


class ScriptedFunction(nn.Module):
    INPUTS = ("8",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return fused(x)  # PLACE


class RandomResize(nn.Module):
    INPUTS = ("3,8,8",)
    CHECK = "python-random-state"

    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        s = random.choice([7, 8, 9])  # PLACE
        return self.c(F.interpolate(x, size=s)).mean((2, 3))


class AveragedDropout(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return torch.stack([self.fc(F.dropout(x, 0.1, True)) for _ in range(5)]).mean(0)  # PLACE


class DecoratedForward(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    @torch.no_grad()
    def forward(self, x):
        x = self.fc(x)
        return torch.feature_dropout(x.unsqueeze(2), 0.2, True).squeeze(2)  # PLACE


class ShuffledRows(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return x[torch.randperm(len(x))]  # PLACE


class EvalIsTrain(nn.Module):
    INPUTS = ("8",)
    CHECK = "modules-in-eval"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.3)

    def eval(self):  # PLACE
        return self.train(True)

    def forward(self, x):
        return self.drop(self.fc(x))
