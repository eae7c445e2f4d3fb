"""Unusual models that are sound."""

import logging
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn
from torch.utils.checkpoint import checkpoint


class InferenceModeInside(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        with torch.inference_mode():
            return self.fc(x)


class GradientOfEnergy(nn.Module):
    INPUTS = ("8",)
    FORMATS = ()  # torch.export follows no autograd.grad

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            e = self.net(x)
            return torch.autograd.grad(e.sum(), x)[0]


class AutocastInside(nn.Module):
    INPUTS = ("64",)
    FORMATS = ()  # onnxruntime on a CPU has no bfloat16

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


class HalfPrecision(nn.Module):
    INPUTS = ("8",)
    FORMATS = ()  # the protocol has no bfloat16

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4, dtype=torch.bfloat16)

    def forward(self, x):
        return self.fc(x.to(torch.bfloat16))


class Checkpointed(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=False)


class VectorisedOverRows(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        return torch.func.vmap(lambda r: torch.tanh(r @ self.w))(x)


class Talkative(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        print("shape", x.shape)
        warnings.warn("careful", stacklevel=1)
        logging.getLogger(__name__).info("log")
        return self.fc(x)


class HooksThatLook(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.seen = {}
        self.fc.register_forward_hook(self.keep)

    def keep(self, *call):
        self.seen["fc"] = call[2].detach()

    def forward(self, x):
        return self.fc(x)


class EncoderWithPadding(nn.Module):
    INPUTS = ("6,16", "6:bool")

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.e = nn.TransformerEncoder(layer, 2)

    def forward(self, x, padding):
        padding = padding & (torch.arange(6) > 0)
        return self.e(x, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(2), 0).mean(1)


class DecoderLayer(nn.Module):
    INPUTS = ("5,16", "7,16")

    def __init__(self):
        super().__init__()
        self.d = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)

    def forward(self, t, m):
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        return self.d(t, m, tgt_mask=mask, tgt_is_causal=True)


class CausalAttention(nn.Module):
    INPUTS = ("7:int64",)

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(11, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 11)

    def forward(self, i):
        x = self.emb(i)
        count, length, _ = x.shape
        q, k, v = self.qkv(x).view(count, length, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.1 if self.training else 0)
        return self.out(y.transpose(1, 2).reshape(count, length, 16))


class SkipConnection(nn.Module):
    INPUTS = ("1,16,16",)

    def __init__(self):
        super().__init__()
        self.d = nn.Conv2d(1, 4, 3, 2, 1)
        self.u = nn.ConvTranspose2d(4, 4, 2, 2)
        self.o = nn.Conv2d(5, 2, 1)
        self.bn = nn.BatchNorm2d(4)
        self.dr = nn.Dropout2d(0.1)

    def forward(self, x):
        y = self.dr(torch.relu(self.bn(self.d(x))))
        y = self.u(y)
        return self.o(torch.cat([x, y], 1))


class StatisticsForALog(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.stats = None

    def forward(self, x):
        self.stats = (x.mean().item(), x.std().item())
        return self.fc(x)


class ScatterAdd(nn.Module):
    INPUTS = ("6,8", "6:int64")

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x, g):
        out = torch.zeros(x.shape[0], 2, 8).scatter_add(1, g.unsqueeze(2).expand(-1, -1, 8), x)
        return self.fc(out).flatten(1)


class SelectedTokens(nn.Module):
    INPUTS = ("6,8",)

    def __init__(self):
        super().__init__()
        self.s = nn.Linear(8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        i = self.s(x).squeeze(2).topk(3, 1).indices
        return self.fc(x.gather(1, i.unsqueeze(2).expand(-1, -1, 8))).mean(1)


class CellInALoop(nn.Module):
    INPUTS = ("5,8",)

    def __init__(self):
        super().__init__()
        self.c = nn.GRUCell(8, 8)
        self.dr = nn.Dropout(0.2)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = self.c(self.dr(x[:, t]), h)
        return h


class PackedSequence(nn.Module):
    INPUTS = ("5,8", "1:int64")
    FORMATS = ()  # torch.export follows no packed sequences

    def __init__(self):
        super().__init__()
        self.r = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x, n):
        n = n.squeeze(1) + 3
        p = nn.utils.rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.r(p)
        return h[-1]


class NumbersAlone(nn.Module):
    INPUTS = ("",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 4)

    def forward(self, x):
        return self.fc(x.unsqueeze(1))


class EmptyBuffer(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)
        self.register_buffer("none", None)

    def forward(self, x):
        return self.fc(x)


class _Pair(NamedTuple):
    logits: torch.Tensor
    chances: torch.Tensor


class NamedOutputs(nn.Module):
    INPUTS = ("8",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return _Pair(x, x.softmax(1))
