"""How far the graphs of a lower precision are from the float32 graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dropserve.export.cases import magnitude
from dropserve.export.comparison import Array, compare
from dropserve.export.settings import Bounds


@dataclass
class Apart:
    """Differences of many runs, as shares of the output's scale.

    Attributes:
        bounds: what is allowed.
        runs: how many were compared.
        problem: why it is out of bounds; empty so far.
    """

    bounds: Bounds
    runs: int = 0
    problem: str = ""
    worst: dict[str, Any] = field(default_factory=dict[str, Any])
    _errors: list[Array] = field(default_factory=list[Array])

    def add(
        self, expected: Mapping[str, Array], got: Mapping[str, Array], scales: Mapping[str, float], where: str
    ) -> None:
        """Take in one run.

        Args:
            expected: what the float32 graphs gave, by name.
            got: what the others gave.
            scales: the size of each output.
            where: which run it was, for people.
        """
        self.runs += 1
        for found in compare(expected, got, scales, finite=False):
            if found.problem is not None:
                self.problem = self.problem or f"{found.problem}: {found.detail} ({where})"
                continue
            reference = expected[found.output].astype(np.float64)
            usable = np.isfinite(reference)
            difference = np.abs(reference[usable] - got[found.output].astype(np.float64)[usable])
            if found.worst and found.maximum >= self.largest:
                self.worst = {"output": found.output, "where": where, **vars(found.worst)}
            self._errors.append(difference.reshape(-1) / (scales[found.output] or 1.0))

    @property
    def errors(self) -> Array:
        """All of them."""
        return np.concatenate([np.zeros(1), *self._errors])

    @property
    def largest(self) -> float:
        """The greatest."""
        return max((float(part.max(initial=0)) for part in self._errors), default=0.0)

    @property
    def typical(self) -> float:
        """The root of their mean square."""
        return float(np.sqrt(np.mean(np.square(self.errors))))

    def conclude(self) -> str:
        """What is out of bounds; empty if nothing is."""
        if not self.problem and self.largest > self.bounds.largest:
            self.problem = f"an answer differs by {self.largest:.2g} of the scale ({self.worst.get('where')})"
        if not self.problem and self.typical > self.bounds.typical:
            self.problem = f"answers typically differ by {self.typical:.2g} of the scale"
        return self.problem

    def words(self) -> str:
        """The figures and their bounds."""
        b = self.bounds
        return (
            f"largest {self.largest:.1e} of the scale (bound {b.largest:g}), typical {self.typical:.1e} "
            f"(bound {b.typical:g})"
        )

    def figures(self) -> dict[str, Any]:
        """For ``export.json``."""
        errors = self.errors
        return {
            "runs": self.runs,
            "problem": self.conclude() or None,
            "detail": self.words(),
            "max": self.largest,
            "mean": float(errors.mean()),
            "p99": float(np.percentile(errors, 99)),
            "rms": self.typical,
            "worst": self.worst,
        }


def scales_of(outputs: Mapping[str, Array]) -> dict[str, float]:
    """The greatest magnitude of each output."""
    return {name: magnitude(array) for name, array in outputs.items()}
