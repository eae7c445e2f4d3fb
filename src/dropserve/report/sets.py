"""Prediction sets of a classifier: coverage and size, cross-validated and on test rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dropserve.uncertainty.checks import Bool, Float, Whole
from dropserve.uncertainty.conformal import ConformalClassifier, row_uniforms
from dropserve.uncertainty.folds import Rows, folds

from .answers import ClassAnswers
from .content import Plot, Section, Table
from .evidence import HeldOut
from .svg import Axis, Bars, Line, Points, draw
from .words import between, count, interval, of_rows, percent

COVERAGES = (800, 900, 950, 990)
TITLE = "Sets that hold the truth as often as promised"
_WHAT = "Instead of one class, the model can answer with a set that holds the true class as often as asked."
Judged = tuple[ClassAnswers, HeldOut]


def conformal_section(
    a: ClassAnswers,
    held: HeldOut,
    sets: ConformalClassifier,
    tested: Judged | None = None,
    labels: tuple[str, ...] = (),
) -> Section:
    """Coverage and size of the prediction sets: cross-validated, and on test rows where there are answers."""
    crossed = _CrossFitted.of(a, sets, _uniforms(held, sets))
    found = {c: crossed.sets(c) for c in COVERAGES if crossed.supports(c)}
    fresh = {} if tested is None else _served(*tested, sets)
    words = [_WHAT, *_told(a, found, tested, fresh), *refusals(sets, labels)]
    blind = [c for c in COVERAGES if sets.supports(c) and c not in found and c not in fresh]
    if blind:
        words.append(
            f"{_shares(blind)} could not be judged: {count(len(a.labels), 'row')} are too few to part."
        )
    if not found and not fresh:
        return Section("conformal", TITLE, absent=" ".join(words[1:]))
    blocks: list[Table | Plot] = []
    note = f"Intervals are those of a share of so many rows (Wilson). The method is {sets.method.upper()}."
    if sets.classes:
        note += " Each class has a threshold of its own."
    if found:
        blocks.append(_table("held-out rows, cross-validated", found, a.labels, note))
    if tested is not None and fresh:
        blocks.append(_table("test rows, as served", fresh, tested[0].labels, note))
    sizes = found.get(900, fresh.get(900))
    if sizes is not None:
        blocks.append(_sizes(sizes.sum(axis=1)))
    if found:
        blocks.append(_curve(crossed, a, found))
    return Section("conformal", TITLE, tuple(words), tuple(blocks))


def _told(
    a: ClassAnswers, found: Mapping[int, Bool], tested: Judged | None, fresh: Mapping[int, Bool]
) -> list[str]:
    """Of sets at 90%."""
    words: list[str] = []
    if 900 in found:
        words.append(f"{said(found[900], a.labels, 'held-out')} These figures are cross-validated.")
        words += at_least_the_label(found[900], a)
    if tested is not None and 900 in fresh:
        words.append(f"{said(fresh[900], tested[0].labels, 'test')} Test rows calibrated nothing.")
        words += at_least_the_label(fresh[900], tested[0])
    return words


def said(sets: Bool, labels: Whole, kind: str) -> str:
    """What sets [B, C] that were asked for at 90% turned out to be, in words."""
    rows, classes = sets.shape
    hits = int(sets[np.arange(rows), labels].sum())
    low, high = interval(hits, rows)
    words = (
        f"Asked for 90%, its sets held the truth for {of_rows(hits, rows)} {kind} rows, and had "
        f"{float(sets.sum(axis=1).mean()):.2f} of {classes} classes on average."
    )
    if high < 0.9:
        words += " That is clearly less often than was asked for."
    elif low > 0.9:
        words += " That is clearly more often than was asked for."
    if sets.all():
        words += " Every set holds every class: these sets are always right and say nothing."
    if empty := int((~sets.any(axis=1)).sum()):
        words += (
            f" {count(empty, 'set is', 'sets are')} empty: no class is as probable as true ones usually are, "
            "and the input deserves a look."
        )
    return words


def at_least_the_label(sets: Bool, a: ClassAnswers) -> list[str]:
    """Why sets [B, C] at 90% may hold the truth more often; nothing if that is not why."""
    right = a.mean.argmax(axis=1) == a.labels
    if right.mean() <= 0.9 or not sets[np.arange(len(sets)), a.mean.argmax(axis=1)].all():
        return []
    return [
        (
            "Each of these sets holds the most probable class. That class is right for "
            f"{percent(float(right.mean()))} of these rows, so the sets hold the truth at least as often."
        )
    ]


def refusals(sets: ConformalClassifier, labels: tuple[str, ...] = ()) -> list[str]:
    """The coverages at which the model gives no set, or at which some classes stand in all, and why."""
    refused = [c for c in COVERAGES if not sets.supports(c)]
    words: list[str] = []
    if refused:
        words.append(f"Asked for {_shares(refused)}, it gives no set: {sets.note(refused[0], labels)}.")
    partly = [c for c in COVERAGES if c not in refused and sets.note(c) is not None]
    if partly:
        words.append(f"Asked for {_shares(partly)}: {sets.note(partly[0], labels)}.")
    return words


def _shares(coverages: list[int]) -> str:
    return " or ".join(percent(c / 1000, 0) for c in coverages)


def _uniforms(held: HeldOut, sets: ConformalClassifier) -> Float | None:
    return None if sets.method == "lac" else row_uniforms(held.inputs, held.settings.seed)


def _served(a: ClassAnswers, held: HeldOut, sets: ConformalClassifier) -> dict[int, Bool]:
    """Sets [B, C] at each coverage by the version's own calibration."""
    uniforms = _uniforms(held, sets)
    return {c: sets.sets(a.mean, c, uniforms) for c in COVERAGES if sets.supports(c)}


def _table(kind: str, found: Mapping[int, Bool], labels: Whole, note: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for c, s in found.items():
        sizes, hits = s.sum(axis=1), int(s[np.arange(len(s)), labels].sum())
        ends = between(hits, len(s)).removeprefix("95% interval ")
        one = percent(float((sizes == 1).mean()))
        rows.append((percent(c / 1000, 0), percent(hits / len(s)), ends, f"{float(sizes.mean()):.2f}", one))
    head = ("asked", "held the truth", "95% interval", "mean size", "one class")
    return Table(head, tuple(rows), 0, caption=f"{count(len(labels), 'row')}: {kind}. {note}")


def _sizes(sizes: Whole) -> Plot:
    most = int(sizes.max())
    shares = np.bincount(sizes, minlength=most + 1) / len(sizes)
    return Plot(
        "Size of the sets at 90%",
        draw(
            "Sizes of prediction sets at 90% coverage",
            Axis("classes in the set", -0.5, most + 0.5, whole=True),
            Axis("share of the rows", 0, float(shares.max()) * 1.05, percent=True),
            [Bars(np.arange(most + 2) - 0.5, shares)],
        ),
    )


def _curve(crossed: _CrossFitted, a: ClassAnswers, found: Mapping[int, Bool]) -> Plot:
    own = np.arange(len(a.labels))
    asked = np.array([c for c in range(20, 1000, 20) if crossed.supports(c)])
    reached = [float(crossed.sets(int(c))[own, a.labels].mean()) for c in asked]
    hit = [float(s[own, a.labels].mean()) for s in found.values()]
    return Plot(
        "Coverage asked for and reached",
        draw(
            "Coverage of prediction sets against the coverage asked for",
            Axis("asked", 0, 1, percent=True),
            Axis("reached", 0, 1, percent=True),
            [
                Line([0, 1], [0, 1], "faint", dashed=True),
                Line(asked / 1000, reached),
                Points(np.array(list(found)) / 1000, hit, "a", radius=3),
            ],
        ),
        (("a", "reached"), ("faint", "asked")),
    )


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
        return all(fitted.supports(coverage) for _, fitted in self.parts)

    def sets(self, coverage: int) -> Bool:
        """Which classes each set holds [B, C]."""
        found = np.empty(self.answers.mean.shape, bool)
        for judged, fitted in self.parts:
            own = None if self.uniforms is None else self.uniforms[judged]
            found[judged] = fitted.sets(self.answers.mean[judged], coverage, own)
        return found
