"""Models with dropout of every kind that ``eval()`` turns off."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class Mlp(nn.Module):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))

    def forward(self, x):
        return self.net(x)


class SequentialRoot(nn.Sequential):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))


class FunctionalWithFlag(nn.Module):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = F.dropout(torch.relu(self.fc1(x)), 0.3, training=self.training)
        return self.fc2(x)


class Convolutional(nn.Module):
    INPUTS = ("3,12,12",)

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop2d, self.drop = nn.Dropout2d(0.2), nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.drop2d(torch.relu(self.norm(self.conv1(x))))
        x = torch.relu(self.conv2(x)).mean((2, 3))
        return self.fc(self.drop(x))


class EarlyBatchSize(nn.Module):
    INPUTS = ("3,8,8",)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(8 * 64, 4)

    def forward(self, x):
        n = x.shape[0]
        x = self.stem(x)
        x = x + self.block(x)
        return self.fc(self.drop(x.view(n, -1)))


class Attention(nn.Module):
    INPUTS = ("6,16",)

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        y, _ = self.attn(x, x, x, need_weights=False)
        return self.norm(x + y).mean(1)


class AttentionWithWeights(nn.Module):
    INPUTS = ("6,16",)

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.last_weights = None

    def forward(self, x):
        y, weights = self.attn(x, x, x)
        self.last_weights = weights  # for a picture
        return {"features": y.mean(1), "attention": weights}


class GuardedScaledAttention(nn.Module):
    INPUTS = ("6,16",)

    def __init__(self):
        super().__init__()
        self.qkv, self.p = nn.Linear(16, 48), 0.1

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)


class Encoder(nn.Module):
    INPUTS = ("6,16",)

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(x)[:, 0])


class BatchSecondEncoder(nn.Module):
    INPUTS = ("6,16",)

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class StackedLstm(nn.Module):
    INPUTS = ("6,8",)

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 12, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1])


class BatchSecondGru(nn.Module):
    INPUTS = ("6,8",)

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 12, num_layers=2, dropout=0.4)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        out, _ = self.rnn(x.permute(1, 0, 2))
        return self.head(out[-1])


class SelfNormalising(nn.Module):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(32, 4))

    def forward(self, x):
        return self.net(x)


class ZeroRate(nn.Module):
    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.drop, self.fc = nn.Dropout(0.0), nn.Linear(16, 4)

    def forward(self, x):
        return F.dropout(self.fc(self.drop(x)), p=0.0, training=True)


class MonteCarloFlagOff(nn.Module):
    INPUTS = ("16",)

    def __init__(self, mc=False):
        super().__init__()
        self.mc, self.fc = mc, nn.Linear(16, 4)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.2, training=self.training or self.mc)


class GuardedNoise(nn.Module):
    """Noise and stochastic depth that only training has."""

    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        y = torch.relu(self.fc1(x))
        if self.training:
            y = y + 0.1 * torch.randn_like(y)
            y = y * torch.bernoulli(torch.full((x.shape[0], 1), 0.9)) / 0.9
        return self.fc2(x + y)


class RandomSlopes(nn.Module):
    INPUTS = ("16",)
    FORMATS = ()  # torch's exporter has no ONNX function for it

    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(16, 4), nn.RReLU()

    def forward(self, x):
        return self.act(self.fc(x))


class TracedInEval(nn.Module):
    INPUTS = ("16",)
    FORMATS = ()  # torch.export does not follow TorchScript

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)).eval()
        self.net = torch.jit.trace(net, torch.zeros(2, 16))

    def forward(self, x):
        return self.net(x)


class ScriptedPart(nn.Module):
    INPUTS = ("16",)
    FORMATS = ()  # torch.export does not follow TorchScript

    def __init__(self):
        super().__init__()
        self.net = torch.jit.script(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.ReLU()))

    def forward(self, x):
        return self.net(x)


class AuxiliaryHead(nn.Module):
    """A second head that only training has."""

    INPUTS = ("16",)

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 16)
        self.head, self.auxiliary = nn.Linear(16, 4), nn.Linear(16, 4)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.drop(torch.relu(self.body(x)))
        if self.training:
            return self.head(x), self.auxiliary(x)
        return self.head(x)
