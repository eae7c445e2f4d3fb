"""The steps around scaling that are exported with a model of a table (needs torch)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dropserve.columns import Column, Layout, lay_out


class Fill(nn.Module):
    """Puts each column's fill in the place of NaN; NaN in a column without one stays.

    Args:
        columns: at least one of them has a fill.
    """

    imputed: Tensor
    fill: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.register_buffer("imputed", torch.tensor([column.fill is not None for column in columns]))
        self.register_buffer("fill", torch.tensor([float(column.fill or 0) for column in columns]))

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, columns]`` to the same."""
        return torch.where(self.imputed & torch.isnan(rows), self.fill, rows)


class OneHot(nn.Module):
    """Codes of categories to zeros and a one; numbers stay as they are.

    Args:
        layout: where each number comes from.
    """

    source: Tensor
    code: Tensor
    is_category: Tensor

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.register_buffer("source", torch.from_numpy(layout.source))
        self.register_buffer("code", torch.from_numpy(layout.code))
        self.register_buffer("is_category", torch.from_numpy(layout.is_category))

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, columns]`` to ``[N, numbers]``."""
        spread = rows.index_select(1, self.source)
        return torch.where(self.is_category, (spread == self.code).to(rows.dtype), spread)


def filler(columns: Sequence[Column]) -> nn.Module:
    """The first step of a table's rows; nothing where no column is imputed."""
    return Fill(columns) if any(column.fill is not None for column in columns) else nn.Identity()


def encoder(columns: Sequence[Column]) -> nn.Module:
    """The last step of a table's rows; nothing where every column holds numbers."""
    layout = lay_out(columns)
    return nn.Identity() if layout is None else OneHot(layout)
