"""A graph that compares a row with training rows in several ways, for the out-of-distribution score ``auto``.

- *Range*: how far the worst value lies outside the range of training rows, in widths of that range. Where
  rows have two axes or more (images, sequences), the values are the row's mean, its standard deviation and
  the mean step between neighbours: a blank image has no deviation, noise has large steps.
- *Inputs*: the distance to the nearest training row in whitened principal components of the inputs, as the
  model takes them (categories one-hot). What lies outside the components counts as one more coordinate.
- *Hidden*, for rows of two axes or more: the score ``nearest`` on the hidden layers.

On scikit-learn's tables the whitened nearest neighbour told shuffled columns from clean rows better than
nearest neighbours without whitening and than the Mahalanobis distance (``benchmarks/planted_outliers.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dropserve.columns import Column
from dropserve.errors import ExportError
from dropserve.model import encoder, filler

from .nearest import Features, Nearest, in_passes
from .subject import Subject

Array = np.ndarray[Any, np.dtype[Any]]
MOST_COMPARED = 1000
_COMPONENTS = 64
_RIDGE = 0.01  # of standardised inputs' variance; a component without variance is not divided by zero
_LEAST_SHARE = 0.25  # deviation that a category's 0 or 1 has at least: a rare one is not strange by itself
_TINY = 1e-12


def apart(reference: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Training rows for the graph; and others that bring its distances to one scale, a fifth of all."""
    count = len(next(iter(reference.values())))
    order = np.random.default_rng(1).permutation(count)
    first = max(1, min(MOST_COMPARED, count // 5))
    bank, others = np.sort(order[first:]), np.sort(order[:first])
    return (
        {name: rows[bank] for name, rows in reference.items()},
        {name: rows[others] for name, rows in reference.items()},
    )


def require_comparable(subject: Subject, reference: Mapping[str, Array]) -> None:
    """Refuse inputs that no distance is defined for.

    Raises:
        ExportError: unless there is one input of floating-point numbers and of one shape.
    """
    spec, *others = subject.inputs
    if others or not spec.dtype.startswith("float") or spec.shape != spec.sized() or not spec.shape:
        raise ExportError(
            "rows are compared with training rows where a model has one input of numbers of one shape"
        )
    if len(reference[spec.name]) < 2:  # one for the graph, one to scale
        raise ExportError("the run kept fewer than two training rows to compare with")


class Familiarity(nn.Module):
    """The comparison: inputs [N, ...] to [N, columns], see ``uncertainty.distances``.

    Args:
        subject: the model; it has one input.
        bank: training rows [R, ...], which may hold NaN where a column's values may be missing.
    """

    def __init__(self, subject: Subject, bank: Array) -> None:
        super().__init__()
        (spec,) = subject.inputs
        columns = tuple(subject.columns.get(spec.name, ()))
        self._flat = len(spec.shape) == 1
        self.fill, self.encode = filler(columns), encoder(columns)
        rows = torch.from_numpy(np.ascontiguousarray(bank)).float()
        with torch.no_grad():
            self._ranges(self._overall(self.fill(rows)), columns)
            self._components(self._encoded(rows).double().numpy(), columns)
            self.register_buffer("bank", self._coordinates(rows))
        self.register_buffer("squares", self.get_buffer("bank").square().sum(dim=1))
        self.hidden = None
        if not self._flat:
            features = Features(subject.module).eval()
            self.hidden = Nearest(features, in_passes(features, [bank]))

    def _ranges(self, values: Tensor, columns: Sequence[Column]) -> None:
        low, high = values.amin(dim=0).double(), values.amax(dim=0).double()
        width = high - low
        typical = width[width > 0].median() if bool((width > 0).any()) else torch.tensor(1.0)
        alone = torch.where(low == 0, 1.0, low.abs()) if columns else typical
        width = torch.where(width > 0, width, alone)
        for place, column in enumerate(columns):
            if column.categories:  # a code is no quantity: the known ones are usual, whatever was drawn
                low[place], width[place] = 0, 1
                high[place] = max(float(high[place]), len(column.categories) - 1)
        for name, value in (("low", low), ("high", high), ("width", width)):
            self.register_buffer(name, value.float())

    def _components(self, rows: Array, columns: Sequence[Column]) -> None:
        mean, scale = rows.mean(axis=0), rows.std(axis=0)
        usual = scale[scale > 0]
        scale = np.where(scale > 0, scale, np.median(usual) if len(usual) else 1.0)
        if any(column.categories for column in columns):
            is_category = np.concatenate(
                [np.full(len(c.categories) or 1, bool(c.categories)) for c in columns]
            )
            scale = np.where(is_category, np.maximum(scale, _LEAST_SHARE), scale)
        standard = (rows - mean) / scale
        _, spread, axes = np.linalg.svd(standard, full_matrices=False)
        variance = spread**2 / max(len(rows) - 1, 1)
        kept = min(_COMPONENTS, len(variance))
        left = rows.shape[1] - kept
        rest = float(variance[kept:].sum()) / left if left else 0.0
        self._rest = left > 0
        self.rest_scale = 1 / (rest + _RIDGE) ** 0.5
        whiten = axes[:kept].T / np.sqrt(variance[:kept] + _RIDGE)
        arrays = {"mean": mean, "scale": scale, "axes": axes[:kept].T, "whiten": whiten}
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)).float())

    def _encoded(self, x: Tensor) -> Tensor:
        return self.encode(self.fill(x)).flatten(1)

    def _overall(self, x: Tensor) -> Tensor:
        """The values that are held against ranges [N, V]."""
        if self._flat:
            return x
        flat = x.flatten(1)
        mean = flat.mean(dim=1)
        deviation = (flat - mean[:, None]).square().mean(dim=1).sqrt()
        steps = (x.narrow(-1, 1, x.shape[-1] - 1) - x.narrow(-1, 0, x.shape[-1] - 1)).abs().flatten(1)
        return torch.stack([mean, deviation, steps.mean(dim=1)], dim=1)

    def _coordinates(self, x: Tensor) -> Tensor:
        standard = (self._encoded(x) - self.get_buffer("mean")) / self.get_buffer("scale")
        found = standard @ self.get_buffer("whiten")
        if not self._rest:
            return found
        inside = standard @ self.get_buffer("axes")
        left = standard.square().sum(dim=1) - inside.square().sum(dim=1)
        return torch.cat([found, left.clamp_min(_TINY).sqrt()[:, None] * self.rest_scale], dim=1)

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """Excess, place, value and ends of the worst value, then the squared distance and ``hidden``."""
        (x,) = inputs
        values = self._overall(self.fill(x))
        low, high = self.get_buffer("low"), self.get_buffer("high")
        excess = torch.maximum(low - values, values - high).clamp_min(0) / self.get_buffer("width")
        place = excess.argmax(dim=1)
        value = values.gather(1, place[:, None])[:, 0]
        found = self._coordinates(x)
        product = found @ self.get_buffer("bank").T
        squares = found.square().sum(dim=1)[:, None] + self.get_buffer("squares") - 2 * product
        parts = [
            excess.amax(dim=1),
            place.to(value.dtype),
            value,
            low[place],
            high[place],
            squares.amin(dim=1),
        ]
        if self.hidden is not None:
            parts.append(self.hidden(x)[0])
        return (torch.stack(parts, dim=1),)
