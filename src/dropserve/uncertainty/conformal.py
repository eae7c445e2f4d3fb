"""Prediction sets for classes by split conformal prediction: guaranteed coverage from any probabilities.

The guarantee: if calibration rows and the new row are exchangeable, and the model has not seen either, the
set holds the true class with at least the probability asked for, on average over calibration sets. It is
marginal: over all rows, not for each kind of row. Class-conditional sets (Vovk 2012, "Mondrian") have it for
the rows of each true class: each class has a threshold of its own. A class with too few calibration rows for
the coverage then stands in every set, as nothing else has the guarantee.

A coverage that the calibration rows cannot support is refused (``note`` says why): the set of all classes
would be right, and say nothing.

Three scores, of which a set takes all classes up to a threshold:

- ``lac``: 1 - probability (Sadinle, Lei and Wasserman, JASA 2019). The smallest sets on average.
- ``aps``: the probability of all classes at least as probable, less a random share of the class's own
  (Romano, Sesia and Candes, NeurIPS 2020). Sets adapt to the difficulty of the row.
- ``raps``: APS and a penalty for ranks beyond the first few (Angelopoulos et al., ICLR 2021).

A set always holds the most probable class. By the threshold alone, a model that is right more often than the
coverage asked for gives empty sets, even for rows that it is sure of: that makes the coverage exact and helps
nobody. A class-conditional threshold may also leave out the most probable class alone. With that class, the
sets hold the truth at least as often as asked for, and at least as often as the model is right (the RAPS
paper's code offers the same for empty sets, by ``allow_zero_sets``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dropserve.errors import UsageError
from dropserve.uncertainty.checks import Bool, Float, as_float, as_probabilities
from dropserve.uncertainty.quantiles import WHOLE, Quantiles, check_coverage, few_rows_note, least_rows

Method = Literal["lac", "aps", "raps"]
METHODS: tuple[Method, ...] = ("lac", "aps", "raps")
PENALTIES = (0.001, 0.01, 0.1, 0.2, 0.5)  # those that the RAPS paper tries


def row_uniforms(inputs: Mapping[str, NDArray[Any]], seed: int) -> Float:
    """A uniform number in [0, 1) for each row, from the seed and the content of the row: answers repeat.

    To who does not know the hash the numbers are independent of the labels, which is all that APS needs.

    Args:
        inputs: for the name of each input [B, ...]; -0.0 counts as 0.0, and a dtype counts.
        seed: 0 <= seed < 2**53.

    Returns:
        [B]; a row's number does not depend on the other rows.
    """
    names = sorted(inputs)
    rows = [np.ascontiguousarray(inputs[name] + np.zeros((), inputs[name].dtype)) for name in names]
    head = "".join(
        f"{name}:{a.dtype.str.lstrip('<>=|')}{list(a.shape[1:])};"
        for name, a in zip(names, rows, strict=True)
    )
    start = hashlib.blake2b(head.encode(), digest_size=8, key=seed.to_bytes(8, "little"))
    little = [a.astype(a.dtype.newbyteorder("<"), copy=False) for a in rows]
    numbers = np.empty(len(rows[0]))
    for row in range(len(numbers)):
        digest = start.copy()
        for array in little:
            digest.update(array[row].tobytes())
        numbers[row] = (int.from_bytes(digest.digest(), "little") >> 11) / 2**53
    return numbers


@dataclass(frozen=True)
class ConformalClassifier:
    """Calibrated prediction sets at any coverage.

    Attributes:
        method: ``lac``, ``aps`` or ``raps``.
        quantiles: of the calibration scores of all rows.
        penalty: RAPS: added for each rank beyond ``free_ranks``.
        free_ranks: RAPS: ranks without penalty.
        classes: class-conditional sets: quantiles of the rows of each class, None where it had none; else
            empty.
    """

    method: Method
    quantiles: Quantiles
    penalty: float = 0.0
    free_ranks: int = 0
    classes: tuple[Quantiles | None, ...] = ()

    @classmethod
    def fit(
        cls,
        probabilities: ArrayLike,
        labels: ArrayLike,
        *,
        method: Method = "lac",
        uniforms: ArrayLike | None = None,
        penalty: float = 0.01,
        free_ranks: int = 1,
        class_conditional: bool = False,
    ) -> ConformalClassifier:
        """Calibrate on rows that neither training nor model selection has seen.

        Args:
            probabilities: [n, C].
            labels: [n].
            method: which score.
            uniforms: [n] in [0, 1], for APS and RAPS (see :func:`row_uniforms`).
            penalty: RAPS; choose it on other rows (:func:`choose_penalty`), or the guarantee is lost.
            free_ranks: RAPS; likewise.
            class_conditional: whether each class has a threshold of its own.

        Raises:
            UsageError: for an unknown method, missing uniforms or arrays that do not fit.
        """
        values, truth = as_probabilities(probabilities, labels)
        if method != "raps":
            penalty, free_ranks = 0.0, 0
        scores = class_scores(values, method, uniforms, penalty=penalty, free_ranks=free_ranks)
        own = scores[np.arange(len(truth)), truth]
        classes: tuple[Quantiles | None, ...] = ()
        if class_conditional:
            parts = [own[truth == k] for k in range(values.shape[1])]
            classes = tuple(Quantiles.of(part) if len(part) else None for part in parts)
        return cls(method, Quantiles.of(own), penalty, free_ranks, classes)

    def thresholds(self, coverage: int) -> Float:
        """Up to which score a class belongs to a set: [C], or [1] for all classes; infinite where always.

        Raises:
            UsageError: for a coverage out of range.
        """
        found = self._known.get(check_coverage(coverage))
        if found is None:
            of = self.classes or (self.quantiles,)
            found = np.array([np.inf if q is None else q.at(coverage) for q in of])
            found.flags.writeable = False
            self._known[coverage] = found
        return found

    @cached_property
    def _known(self) -> dict[int, Float]:
        """Thresholds by coverage: every answer asks for them, mostly at the same one."""
        return {}

    def supports(self, coverage: int) -> bool:
        """Whether sets at this coverage say anything: some class may be left out."""
        return bool(np.isfinite(self.thresholds(coverage)).any())

    def sets(
        self,
        probabilities: ArrayLike,
        coverage: int,
        uniforms: ArrayLike | None = None,
        *,
        allow_empty: bool = False,
    ) -> Bool:
        """Which classes each row's set holds.

        Args:
            probabilities: [B, C].
            coverage: parts per thousand, 1 to 999.
            uniforms: [B], for APS and RAPS.
            allow_empty: whether thresholds alone decide, which makes the coverage exact (see the module's
                text) and may leave a row all False; else the most probable class is in every set.

        Returns:
            [B, C]; all True where :meth:`supports` is False.

        Raises:
            UsageError: for a coverage out of range, missing uniforms or arrays that do not fit.
        """
        values = as_float(probabilities, "[B, C]")
        scores = class_scores(values, self.method, uniforms, penalty=self.penalty, free_ranks=self.free_ranks)
        found = scores <= self.thresholds(coverage)
        return found if allow_empty else with_label(found, values.argmax(axis=1))

    def few(self, coverage: int) -> str | None:
        """What the number of calibration rows means for this coverage; None if they were many."""
        return few_rows_note(self.quantiles.count, coverage)

    def note(self, coverage: int, labels: Sequence[str] = ()) -> str | None:
        """Why there are no sets at this coverage, or which classes stand in all; None if neither is so.

        Args:
            coverage: parts per thousand.
            labels: of the classes; without any they are named by number.
        """
        few = np.flatnonzero(np.isinf(self.thresholds(coverage))).tolist() if self.classes else []
        if not few:
            return self.quantiles.note(coverage)
        rows = [0 if q is None else q.count for q in self.classes]
        told = ", ".join(f"{labels[k] if labels else k} ({rows[k]})" for k in few[:5])
        told += ", ..." if len(few) > 5 else ""
        verdict = "so there are no sets" if len(few) == len(rows) else "so they stand in every set"
        return (
            f"{len(few)} of {len(rows)} classes have too few calibration rows for a coverage of "
            f"{coverage / WHOLE:g}, {verdict}: {told}, where it takes {least_rows(coverage)} of each class"
        )


def with_label(sets: Bool, label: NDArray[np.intp]) -> Bool:
    """Sets [B, C] with the most probable class, ``label`` [B], in each."""
    found = sets.copy()
    found[np.arange(len(found)), label] = True
    return found


def class_scores(
    probabilities: ArrayLike,
    method: Method,
    uniforms: ArrayLike | None = None,
    *,
    penalty: float = 0,
    free_ranks: int = 0,
) -> Float:
    """The nonconformity score of every class [B, C]; the larger, the less plausible."""
    values = as_float(probabilities, "[B, C]")
    if method == "lac":
        return 1 - values
    if method not in METHODS:
        raise UsageError(f"conformal method {method!r}: expected one of {', '.join(METHODS)}")
    if uniforms is None:
        raise UsageError(
            f"{method} needs a uniform number for each row: pass uniforms=row_uniforms(inputs, seed)"
        )
    share = as_float(uniforms, "[B]")
    if share.shape != (len(values),) or share.min() < 0 or share.max() > 1:
        raise UsageError(f"uniforms {list(share.shape)}: expected [{len(values)}] numbers from 0 to 1")
    order = np.argsort(-values, axis=1, kind="stable")
    falling = np.take_along_axis(values, order, axis=1)
    ranked = np.cumsum(falling, axis=1) - share[:, None] * falling
    ranked += penalty * np.maximum(np.arange(1, values.shape[1] + 1) - free_ranks, 0)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def choose_penalty(
    probabilities: ArrayLike, labels: ArrayLike, uniforms: ArrayLike, *, coverage: int = 900
) -> tuple[float, int]:
    """The RAPS penalty and free ranks that give the smallest sets (the paper's algorithm 4).

    Args:
        probabilities: [m, C], of rows kept apart from those of :meth:`ConformalClassifier.fit`.
        labels: [m].
        uniforms: [m].
        coverage: parts per thousand at which sets shall be small.
    """
    values, truth = as_probabilities(probabilities, labels)
    own = values[np.arange(len(truth)), truth][:, None]
    ranks = 1.0 + (values > own).sum(axis=1)
    free = int(min(Quantiles.of(ranks).at(coverage), values.shape[1]))
    sizes: dict[float, float] = {}
    for penalty in PENALTIES:
        fitted = ConformalClassifier.fit(
            values, truth, method="raps", uniforms=uniforms, penalty=penalty, free_ranks=free
        )
        sizes[penalty] = float(fitted.sets(values, coverage, uniforms).sum(axis=1).mean())
    return min(sizes, key=lambda penalty: sizes[penalty]), free
