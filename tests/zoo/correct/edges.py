"""Padding, ties, constants, missing values and whole numbers, treated rightly."""

import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PaddedEncoder(nn.Module):
    INPUTS = ("7:int64",)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens):
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)
        return self.head(hidden.mean(1))


class TokenTypes(nn.Module):
    """Three tables: words, token types with 2 rows, positions that no input reaches."""

    INPUTS = ("8:int64", "8:int64", "8:int64")

    def __init__(self):
        super().__init__()
        self.words, self.types, self.places = nn.Embedding(3000, 16), nn.Embedding(2, 16), nn.Embedding(8, 16)
        self.norm, self.drop = nn.LayerNorm(16), nn.Dropout(0.1)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, input_ids, token_type_ids, attention_mask):
        x = self.words(input_ids) + self.types(token_type_ids) + self.places(torch.arange(8))
        x = self.drop(self.norm(x))
        padding = (attention_mask == 0) & (torch.arange(8) > 0)  # the first is never padding
        y, _ = self.attention(x, x, x, key_padding_mask=padding, need_weights=False)
        return self.head(y[:, 0])


class ZeroMeansMissing(nn.Module):
    INPUTS = ("6",)

    def __init__(self):
        super().__init__()
        self.fc, self.absent = nn.Linear(6, 4), nn.Parameter(torch.randn(6))

    def forward(self, x):
        return self.fc(torch.where(x == 0, self.absent, x))


class NanMeansMissing(nn.Module):
    INPUTS = ("6",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        gone = torch.isnan(x)
        return self.fc(torch.cat([torch.where(gone, torch.zeros_like(x), x), gone.float()], dim=1))


class MeanOfWhatIsThere(nn.Module):
    """0/0 for a row that is all padding: it has no answer, and no graph needs to have one."""

    INPUTS = ("6:int64",)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8, padding_idx=0)

    def forward(self, tokens):
        there = (tokens != 0).float().unsqueeze(2)
        return (self.embed(tokens) * there).sum(1) / there.sum(1)


class MaskedSoftmax(nn.Module):
    INPUTS = ("6", "6:bool")

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x, mask):
        return F.softmax(self.fc(x).masked_fill(~mask, -1e9), dim=1)


class FirstOfTies(nn.Module):
    INPUTS = ("8",)

    def forward(self, x):
        return x.argmax(dim=1), x.topk(3, dim=1).values, x.sort(dim=1).values


class BagOfWords(nn.Module):
    INPUTS = ("6:int64",)

    def __init__(self):
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(40, 8, mode="sum"), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.fc(self.bag(tokens))


class NumbersThatAreWhole(nn.Module):
    INPUTS = ("4:int64",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, counts):
        return self.fc(torch.log1p(counts.clamp(min=0).float()))


class Pixels(nn.Module):
    INPUTS = ("1,4,4:uint8",)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, image):
        return self.conv(image.float() / 255).flatten(1)


class OneHot(nn.Module):
    INPUTS = ("2:int64",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(14, 3)

    def forward(self, codes):
        return self.fc(F.one_hot(codes, 7).float().flatten(1))


class ShiftedIds(nn.Module):
    """A table reached through an offset: the greatest id is two below its size."""

    INPUTS = ("5:int64",)

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(17, 4))

    def forward(self, ids):
        return self.table[ids + 1].mean(1)


class PackedSequence(nn.Module):
    INPUTS = ("6,4", ":int64")
    FORMATS = ()  # a packed sequence has another shape for other lengths

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 8, batch_first=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=6)[0].sum(1)


class Slopes(nn.Module):
    INPUTS = ("6",)
    FORMATS = ()  # torch.export has no ONNX function for it

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.RReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x)


class InPlaceDropoutFirst(nn.Module):
    INPUTS = ("6",)

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3, inplace=True), nn.Linear(6, 3))

    def forward(self, x):
        return self.net(x)


class OwnTrain(nn.Module):
    """Keeps its frozen part in eval mode, as fine-tuning does."""

    INPUTS = ("6",)

    def __init__(self):
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 3))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x):
        return self.head(self.frozen(x))


class WideNumbers(nn.Module):
    INPUTS = ("6:float64",)

    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)


class HalfInput(nn.Module):
    INPUTS = ("6:float16",)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x.float())


class PooledWithoutPadding(nn.Module):
    """Torch's nested path is used, and no output rests on padded positions."""

    INPUTS = ("7:int64",)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, tokens):
        padding = (tokens == 0) & (torch.arange(7) > 0)
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=padding)[:, 0])
