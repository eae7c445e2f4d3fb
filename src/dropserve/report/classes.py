"""How far a classifier's probabilities and doubts can be trusted, on held-out rows."""

from __future__ import annotations

import math

import numpy as np

from dropserve.uncertainty.checks import Bool, Float, Whole
from dropserve.uncertainty.metrics import reliability
from dropserve.uncertainty.ranking import auroc, risk_coverage
from dropserve.uncertainty.scores import BINS, Scores

from .answers import ClassAnswers
from .content import Plot, Section, Table
from .svg import Axis, Bars, Line, Points, draw
from .words import between, count, interval, of_rows, percent


def reliability_section(a: ClassAnswers, why_not: str) -> Section:
    """Reliability before and after calibration, with ECE, NLL and Brier score."""
    rows = [("plain (dropout off)", a.plain)]
    if a.samples:
        rows.append((f"{a.name}, before calibration", a.mean))
    if a.calibrated is not None:
        rows.append((f"{a.name}, after calibration", a.calibrated))
    scores = [(name, Scores.of(probabilities, a.labels)) for name, probabilities in rows]
    table = Table(
        ("answers", "accuracy", "ECE", "ECE, equal mass", "NLL", "Brier"),
        tuple(
            (name, percent(s.accuracy), *(f"{v:.4f}" for v in (s.ece, s.ece_mass, s.nll, s.brier)))
            for name, s in scores
        ),
        caption=f"ECE: expected calibration error, the mean gap between stated confidence and accuracy, over "
        f"{BINS} bins of equal width, and over {BINS} bins of about as many rows each. NLL: negative "
        "log-likelihood in nats. Brier: squared error of the probabilities, 0 to 2. Lower is better for all "
        "four.",
    )
    judged, found = (a.mean if a.calibrated is None else a.calibrated), scores[-1][1]
    hits = int((judged.argmax(axis=1) == a.labels).sum())
    words = [confidence(float(judged.max(axis=1).mean()), hits, len(a.labels), found.ece)]
    if a.calibrated is not None:
        words.append(
            f"Before calibration they differed by {percent(scores[-2][1].ece)}. The figures after "
            "calibration are cross-validated: each row is judged by a calibration that did not see it."
        )
    else:
        words.append(f"The answers are {why_not}.")
    name = "Before calibration" if a.samples else "Plain answers"
    blocks: list[Plot | Table] = [table, diagram(name, a.mean, a.labels)]
    if a.calibrated is not None:
        blocks.append(diagram("After calibration", a.calibrated, a.labels))
    return Section("reliability", "Can its probabilities be believed?", tuple(words), tuple(blocks))


def confidence(sure: float, hits: int, rows: int, error: float) -> str:
    """How mean confidence and accuracy compare, in words.

    Args:
        sure: mean confidence.
        hits: right answers.
        rows: of which there were so many.
        error: expected calibration error.
    """
    low, high = interval(hits, rows)
    if sure < low:
        lean = "on average it is less sure than it may be"
    elif sure > high:
        lean = "on average it is more sure than it should be"
    else:
        lean = "that difference lies within chance"
    return (
        f"When the model says “{percent(sure, 0)} sure”, is it right {percent(sure, 0)} of the time? Its "
        f"mean confidence on held-out rows is {percent(sure)}, and it is right on {of_rows(hits, rows)}: "
        f"{lean}. Confidence and accuracy differ by {percent(error)} on average over levels of confidence."
    )


def diagram(name: str, probabilities: Float, labels: Whole) -> Plot:
    """A reliability diagram with its intervals."""
    confidence = np.minimum(probabilities.max(axis=1), 1.0)
    found = reliability(confidence, probabilities.argmax(axis=1) == labels, bins=BINS)
    low, high = interval(found.accuracy * found.count, found.count)
    drawn = draw(
        f"Reliability diagram, {name.lower()}",
        Axis("stated confidence", 0, 1, percent=True),
        Axis("how often right", 0, 1, percent=True),
        [
            Line([0, 1], [0, 1], "faint", dashed=True),
            Points(
                found.confidence,
                found.accuracy,
                "a",
                low,
                high,
                radius=(2.5 + 6 * np.sqrt(found.count / found.count.sum())).tolist(),
            ),
        ],
    )
    legend = (("a", "rows of that confidence"), ("faint", "perfect"))
    return Plot(
        name,
        drawn,
        legend,
        f"ECE {found.ece:.4f}. Below the line: too sure. A larger dot stands for more rows; whiskers say "
        f"how far "
        "chance alone may move it (95%).",
    )


def selective_section(a: ClassAnswers) -> Section:
    """Risk-coverage: what leaving the doubtful rows to people buys."""
    wrong = (~a.correct).astype(float)
    curve = risk_coverage(-a.total, wrong)
    best = risk_coverage(-wrong, wrong)
    words = (declined(int(wrong.sum()), len(wrong), curve.risk_at(0.9), curve.risk_at(0.5)),)
    table = Table(
        ("answered by the model", "wrong among these"),
        tuple(
            (percent(c, 0), _among(curve.risk_at(c), c, len(wrong))) for c in (1, 0.95, 0.9, 0.8, 0.7, 0.5)
        ),
        caption=f"Area under the curve (AURC): {curve.aurc:.5f}; the best possible order gives "
        f"{best.aurc:.5f}.",
    )
    top = max(float(curve.risk.max()), 0.01)
    plot = Plot(
        "Errors left, by share answered",
        draw(
            "Risk against coverage",
            Axis("share answered, most certain first", 0, 1, percent=True),
            Axis("share wrong", 0, top * 1.05, percent=True),
            [Line(best.coverage, best.risk, "faint", dashed=True), Line(curve.coverage, curve.risk)],
        ),
        (("a", "by predictive entropy"), ("faint", "best possible order")),
    )
    return Section("selective", "What if it declines when in doubt?", words, (plot, table))


def declined(wrong: int, rows: int, most: float, half: float) -> str:
    """What declining buys, in words.

    Args:
        wrong: answers of all rows.
        rows: how many there are.
        most: share wrong among the 90% that the model is surest of.
        half: the same among the surest half.
    """
    if not wrong:
        return (
            f"None of the {count(rows, 'held-out answer')} is wrong ({between(0, rows)} of answers): what "
            "declining buys cannot be seen on these rows."
        )
    words = (
        f"If the model answers everything, {of_rows(wrong, rows)} of its answers to held-out rows are wrong. "
        f"If it passes the 10% that it is least sure of to a person, {_among(most, 0.9, rows)} of the rest "
        f"are wrong; if half, {_among(half, 0.5, rows)}."
    )
    if half >= wrong / rows:
        words += " On these rows, declining the doubtful half leaves no smaller share of wrong answers."
    return words


def _among(risk: float, share: float, rows: int) -> str:
    """Wrong answers among the surest share of the rows, with their interval."""
    answered = math.ceil(share * rows - 1e-9)
    return of_rows(round(risk * answered), answered)


def histogram_section(a: ClassAnswers) -> Section:
    """Uncertainty of right and of wrong answers."""
    title, right = "Is it less sure where it is wrong?", a.correct
    if right.all():
        words = f"All {len(right):,} held-out answers are right: there is no wrong answer to compare with."
    elif not right.any():
        words = f"All {len(right):,} held-out answers are wrong: there is no right answer to compare with."
    else:
        score = auroc(a.total[~right], a.total[right])
        words = (
            f"{count(int(right.sum()), 'answer')} right, {(~right).sum():,} wrong. Take one of each at "
            f"random: in "
            f"{percent(score)} of such pairs the wrong answer is the less certain one (ties count half; 50% "
            "would be chance, 100% perfect)."
        )
    measures = [("Predictive entropy: all doubt", a.total)]
    if a.epistemic is not None:
        measures.append(("Mutual information: doubt of the model itself", a.epistemic))
    blocks = tuple(_histogram(name, values, right) for name, values in measures)
    return Section("uncertainty", title, (words,), blocks)


def _histogram(name: str, values: Float, right: Bool) -> Plot:
    high = float(values.max()) or 1.0
    edges = np.linspace(0, high, 21)
    parts = [np.histogram(values[who], edges)[0] / max(int(who.sum()), 1) for who in (right, ~right)]
    top = max(float(part.max()) for part in parts)
    bars = [Bars(edges, part, style) for part, style in zip(parts, ("good", "bad"), strict=True)]
    return Plot(
        name,
        draw(
            f"Histogram of {name.lower()}, right and wrong answers",
            Axis("nats", 0, high),
            Axis("share of the rows", 0, top * 1.05, percent=True),
            [bar for bar, some in zip(bars, (right.any(), not right.all()), strict=True) if some],
        ),
        (("good", "right answers"), ("bad", "wrong answers")),
        "Each colour adds up to 100% by itself.",
    )
