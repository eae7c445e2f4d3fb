"""Answers that depend on batch-mates, on the number of rows, or on the position in the batch."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn


class NoRunningStatistics(nn.Module):
    INPUTS = ("3,8,8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x)  # PLACE


class BatchStatistics(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        x = self.fc(x)
        return F.batch_norm(x, None, None, training=True)  # PLACE


class CentredByBatch(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = x - x.mean(0)  # PLACE
        return self.fc(x)


class TinyCoupling(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        total = x.sum()  # PLACE
        return self.fc(x) + 1e-9 * total


class WrongAxisSoftmax(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return torch.softmax(self.fc(x), dim=0)  # PLACE


class ScaledByMaximum(nn.Module):
    INPUTS = ("16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        largest = x.abs().max()  # PLACE
        return self.fc(x / largest)


class IntegerCoupling(nn.Module):
    INPUTS = ("6:int64",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 8)

    def forward(self, x):
        vectors = self.table(x)
        return vectors.mean(1) - vectors.mean((0, 1))  # PLACE


class AttentionOverRows(nn.Module):
    """``batch_first`` forgotten: the rows of the batch attend to each other."""

    INPUTS = ("6,16",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2)

    def forward(self, x):
        out, _ = self.attn(x, x, x, need_weights=False)  # PLACE
        return out


class RecurrentOverRows(nn.Module):
    INPUTS = ("6,8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 8)

    def forward(self, x):
        out, _ = self.rnn(x)  # PLACE
        return out


class CumulativeOverRows(nn.Module):
    INPUTS = ("8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x.cumsum(0)  # PLACE


class BestOfBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        scores = self.fc(x)
        return scores - scores.topk(1, dim=0).values  # PLACE


class PositionOfRow(nn.Module):
    """The sequence-first positional encoding of a well-known tutorial, on batch-first input."""

    INPUTS = ("6,8",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.register_buffer("pe", torch.sin(torch.arange(4096.0)).reshape(512, 1, 8))

    def forward(self, x):
        return x + self.pe[: x.size(0)]  # PLACE


class OneRowIsSpecial(nn.Module):
    INPUTS = ("8",)
    CHECK = "batch-sizes"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        if x.shape[0] > 1:
            x = F.normalize(x, dim=1)  # PLACE
        return x


class DividedByBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "batch-sizes"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x / x.shape[0]  # PLACE


class SqueezedBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "batch-sizes"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x).unsqueeze(2)
        return x.squeeze()  # PLACE


class RefusesOneRow(nn.Module):
    INPUTS = ("8",)
    CHECK = "batch-sizes"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        assert x.shape[0] > 1, "give me more rows"  # PLACE
        return self.fc(x)


class OddBatchFails(nn.Module):
    INPUTS = ("8",)
    CHECK = "batch-sizes"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        if x.shape[0] != 5:
            x = x.reshape(x.shape[0] // 2, 2, 8).reshape(-1, 8)  # PLACE
        return self.fc(x)


class WrittenDownBatch(nn.Module):
    INPUTS = ("8",)
    CHECK = "forward-runs"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x.view(32, 4)  # PLACE


class ReturnsLoss(nn.Module):
    INPUTS = ("8",)
    CHECK = "outputs-are-batched"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x.square().mean()  # PLACE


class SequenceFirstOutput(nn.Module):
    INPUTS = ("7,8",)
    CHECK = "outputs-are-batched"

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(8, 8)

    def forward(self, x):  # PLACE
        out, _ = self.rnn(x.transpose(0, 1))
        return out
