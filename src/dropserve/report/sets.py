"""Prediction sets of a classifier: coverage and size, cross-validated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dropserve.uncertainty.checks import Bool, Float
from dropserve.uncertainty.conformal import ConformalClassifier, row_uniforms
from dropserve.uncertainty.folds import Rows, folds

from .answers import ClassAnswers
from .content import Plot, Section, Table
from .evidence import HeldOut
from .svg import Axis, Bars, Line, Points, draw
from .words import between, count, of_rows, percent

COVERAGES = (800, 900, 950, 990)


def conformal_section(a: ClassAnswers, held: HeldOut, sets: ConformalClassifier) -> Section:
    """Coverage and size of the prediction sets, cross-validated."""
    uniforms = None if sets.method == "lac" else row_uniforms(held.inputs, held.settings.seed)
    crossed = _CrossFitted.of(a, sets, uniforms)
    found = {c: crossed.sets(c) for c in COVERAGES if crossed.supports(c)}
    if 900 not in found:
        few = count(len(a.labels), "held-out row")
        why = f"{few} cannot support sets at 90% coverage: each fold needs {needed(900)}."
        return Section("conformal", "Sets that hold the truth as often as promised", absent=why)
    own = np.arange(len(a.labels))
    hits = {c: int(s[own, a.labels].sum()) for c, s in found.items()}
    hit = {c: hits[c] / len(own) for c in found}
    mean_size = {c: float(s.sum(axis=1).mean()) for c, s in found.items()}
    words = (
        (
            "Instead of one class, the model can answer with a set that holds the true class as often as is "
            "asked for. "
            f"Asked for 90%, its sets held the truth for {of_rows(hits[900], len(own))} held-out rows, and "
            f"had {mean_size[900]:.2f} of {a.mean.shape[1]} classes on average."
        ),
        "These figures are cross-validated.",
    )
    if found[900].all():
        words += ("Every set holds every class: these sets are always right and say nothing.",)
    right = a.mean.argmax(axis=1) == a.labels
    if right.mean() > 0.9:
        words += (
            (
                "A set always holds the most probable class. That class is right for "
                f"{percent(right.mean())} of these rows, so the sets hold the truth at least as often."
            ),
        )
    missing = [c for c in COVERAGES if c not in found]
    if missing:
        asked_for = " and ".join(percent(c / 1000, 0) for c in missing)
        words += (
            (
                f"{count(len(own), 'row')} cannot support {asked_for}: {percent(missing[0] / 1000, 0)} needs "
                f"at least {needed(missing[0])} calibration rows. No set is given for it."
            ),
        )
    rows: list[tuple[str, ...]] = []
    for c, s in found.items():
        sizes, ends = s.sum(axis=1), between(hits[c], len(own)).removeprefix("95% interval ")
        rows.append(
            (percent(c / 1000, 0), percent(hit[c]), ends, f"{mean_size[c]:.2f}",
             percent((sizes == 1).mean()))
        )  # fmt: skip
    head = ("asked", "held the truth", "95% interval", "mean size", "one class")
    table = Table(
        head, tuple(rows), 0,
        caption="The interval is that of a share of so many rows (Wilson). "
        f"The method is {sets.method.upper()}.",
    )  # fmt: skip
    sizes = found[900].sum(axis=1)
    most = int(sizes.max())
    shares = np.bincount(sizes, minlength=most + 1) / len(sizes)
    plot = Plot(
        "Size of the sets at 90%",
        draw(
            "Sizes of prediction sets at 90% coverage",
            Axis("classes in the set", -0.5, most + 0.5, whole=True),
            Axis("share of the rows", 0, float(shares.max()) * 1.05, percent=True),
            [Bars(np.arange(most + 2) - 0.5, shares)],
        ),
    )
    asked = np.array([c for c in range(20, 1000, 20) if crossed.supports(c)])
    reached = [float(crossed.sets(int(c))[own, a.labels].mean()) for c in asked]
    curve = Plot(
        "Coverage asked for and reached",
        draw(
            "Coverage of prediction sets against the coverage asked for",
            Axis("asked", 0, 1, percent=True),
            Axis("reached", 0, 1, percent=True),
            [
                Line([0, 1], [0, 1], "faint", dashed=True),
                Line(asked / 1000, reached),
                Points(np.array(list(found)) / 1000, list(hit.values()), "a", radius=3),
            ],
        ),
        (("a", "reached"), ("faint", "asked")),
    )
    return Section("conformal", "Sets that hold the truth as often as promised", words, (table, plot, curve))


def needed(coverage: int) -> int:
    """The fewest calibration rows whose quantile exists at a coverage in thousandths."""
    return -(-coverage // (1000 - coverage))


@dataclass(frozen=True)
class _CrossFitted:
    """Sets for all rows, each row's from a calibration on the other folds."""

    answers: ClassAnswers
    parts: tuple[tuple[Rows, ConformalClassifier], ...]
    uniforms: Float | None

    @classmethod
    def of(cls, a: ClassAnswers, sets: ConformalClassifier, uniforms: Float | None) -> _CrossFitted:
        parts = tuple(
            (
                judged,
                ConformalClassifier.fit(
                    a.mean[others],
                    a.labels[others],
                    method=sets.method,
                    uniforms=None if uniforms is None else uniforms[others],
                    penalty=sets.penalty,
                    free_ranks=sets.free_ranks,
                    class_conditional=bool(sets.classes),
                ),
            )
            for others, judged in folds(len(a.labels))
        )
        return cls(a, parts, uniforms)

    def supports(self, coverage: int) -> bool:
        """Whether the calibration rows of every part suffice for a coverage in thousandths."""
        rows = len(self.answers.labels)
        return all(
            rows - len(judged) >= needed(coverage) and fitted.supports(coverage)
            for judged, fitted in self.parts
        )

    def sets(self, coverage: int) -> Bool:
        """Which classes each set holds [B, C]."""
        found = np.empty(self.answers.mean.shape, bool)
        for judged, fitted in self.parts:
            own = None if self.uniforms is None else self.uniforms[judged]
            found[judged] = fitted.sets(self.answers.mean[judged], coverage, own)
        return found
