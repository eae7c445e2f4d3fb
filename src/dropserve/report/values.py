"""How far a regressor's numbers and deviations can be trusted, on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dropserve.uncertainty.checks import Bool, Float
from dropserve.uncertainty.folds import folds
from dropserve.uncertainty.intervals import ConformalRegressor
from dropserve.uncertainty.metrics import rmse
from dropserve.uncertainty.ranking import risk_coverage

from .answers import ValueAnswers
from .content import Plot, Section, Table
from .svg import Axis, Bars, Line, Points, draw
from .words import between, count, interval, number, of_rows, percent

COVERAGES = (500, 800, 900, 950)
MOST_POINTS = 300
Ends = tuple[Float, Float]


def intervals(a: ValueAnswers, method: ConformalRegressor, coverage: int) -> Ends | None:
    """Lower and upper ends [B, D], each row's from a calibration on the other folds."""
    if a.total is None:
        return None
    first, second = (a.mean, a.total) if a.band is None else a.band
    low, high = np.empty_like(a.mean), np.empty_like(a.mean)
    for others, judged in folds(len(a.target)):
        fitted = ConformalRegressor.fit(first[others], second[others], a.target[others], method=method.method)
        low[judged], high[judged] = fitted.intervals(first[judged], second[judged], coverage)
    return low, high


def prediction_section(a: ValueAnswers, names: tuple[str, ...], ends: Ends | None) -> Section:
    """Predicted against true, with intervals."""
    error = np.abs(a.mean - a.target)
    rows = [("plain (dropout off)", a.plain)]
    if a.samples:
        rows.append((f"Monte Carlo mean, {a.samples} samples", a.mean))
    table_rows = [
        (f"{name}: {what}" if len(names) > 1 else what, number(rmse(made[:, d], a.target[:, d])),
         number(float(np.abs(made[:, d] - a.target[:, d]).mean())))
        for d, name in enumerate(names) for what, made in rows
    ]  # fmt: skip
    words = [
        (
            f"On {count(len(error), 'held-out row')} at least half of the predictions are within "
            f"{number(within(error[:, 0], 0.5))} of the truth, and at least nine of ten within "
            f"{number(within(error[:, 0], 0.9))}."
        ),
    ]
    if len(names) > 1:
        words.append(f"The model has {len(names)} targets; plots show the first, {names[0]}.")
    chosen = np.sort(np.random.default_rng(0).permutation(len(error))[:MOST_POINTS])
    true, made = a.target[chosen, 0], a.mean[chosen, 0]
    low, high = (None, None) if ends is None else (ends[0][chosen, 0], ends[1][chosen, 0])
    finite = low is not None and high is not None and np.isfinite(low).all() and np.isfinite(high).all()
    if not finite:
        low = high = None
    across = Axis.around("true value", true)
    upward = Axis.around("predicted value", made, true, *(() if low is None or high is None else (low, high)))
    both = [max(across.low, upward.low), min(across.high, upward.high)]
    plot = Plot(
        "Predicted against true",
        draw(
            "Predicted values against true values",
            across,
            upward,
            [Points(true, made, "a", low, high), Line(both, both, "faint", dashed=True)],
        ),
        (("a", "prediction" + ("" if low is None else ", whisker: 90% interval")), ("faint", "perfect")),
        f"{count(len(chosen), 'row')} of {len(error):,}.",
    )
    table = Table(("answers", "root mean square error", "mean absolute error"), tuple(table_rows))
    return Section("predictions", "How close are its predictions?", tuple(words), (plot, table))


def within(errors: Float, share: float) -> float:
    """The least error that at least such a share of errors [n] does not exceed."""
    return float(np.quantile(errors, share, method="inverted_cdf"))


def coverage_section(
    a: ValueAnswers, names: tuple[str, ...], method: ConformalRegressor, tested: ValueAnswers | None = None
) -> Section:
    """Coverage and width of the intervals: cross-validated, and on test rows where there are answers."""
    title = "Intervals that hold the truth as often as promised"
    if a.total is None:
        return Section("conformal", title, absent="Without dropout there are no deviations to calibrate.")
    crossed = {c: ends for c in COVERAGES if (ends := finite(intervals(a, method, c))) is not None}
    fresh = {} if tested is None else _served(tested, method)
    words: list[str] = []
    if 900 in crossed:
        words.append(f"{_held(crossed[900], a.target, 'held-out')} These figures are cross-validated.")
    if tested is not None and 900 in fresh:
        words.append(f"{_held(fresh[900], tested.target, 'test')} Test rows calibrated nothing.")
    if refused := [c for c in COVERAGES if not method.supports(c)]:
        shares = " or ".join(percent(c / 1000, 0) for c in refused)
        words.append(f"Asked for {shares}, it gives no interval: {method.note(refused[0])}.")
    if not crossed and not fresh:
        why = " ".join(words) or f"{count(len(a.target), 'row')} are too few to part and judge."
        return Section("conformal", title, absent=why)
    blocks: list[Table | Plot] = []
    if crossed:
        blocks.append(_coverages("held-out rows, cross-validated", crossed, a.target, names, method))
    if tested is not None and fresh:
        blocks.append(_coverages("test rows, as served", fresh, tested.target, names, method))
    asked = [(c, ends) for c in range(20, 1000, 20) if (ends := finite(intervals(a, method, c))) is not None]
    reached = [float(_inside(ends, a.target)[:, 0].mean()) for _, ends in asked]
    if asked:
        plot = Plot(
            "Coverage asked for and reached",
            draw(
                "Coverage of intervals against the coverage asked for",
                Axis("asked", 0, 1, percent=True),
                Axis("reached", 0, 1, percent=True),
                [
                    Line([0, 1], [0, 1], "faint", dashed=True),
                    Line(np.array([c for c, _ in asked]) / 1000, reached),
                ],
            ),
            (("a", "reached"), ("faint", "asked")),
        )
        blocks.append(plot)
    return Section("conformal", title, tuple(words), tuple(blocks))


def finite(ends: Ends | None) -> Ends | None:
    """Intervals, unless some are infinite: then there were too few rows for their coverage."""
    return ends if ends is not None and all(np.isfinite(side).all() for side in ends) else None


def _served(a: ValueAnswers, method: ConformalRegressor) -> dict[int, Ends]:
    """Intervals at each coverage by the version's own calibration."""
    if a.total is None:
        return {}
    first, second = (a.mean, a.total) if a.band is None else a.band
    return {c: method.intervals(first, second, c) for c in COVERAGES if method.supports(c)}


def _inside(ends: Ends, target: Float) -> Bool:
    return (ends[0] <= target) & (target <= ends[1])


def _held(ends: Ends, target: Float, kind: str) -> str:
    """How often intervals that were asked for at 90% held the first target, in words."""
    hits, rows = int(_inside(ends, target)[:, 0].sum()), len(target)
    low, high = interval(hits, rows)
    words = (
        f"Asked for 90%, its intervals held the truth for {of_rows(hits, rows)} {kind} rows, and were "
        f"{number(float((ends[1] - ends[0])[:, 0].mean()))} wide on average."
    )
    if high < 0.9:
        words += " That is clearly less often than was asked for."
    elif low > 0.9:
        words += " That is clearly more often than was asked for."
    return words


def _coverages(
    kind: str, found: Mapping[int, Ends], target: Float, names: tuple[str, ...], method: ConformalRegressor
) -> Table:
    many, rows = len(target), list[tuple[str, ...]]()
    for d, name in enumerate(names):
        for c, ends in found.items():
            hits = int(_inside(ends, target)[:, d].sum())
            told = between(hits, many).removeprefix("95% interval ")
            width = number(float((ends[1] - ends[0])[:, d].mean()))
            own = (name,) if len(names) > 1 else ()
            rows.append((*own, percent(c / 1000, 0), percent(hits / many), told, width))
    head = (*(("target",) if len(names) > 1 else ()), "asked", "held the truth", "95% interval", "mean width")
    caption = (
        f"{count(many, 'row')}: {kind}. Intervals of shares are Wilson's. The method is “{method.method}”."
    )
    return Table(head, tuple(rows), len(head) - 4, caption=caption)


def residual_section(a: ValueAnswers, why_not: str) -> Section:
    """Standardised residuals before and after calibration."""
    title = "Does it know how far off it may be?"
    if a.total is None or a.calibrated is None:
        why = f"There is no predicted standard deviation to compare errors with: the answers are {why_not}."
        return Section("residuals", title, absent=why)
    before, after = ((a.target - a.mean)[:, 0] / s[:, 0] for s in (a.total, a.calibrated))
    within = [float((np.abs(after) <= k).mean()) for k in (1, 2)]
    words = (
        (
            f"Each error divided by the predicted standard deviation should look like a bell curve of width "
            f"1. "
            f"After calibration {percent(within[0], 0)} of the errors are within one standard deviation (68% "
            f"would be "
            f"expected of a bell curve) and {percent(within[1], 0)} within two (95%)."
        ),
    )
    z = np.linspace(-5, 5, 101)
    bell = np.exp(-np.square(z) / 2) / math.sqrt(2 * math.pi)
    blocks: list[Plot | Table] = []
    edges = np.linspace(-5, 5, 26)
    for name, residuals in (("Before calibration", before), ("After calibration", after)):
        density = np.histogram(np.clip(residuals, -5, 5), edges)[0] / len(residuals) / np.diff(edges)
        blocks.append(
            Plot(
                name,
                draw(
                    f"Standardised residuals, {name.lower()}",
                    Axis("error / predicted standard deviation", -5, 5),
                    Axis("density", 0, max(float(density.max()), 0.4) * 1.05),
                    [Bars(edges, density), Line(z, bell, "c")],
                ),
                (("a", "held-out rows"), ("c", "bell curve of width 1")),
                f"Mean square {number(float(np.square(residuals).mean()))}; 1 is right. Beyond ±5 counts as "
                f"±5.",
            )
        )
    nll = [_gaussian_nll(a, s) for s in (a.total, a.calibrated)]
    blocks.append(
        Table(
            ("Gaussian negative log-likelihood (nats)", "value"),
            (("before calibration", number(nll[0])), ("after calibration, cross-validated", number(nll[1]))),
        )
    )
    return Section("residuals", title, words, tuple(blocks))


def selective_section(a: ValueAnswers) -> Section:
    """Risk-coverage by the predicted deviation."""
    title = "What if it declines when in doubt?"
    doubt = a.epistemic if a.total is None else a.total
    if doubt is None:
        return Section("selective", title, absent="Without dropout this model gives no measure of doubt.")
    squares = np.square(a.mean - a.target)[:, 0]
    curve, best = risk_coverage(-doubt[:, 0], squares), risk_coverage(-squares, squares)
    root = {c: math.sqrt(curve.risk_at(c)) for c in (1, 0.95, 0.9, 0.8, 0.7, 0.5)}
    words = (
        (
            f"If the model answers everything, it is off by {number(root[1])} (root mean square). If it "
            f"passes "
            f"the 10% "
            f"that it is least sure of to a person, it is off by {number(root[0.9])} on the rest; if half, "
            f"by "
            f"{number(root[0.5])}."
        ),
    )
    if root[0.5] >= root[1]:
        words += ("On these rows, declining the doubtful half leaves no smaller error.",)
    table = Table(
        ("answered by the model", "root mean square error"),
        tuple((percent(c, 0), number(value)) for c, value in root.items()),
    )
    plot = Plot(
        "Error left, by share answered",
        draw(
            "Root mean square error against coverage",
            Axis("share answered, most certain first", 0, 1, percent=True),
            Axis.around("root mean square error", np.sqrt(curve.risk), zero=True),
            [
                Line(best.coverage, np.sqrt(best.risk), "faint", dashed=True),
                Line(curve.coverage, np.sqrt(curve.risk)),
            ],
        ),
        (("a", "by predicted deviation"), ("faint", "best possible order")),
    )
    return Section("selective", title, words, (plot, table))


def _gaussian_nll(a: ValueAnswers, std: Float) -> float:
    z = (a.target - a.mean) / std
    return float((np.square(z) / 2 + np.log(std) + math.log(2 * math.pi) / 2)[:, 0].mean())
