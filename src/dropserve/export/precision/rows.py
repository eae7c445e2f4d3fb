"""The held-out rows behind a lower precision: some set its scales, the others judge it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dropserve.dropout.masks import draw
from dropserve.errors import ExportError
from dropserve.export.artefacts import Artefacts
from dropserve.export.comparison import Array
from dropserve.export.onnx import OnnxProgram
from dropserve.export.subject import Subject
from dropserve.signature import Signature, TensorSpec

LEAST = 8
_SCALING = 512  # rows: ranges hardly move beyond
_JUDGING = 2000
_BATCH = 64
_SAMPLES = 8
_SEED = 19  # neither a server's default nor that of the comparisons
_NUMBERS = 2**22  # fed to a head at once: 16 MiB


@dataclass(frozen=True)
class Rows:
    """Inputs by name, and what is true where that is known."""

    inputs: Mapping[str, Array]
    target: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: Array | slice) -> Rows:
        """Some of the rows."""
        target = None if self.target is None else self.target[index]
        return Rows({name: array[index] for name, array in self.inputs.items()}, target)


@dataclass(frozen=True)
class Held:
    """Rows that were not trained on, in two parts.

    Attributes:
        name: of the model.
        scaling: int8 takes the ranges of its activations from these.
        judging: on these its cost is measured.
        real: whether they come from data; drawn numbers stand in for rows that nobody gave.
    """

    name: str
    scaling: Rows
    judging: Rows
    real: bool

    @classmethod
    def of(cls, subject: Subject, target: Array | None) -> Held:
        """Split the rows of a subject: half of them, at most 512, set the scales.

        Args:
            subject: with or without real rows.
            target: [n] or [n, ...], as many as it has rows.
        """
        real = subject.rows is not None
        batch = subject.rows or {name: t.numpy() for name, t in subject.batch(2 * _BATCH).items()}
        inputs = {s.name: np.asarray(batch[s.name]).astype(s.numpy_dtype) for s in subject.inputs}
        rows = Rows(inputs, target)
        order = np.random.default_rng(0).permutation(len(rows))
        half = min(len(rows) // 2, _SCALING)
        return cls(subject.name, rows.take(order[:half]), rows.take(order[half : half + _JUDGING]), real)

    def require_for_int8(self) -> None:
        """Refuse scales that come from no data, or from next to none.

        Raises:
            ExportError: saying what to do.
        """
        if not self.real or len(self.scaling) < LEAST:
            count = len(self.scaling) + len(self.judging) if self.real else 0
            raise ExportError(
                f"int8 takes the ranges of its numbers from held-out rows, and the run of {self.name} has "
                f"{count}; expected at least {2 * LEAST}. Train with dropserve, which keeps validation rows, "
                "or export with --precision fp16, which needs none."
            )


def batches(rows: Rows, size: int = _BATCH) -> Iterator[dict[str, Array]]:
    """The inputs, a few rows at a time."""
    for first in range(0, len(rows), size):
        yield dict(rows.take(slice(first, first + size)).inputs)


def head_feeds(made: Artefacts, rows: Rows, trunk: OnnxProgram | None) -> Iterator[dict[str, Array]]:
    """What a head is fed: rows (or what the trunk makes of them) under drawn masks, and under none.

    Args:
        made: for the sites.
        rows: the rows.
        trunk: what stands before the head.
    """
    drawn = draw(made.sites, _SAMPLES, seed=_SEED)
    per_row = sum(array[0].size for array in (*drawn.values(), *rows.inputs.values()))
    size = max(1, min(_BATCH, _NUMBERS // (per_row * (_SAMPLES + 1))))
    for inputs in batches(rows, size):
        fixed = inputs if trunk is None else {**inputs, **trunk(inputs)}
        count = len(next(iter(inputs.values())))
        lengths = lengths_of(made.signature, inputs)
        for sample in range(_SAMPLES):
            masks = {
                spec.name: np.repeat(drawn[spec.name][sample : sample + 1], count, axis=0)[
                    :, *(slice(size) for size in spec.sized(lengths))
                ]
                for spec in made.masks
            }
            yield {**fixed, **masks}
        yield {**fixed, **identity(made, count, lengths)}


def identity(made: Artefacts, count: int, lengths: dict[str, int]) -> dict[str, Array]:
    """Masks that change nothing, [count, ...]."""
    shifts = {site.shift for site in made.sites}
    return {s.name: _full(s, count, lengths, 0.0 if s.name in shifts else 1.0) for s in made.masks}


def lengths_of(signature: Signature, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The lengths of the variable axes in some inputs."""
    return {
        axis.name: size
        for spec in signature.inputs
        for axis, size in zip(spec.shape, inputs[spec.name].shape[1:], strict=True)
        if not isinstance(axis, int)
    }


def variants(signature: Signature, rows: Rows) -> list[dict[str, int]]:
    """The lengths that rows have, half of them, and one; a single set of them where no axis varies."""
    whole = lengths_of(signature, rows.inputs)
    found = [whole, {a: max(1, n // 2) for a, n in whole.items()}, dict.fromkeys(whole, 1)]
    return [lengths for index, lengths in enumerate(found) if lengths not in found[:index]]


def cut(signature: Signature, rows: Rows, lengths: Mapping[str, int]) -> Rows:
    """The rows, variable axes cut to some lengths."""
    inputs = {
        spec.name: rows.inputs[spec.name][:, *(slice(size) for size in spec.sized(dict(lengths)))]
        for spec in signature.inputs
    }
    return Rows({name: np.ascontiguousarray(array) for name, array in inputs.items()}, rows.target)


def _full(spec: TensorSpec, count: int, lengths: dict[str, int], value: float) -> Array:
    return np.full((count, *spec.sized(lengths)), value, np.float32)
