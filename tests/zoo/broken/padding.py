"""Faults that show on padded rows, ties, constants, and in another gradient mode."""

import torch
from torch import nn


class NestedEncoder(nn.Module):
    """Torch puts 0 at padded positions in eval mode without gradients, and other numbers elsewhere."""

    INPUTS = ("7:int64",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, tokens):
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)  # PLACE
        return self.head(hidden.mean(1))


class NestedEncoderWithAnotherPadding(nn.Module):
    INPUTS = ("7:int64",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16, padding_idx=1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, tokens):
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=tokens.eq(1))  # PLACE
        return self.head(hidden.amax(1))


class NestedEncoderWithMask(nn.Module):
    INPUTS = ("6,16", "6:bool")
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x, padding):
        return self.encoder(x, src_key_padding_mask=padding).mean(1)  # PLACE


class NestedEncoderWithAttentionMask(nn.Module):
    """Ids and a mask of whole numbers, as tokenizers give them."""

    INPUTS = ("6:int64", "6:int64")
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, ids, attention_mask):
        return self.encoder(self.embed(ids), src_key_padding_mask=attention_mask == 0).mean(1)  # PLACE


class NestedEncoderOfFloats(nn.Module):
    INPUTS = ("6,16",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.encoder(x, src_key_padding_mask=(x == 0).all(2)).sum(1)  # PLACE


class CutToTheLongest(nn.Module):
    INPUTS = ("9:int64",)
    CHECK = "row-independence"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, tokens):
        longest = int((tokens != 0).sum(1).max())  # PLACE
        return self.embed(tokens[:, :longest]).mean(1)  # PLACE


class SkipsTheRareId(nn.Module):
    """A choice that only the greatest id takes."""

    INPUTS = ("1:int64", "1:int64")
    CHECK = "data-dependent-control-flow"

    def __init__(self):
        super().__init__()
        self.few, self.many = nn.Embedding(2, 4), nn.Embedding(5000, 4)

    def forward(self, kind, token):
        rows = []
        for one in token[:, 0]:
            value = self.many(one)
            rows.append(value * 2 if one == 4999 else value)  # PLACE
        return torch.stack(rows) + self.few(kind)[:, 0]


class InferenceMode(nn.Module):
    INPUTS = ("8",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.fc(x)
        return x * 2 if torch.is_inference_mode_enabled() else x  # PLACE


class GradientModeOnPaddingAlone(nn.Module):
    INPUTS = ("6:int64",)
    CHECK = "gradient-mode"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, tokens):
        x = self.embed(tokens).mean(1)
        if not torch.is_grad_enabled():
            x = x + (tokens[:, -1:] == 0) * (tokens[:, -2:-1] == 0)  # PLACE
        return x
