"""Which whole numbers a model takes, input by input: found by running it.

A token id must be smaller than the table that *it* reaches, and a model may have several: token types with
2 rows, positions with 512, words with 30,000. A static look at the tables cannot tell them apart, so a copy
of the model is run on growing numbers until it refuses.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dropserve.dropout.mode import no_fused_attention
from dropserve.signature import TensorSpec

from .quiet import quiet

_LEAST_LIMIT = 1000
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
_MOST_PADS = 3


@dataclass(frozen=True)
class IntegerRange:
    """The whole numbers of one input.

    Attributes:
        low, high: the least and the greatest number that is drawn.
        limited: whether the model refuses more than ``high``, as a table does; otherwise the number counts
            as a number.
        pads: numbers that may stand for "nothing here": the ``padding_idx`` of the model's embeddings, what
            the model compares whole numbers with, and 0; at least one, within the range.
    """

    low: int
    high: int
    limited: bool
    pads: tuple[int, ...]


def integer_ranges(module: nn.Module, inputs: Sequence[TensorSpec]) -> dict[str, IntegerRange]:
    """The range of every input of whole numbers, by running a copy of the model on one row.

    Args:
        module: in eval mode.
        inputs: everything that it takes, in order.
    """
    names = [spec.name for spec in inputs if spec.numpy_dtype.kind in "iu"]
    if not names:
        return {}
    # A user's __deepcopy__ or attribute may raise anything; then the model itself has to do.
    with contextlib.suppress(Exception):
        module = copy.deepcopy(module)
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad(), no_fused_attention():
        return _Search(module, inputs, names).ranges()


class _Search:
    """Runs of one row in which every input of whole numbers holds one number throughout."""

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec], names: list[str]) -> None:
        self._module, self._inputs, self._names = module, inputs, names
        self._tables = [
            m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        ]
        sizes = [size for tensor in [*module.parameters(), *module.buffers()] for size in _shape(tensor)]
        sizes += [value for m in module.modules() for value in vars(m).values() if _is_count(value)]
        self._sizes = sorted({*self._tables, *sizes})

    def ranges(self) -> dict[str, IntegerRange]:
        starts = [dict.fromkeys(self._names, start) for start in (0, 1)]
        start = next((start for start in starts if self._runs(start)), None)
        if start is None:  # such as lengths beside ids, or a fault that forward-runs reports
            return {
                name: IntegerRange(0, min(self._tables, default=2) - 1, True, (0,)) for name in self._names
            }
        constants = self._constants(start)
        return {spec.name: self._range(spec, start, constants) for spec in self._inputs if spec.name in start}

    def _range(self, spec: TensorSpec, start: dict[str, int], constants: list[int]) -> IntegerRange:
        def runs(value: int) -> bool:
            return self._runs({**start, spec.name: value})

        low = 0 if runs(0) else start[spec.name]
        most = int(torch.iinfo(getattr(torch, spec.dtype)).max)
        limit = min(most, max(_LEAST_LIMIT, *self._sizes, 1) + 1)
        if runs(limit):
            high, limited = (most if spec.dtype == "uint8" else max(1, low)), limit == most
        else:
            high, limited = self._greatest(runs, low, limit), True
        padding = [
            m.padding_idx for m in self._module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        ]
        wanted = [0, *(index for index in padding if index is not None), *constants]
        pads = [value for value in dict.fromkeys(wanted) if low <= value <= high]
        return IntegerRange(low, high, limited, tuple(pads[:_MOST_PADS]) or (low,))

    def _greatest(self, runs: Callable[[int], bool], good: int, bad: int) -> int:
        """The greatest number that runs, between one that does and one that does not."""
        while bad - good > 1:
            tables = [pivot for size in self._tables for pivot in (size - 1, size) if good < pivot < bad]
            sizes = [pivot for size in self._sizes for pivot in (size - 1, size) if good < pivot < bad]
            pivot = next(iter([*tables[::-1], *sizes[::-1]]), (good + bad) // 2)
            good, bad = (pivot, bad) if runs(pivot) else (good, pivot)
        return good

    def _runs(self, values: Mapping[str, int]) -> bool:
        try:
            self._module(*self._row(values))
        except Exception:  # noqa: BLE001  # whatever a model raises, it refuses the number
            return False
        return True

    def _row(self, values: Mapping[str, int]) -> Iterator[Tensor]:
        for spec in self._inputs:
            yield torch.full((1, *spec.sized()), values.get(spec.name, 0), dtype=getattr(torch, spec.dtype))

    def _constants(self, start: dict[str, int]) -> list[int]:
        seen = _Compared()
        with seen:
            self._runs(start)
        return list(seen.found)


class _Compared(TorchFunctionMode):
    """Notes the numbers with which a model compares tensors of whole numbers, such as ``tokens == 1``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, None] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "").strip("_") in _COMPARISONS:
            whole = [a for a in args if isinstance(a, Tensor) and not a.is_floating_point() and a.numel() > 1]
            if whole:
                self.found |= {int(a): None for a in args if _is_count(a)}
        return func(*args, **(kwargs or {}))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**24


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.shape)
