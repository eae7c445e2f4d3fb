"""Dropout that survives ``eval()``."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class FunctionalDropout(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.dropout(x)  # PLACE
        return self.fc(x)


class RareFunctionalDropout(nn.Module):
    INPUTS = ("8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.fc(x))
        return F.dropout(x, p=1e-6, training=True)  # PLACE


class InvertedFlag(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.3, training=not self.training)  # PLACE


class BuiltInForward(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(nn.Dropout(0.1)(x))  # PLACE


class HeldInList(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.drops = [nn.Dropout(0.1) for _ in range(3)]

    def forward(self, x):
        for fc, drop in zip(self.fcs, self.drops, strict=True):
            x = drop(fc(x))  # PLACE
        return x


class HeldInDict(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.parts = {"drop": nn.Dropout(0.2), "act": nn.ReLU()}
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = self.parts["act"](self.fc(x))
        return self.parts["drop"](x)  # PLACE


class HeldInClosure(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        drop = nn.Dropout(0.2)
        self.regularise = lambda x: 2 * drop(x)  # PLACE
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.regularise(self.fc(x))


class SwitchedOnInForward(nn.Module):
    INPUTS = ("16",)
    CHECK = "modules-in-eval"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        self.drop.train()  # PLACE
        return self.drop(self.fc(x))


class AlwaysOn(nn.Dropout):
    def train(self, mode=True):  # noqa: ARG002  # PLACE
        self.training = True
        return self


class ChildOverridesTrain(nn.Module):
    INPUTS = ("16",)
    CHECK = "modules-in-eval"

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), AlwaysOn(0.2))

    def forward(self, x):
        return self.body(x)


class RootOverridesEval(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        self.fc.train(mode)
        return self

    def forward(self, x):
        x = self.drop(x)  # PLACE
        return self.fc(x)


class ConstantAttentionDropout(nn.Module):
    INPUTS = ("6,16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)  # PLACE


class FunctionalAttentionDefault(nn.Module):
    """``multi_head_attention_forward`` has ``training=True`` by default, too."""

    INPUTS = ("6,16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)

    def forward(self, x):
        a, x = self.attn, x.transpose(0, 1)
        out, _ = F.multi_head_attention_forward(  # PLACE
            x, x, x, 16, 2, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.1,
            a.out_proj.weight, a.out_proj.bias,
        )  # fmt: skip
        return out.transpose(0, 1)


class FeatureDropout(nn.Module):
    INPUTS = ("3,8,8",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.dropout2d(self.conv(x), 0.2)  # PLACE


class AlphaDropoutOn(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        x = F.selu(self.fc(x))
        return F.alpha_dropout(x, 0.1, training=True)  # PLACE


class MonteCarloFlagOn(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self, mc=True):
        super().__init__()
        self.mc = mc
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.1, training=self.training or self.mc)  # PLACE


class DropConnect(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16))

    def forward(self, x):
        weight = F.dropout(self.weight, 0.1)  # PLACE
        return F.linear(x, weight)


class HiddenRecurrent(nn.Module):
    INPUTS = ("5,8",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.rnn = (nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True),)

    def forward(self, x):
        out, _ = self.rnn[0](x)  # PLACE
        return out[:, -1]


class HiddenEncoderLayer(nn.Module):
    INPUTS = ("5,16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)]

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)  # PLACE
        return x


class TracedInTrainMode(nn.Module):
    INPUTS = ("16",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(16, 16), nn.Dropout(1e-4))
        self.net = torch.jit.trace(net, torch.zeros(2, 16), check_trace=False)

    def forward(self, x):
        return self.net(x)  # PLACE


class _Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.dropout(x, 0.1, True)


class ScriptedAlwaysOn(nn.Module):
    INPUTS = ("16",)
    CHECK = "random-operators"

    def __init__(self):
        super().__init__()
        self.drop = torch.jit.script(_Scripted())
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.fc(x))
        return self.drop(x)  # PLACE


class OnlyOnLongInput(nn.Module):
    """Dropout behind a condition on the shape that ordinary use meets."""

    INPUTS = ("12,4",)
    CHECK = "torch-random-state"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        if x.shape[1] > 10:
            x = torch.dropout(x, 0.1, True)  # PLACE
        return self.fc(x)
