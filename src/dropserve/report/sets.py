"""Prediction sets of a classifier: coverage and size, cross-validated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dropserve.uncertainty.checks import Bool, Float
from dropserve.uncertainty.conformal import ConformalClassifier, row_uniforms
from dropserve.uncertainty.folds import Rows, folds
from dropserve.uncertainty.quantiles import coverage_theory

from .answers import ClassAnswers
from .content import Plot, Section, Table
from .evidence import HeldOut
from .svg import Axis, Bars, Line, Points, draw
from .words import percent

COVERAGES = (800, 900, 950, 990)


def conformal_section(a: ClassAnswers, held: HeldOut, sets: ConformalClassifier) -> Section:
    """Coverage and size of the prediction sets, cross-validated."""
    uniforms = None if sets.method == "lac" else row_uniforms(held.inputs, held.settings.seed)
    crossed = _CrossFitted.of(a, sets, uniforms)
    found = {c: crossed.sets(c) for c in COVERAGES}
    own = np.arange(len(a.labels))
    hit = {c: float(s[own, a.labels].mean()) for c, s in found.items()}
    mean_size = {c: float(s.sum(axis=1).mean()) for c, s in found.items()}
    words = (
        (
            "Instead of one class, the model can answer with a set that holds the true class as often as is "
            "asked for. "
            f"Asked for 90%, its sets held the truth for {percent(hit[900])} of the held-out rows, and had "
            f"{mean_size[900]:.2f} classes on average."
        ),
        (
            "These figures are cross-validated. A set may be empty: then no class is as probable as the true "
            "ones "
            "usually are, and the input deserves a look."
        ),
    )
    rows: list[tuple[str, ...]] = []
    for c, s in found.items():
        sizes, (_, deviation) = s.sum(axis=1), coverage_theory(len(own), c)
        rows.append(
            (percent(c / 1000, 0), percent(hit[c]), f"± {percent(2 * deviation)}", f"{mean_size[c]:.2f}",
             percent((sizes == 1).mean()), percent((sizes == 0).mean()))
        )  # fmt: skip
    head = ("asked", "held the truth", "by chance", "mean size", "one class", "empty")
    table = Table(
        head, tuple(rows), 0,
        caption="“By chance”: two standard deviations of the coverage that so many calibration rows give. "
        "The "
        f"method is {sets.method.upper()}.",
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
    asked = np.arange(20, 1000, 20)
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
                Points(np.array(COVERAGES) / 1000, list(hit.values()), "a", radius=3),
            ],
        ),
        (("a", "reached"), ("faint", "asked")),
    )
    return Section("conformal", "Sets that hold the truth as often as promised", words, (table, plot, curve))


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
                ),
            )
            for others, judged in folds(len(a.labels))
        )
        return cls(a, parts, uniforms)

    def sets(self, coverage: int) -> Bool:
        """Which classes each set holds [B, C]."""
        found = np.empty(self.answers.mean.shape, bool)
        for judged, fitted in self.parts:
            own = None if self.uniforms is None else self.uniforms[judged]
            found[judged] = fitted.sets(self.answers.mean[judged], coverage, own)
        return found
