"""Which axis of a tensor holds the rows, learnt from runs that differ in one thing each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dropserve.dropout.calls import noise_shape
from dropserve.dropout.record import Event
from dropserve.errors import BatchAxisError
from dropserve.signature import Axis, Shape

ROWS = 3  # of the base run
MORE_ROWS = 5
ORDER = (1, 2, 0)  # in which the permuted run has the base run's rows


@dataclass(frozen=True)
class Layout:
    """How a mask [N, *shape] comes to lie on the activations of its site.

    Attributes:
        shape: of the mask per row.
        axis: of the activations, where the rows are (or a 1 that the rows broadcast against).
        fold: how a row's entries lie on that axis if it has several: rows ``outer`` ([N, k] flattened) or
            rows ``inner`` ([k, N] flattened); None if it has one.
        cut: axes on which the activations may be shorter than the mask, which is cut to their length.
    """

    shape: Shape
    axis: int
    fold: str | None
    cut: tuple[int, ...]

    def arranged(self, mask: Tensor, activations: Tensor) -> Tensor:
        """The mask [N, *shape], so that it broadcasts against the activations."""
        if self.fold is None:
            mask = mask.movedim(0, self.axis)
        else:
            inner = self.fold == "inner"
            mask = mask.movedim(0, self.axis + inner).flatten(self.axis, self.axis + 1)
        for axis in self.cut:
            mask = mask.narrow(axis, 0, activations.size(axis))
        return mask if mask.dtype == activations.dtype else mask.to(activations.dtype)


@dataclass(frozen=True)
class Views:
    """The same dropout call in each run.

    Attributes:
        base: ``ROWS`` rows, variable axes at their maximum.
        permuted: the same with the rows in another order.
        more: ``MORE_ROWS`` rows.
        shorter: for each variable axis, the base run with that axis at the length given beside it.
    """

    base: Event
    permuted: Event
    more: Event
    shorter: Mapping[Axis, tuple[int, Event]]


def find_layout(views: Views) -> Layout:
    """Where the rows are in the activations of a dropout, and what shape its mask has per row.

    Raises:
        BatchAxisError: if no axis, or more than one, follows the number of rows, or if rows influence
            each other.
    """
    base, more = tuple(views.base.input.shape), tuple(views.more.input.shape)
    others = [tuple(event.input.shape) for _, event in views.shorter.values()]
    if any(len(shape) != len(base) for shape in (more, *others)):
        raise _error(views, "its number of axes changes with the number or length of the rows")
    axis, fold = _batch_axis(views, base, more)
    shape: list[int | Axis] = []
    cut: list[int] = []
    for d, size in enumerate(noise_shape(views.base.kind, base)):
        if d != axis:
            length, derived = _length(views, d, size, 1)
            shape.append(length)
            cut += [d] if derived else []
        elif fold is not None:
            length, derived = _length(views, d, base[d] // ROWS, ROWS)
            if derived or size != base[d]:
                raise _error(views, f"axis {d} holds rows together with other things in a way that varies")
            shape.append(length)
    return Layout(tuple(shape), axis, fold, tuple(cut))


def _batch_axis(views: Views, base: Sequence[int], more: Sequence[int]) -> tuple[int, str | None]:
    follow = [d for d, (a, b) in enumerate(zip(base, more, strict=True)) if a != b]
    if not follow:
        ones = [d for d, size in enumerate(base) if size == 1]
        if len(ones) != 1:
            raise _error(
                views,
                "no axis follows the number of rows. Give the tensor one leading axis of size 1 (x[None]), "
                "or apply the dropout after it has met the batch",
            )
        return ones[0], None
    axis = follow[0]
    if len(follow) > 1 or base[axis] % ROWS or base[axis] * MORE_ROWS != more[axis] * ROWS:
        raise _error(
            views,
            f"with {ROWS} rows its shape is {list(base)} and with {MORE_ROWS} rows {list(more)}: exactly one "
            "axis must be a multiple of the number of rows",
        )
    per_row = base[axis] // ROWS
    fits = [fold for fold in (("outer", "inner") if per_row > 1 else (None,)) if _permutes(views, axis, fold)]
    if not fits:
        raise _error(
            views,
            "when the rows come in another order its content is not in that order: the rows influence each "
            "other, and an answer would depend on its batch-mates",
        )
    return axis, fits[0]


def _permutes(views: Views, axis: int, fold: str | None) -> bool:
    first, second = views.base.input, views.permuted.input
    if first.shape != second.shape:
        return False
    split = (ROWS, -1) if fold != "inner" else (-1, ROWS)
    rows = axis + (fold == "inner")
    expected = first.unflatten(axis, split).index_select(rows, torch.tensor(ORDER))
    found = second.unflatten(axis, split)
    scale = float(first.abs().nan_to_num().max()) if first.numel() else 0.0
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)


def _length(views: Views, d: int, size: int, rows: int) -> tuple[int | Axis, bool]:
    """What a length is: a number or a variable axis; and whether it follows one in some other way."""
    follows = {
        axis: (short, event.input.shape[d] // rows)
        for axis, (short, event) in views.shorter.items()
        if event.input.shape[d] // rows != views.base.input.shape[d] // rows
    }
    if not follows or size == 1:
        return size, False
    axis, (short, found) = next(iter(follows.items()))
    if len(follows) == 1 and size == axis.maximum and found == short:
        return axis, False
    return size, True


def _error(views: Views, what: str) -> BatchAxisError:
    event = views.base
    return BatchAxisError(
        f"dropout {event.name!r} ({event.where or 'place unknown'}) works on a tensor of shape "
        f"{list(event.input.shape)}: {what}."
    )
