"""Compare what two programs answer: first whether it can be compared, then by how much it differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Problem = Literal["error", "missing output", "wrong dtype", "wrong shape", "NaN", "difference"]

REMEDIES: Mapping[Problem, str] = {
    "error": "the exported graph refuses inputs that the model takes: a size or a decision is baked into it. "
    "Take sizes from tensors (x.shape[0]), and decisions with torch.where.",
    "missing output": "the exported graph lost an output: return the same outputs on every path.",
    "wrong dtype": "cast explicitly in forward (x.float()), so that no exporter has to guess.",
    "wrong shape": "a size is baked into the graph: take sizes from tensors, never from Python numbers.",
    "NaN": "guard the operation that overflows or divides by zero (clamp before log, exp or division).",
    "difference": "make forward follow tensors alone: no Python branches on values, no state, no randomness. "
    "If only rounding is behind it, raise tolerance in export/checks.toml, or waive the check by name.",
}


@dataclass(frozen=True)
class Worst:
    """The row that differs most, for debugging."""

    row: int
    expected: list[Any]
    got: list[Any]


@dataclass(frozen=True)
class Difference:
    """How one output of one run differs; errors are shares of the output's scale.

    Attributes:
        problem: why the values were not compared; None if they were.
        detail: the problem in words.
        maximum, mean, percentile: of the errors; percentile is the 99th.
        worst: the row with the greatest error.
    """

    output: str
    problem: Problem | None = None
    detail: str = ""
    maximum: float = 0.0
    mean: float = 0.0
    percentile: float = 0.0
    worst: Worst | None = None


def compare(
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
    scales: Mapping[str, float],
    *,
    finite: bool | None,
) -> list[Difference]:
    """Compare the outputs of one run.

    Args:
        expected: the reference, [B, ...] for each output.
        got: what the program under test gave.
        scales: for each output, the size against which errors are measured.
        finite: whether NaN and infinity are wrong in the reference too. False: they must be the same at the
            same places, and the other values are compared. None: where the reference has them, anything
            goes.

    Returns:
        One difference for each output, in the order of the reference.
    """
    return [
        _missing(name, got) if name not in got else _one(name, array, got[name], scales[name], finite=finite)
        for name, array in expected.items()
    ]


def _missing(name: str, got: Mapping[str, Array]) -> Difference:
    return Difference(name, "missing output", f"output {name!r} is missing; there are {sorted(got)}")


def _one(name: str, expected: Array, got: Array, scale: float, *, finite: bool | None) -> Difference:
    if got.dtype != expected.dtype:
        detail = f"output {name!r} has dtype {got.dtype}, expected {expected.dtype}"
        return Difference(name, "wrong dtype", detail)
    if got.shape != expected.shape:
        detail = f"output {name!r} has shape {list(got.shape)}, expected {list(expected.shape)}"
        return Difference(name, "wrong shape", detail)
    if not expected.size:
        return Difference(name)
    a, b = expected.astype(np.float64), got.astype(np.float64)
    usable = np.isfinite(a) & np.isfinite(b)
    strange = ~usable
    if finite is False:
        strange &= ~((a == b) | (np.isnan(a) & np.isnan(b)))
    elif finite is None:
        strange &= np.isfinite(a)
    if strange.any():
        row = int(np.argwhere(strange)[0][0])
        detail = f"output {name!r}: {int(strange.sum())} values are NaN or infinite, the first in row {row}"
        return Difference(name, "NaN", detail, worst=_worst(row, expected, got))
    errors = np.zeros(a.shape)
    np.subtract(a, b, out=errors, where=usable)
    errors = np.abs(errors) / (scale or 1.0)
    row = int(np.unravel_index(int(errors.argmax()), errors.shape)[0])
    return Difference(
        name,
        maximum=float(errors.max()),
        mean=float(errors.mean()),
        percentile=float(np.percentile(errors, 99)),
        worst=_worst(row, expected, got),
    )


def _worst(row: int, expected: Array, got: Array) -> Worst:
    most = 32  # enough to see the pattern
    return Worst(row, *(np.asarray(a[row]).reshape(-1)[:most].tolist() for a in (expected, got)))


@dataclass
class Tally:
    """The differences of many runs of one program.

    Attributes:
        tolerance: greatest error allowed, as a share of the output's scale.
        runs: how many runs were compared.
        problem: the first problem met; None so far.
    """

    tolerance: float
    runs: int = 0
    problem: Problem | None = None
    detail: str = ""
    maximum: float = 0.0
    percentile: float = 0.0
    _means: list[float] = field(default_factory=list[float])
    worst: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def mean(self) -> float:
        """Mean error over all runs and outputs."""
        return float(np.mean(self._means)) if self._means else 0.0

    def add(
        self,
        differences: list[Difference],
        where: Mapping[str, Any],
        slack: Mapping[str, float] | None = None,
    ) -> None:
        """Take in one run; ``where`` says which, ``slack`` what is allowed beyond the tolerance."""
        self.runs += 1
        for difference in differences:
            self._means.append(difference.mean)
            self.percentile = max(self.percentile, difference.percentile)
            problem, detail = difference.problem, difference.detail
            allowed = max(self.tolerance, (slack or {}).get(difference.output, 0.0))
            if problem is None and difference.maximum > allowed:
                problem = "difference"
                detail = f"output {difference.output!r} differs by {difference.maximum:.2g} of its scale"
            first = problem is not None and self.problem is None
            if first:
                self.problem, self.detail = problem, f"{detail} ({_words(where)})"
            if difference.worst and (first or (difference.maximum > self.maximum and not self.problem)):
                self.worst = {"output": difference.output, **where, **vars(difference.worst)}
            self.maximum = max(self.maximum, difference.maximum)

    def crashed(self, error: BaseException, where: Mapping[str, Any]) -> None:
        """Take in a run that raised."""
        self.runs += 1
        if self.problem is None:
            first = " ".join(str(error).split())[:300]
            self.problem, self.detail = "error", f"{type(error).__name__}: {first} ({_words(where)})"

    def figures(self) -> dict[str, Any]:
        """For ``export.json``."""
        return {
            "runs": self.runs,
            "problem": self.problem,
            "detail": self.detail,
            "max": self.maximum,
            "mean": self.mean,
            "p99": self.percentile,
            "worst": json_safe(self.worst),
        }


def json_safe(value: Any) -> Any:
    """The same with NaN and infinity as words: JSON has no numbers for them."""
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: json_safe(part) for key, part in value.items()}
    return [json_safe(part) for part in value] if isinstance(value, list | tuple) else value


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in where.items() if value not in ("", None, {}))
