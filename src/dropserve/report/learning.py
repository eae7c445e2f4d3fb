"""How training went, and how the model does on rows it learned from and on rows it did not."""

from __future__ import annotations

import csv
import math

import numpy as np
from numpy.typing import NDArray

from dropserve.manifest import RunManifest

from .content import Plot, Section, Table
from .evidence import Evidence
from .svg import Axis, Line, Mark, draw
from .words import number, percent, spaced

CURVE = "learning_curve.csv"
Curve = dict[str, NDArray[np.float64]]
_WHY = {
    "loss": "there, the loss on the validation rows was lowest",
    "score": "there, the score on the validation rows was best",
    "nothing": "the last ones, as the recipe asks",
}
_NO_CURVE = (
    f"The run has no {CURVE}: the model was trained elsewhere and imported, and dropserve did not watch."
)


def read_curve(evidence: Evidence) -> Curve | None:
    """The columns of the run's learning curve; None if it has none."""
    if CURVE not in evidence.run.manifest.files:
        return None
    with evidence.run.path(CURVE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def monitor_of(run: RunManifest) -> str:
    """By what the kept epoch was chosen; the lowest validation loss, unless the recipe says otherwise."""
    training = run.recipe.get("training")
    found = training.get("monitor") if isinstance(training, dict) else None
    return found if found in ("score", "nothing") else "loss"


def curves(evidence: Evidence) -> Section:
    """Losses and score, epoch by epoch."""
    curve = read_curve(evidence)
    if curve is None:
        return Section("curves", "How it learned", absent=_NO_CURVE)
    epochs, best = curve["epoch"], _best(evidence, curve)
    classifies = evidence.manifest.task == "classification"
    words = (
        (
            f"Training ran for {len(epochs)} epochs, each one pass over the training rows. The weights of "
            f"epoch "
            f"{int(epochs[best])} are kept: {_WHY[monitor_of(evidence.run.manifest)]}."
        ),
    )
    pair = evidence.manifest.preprocessing.heteroscedastic
    unit = "cross entropy (nats)" if classifies else "mean squared error (standardised)"
    if pair:
        unit = "likelihood loss (nats, standardised)"
    train, validation = curve["train_loss"], curve["validation_loss"]
    log = bool(min(train.min(), validation.min()) > 0)
    marks: list[Mark] = [Line(epochs, train, "faint"), Line(epochs, validation, "a")]
    marks.append(Line(epochs[best : best + 1], validation[best : best + 1], "c", dots=True))
    across = _epochs(epochs)
    losses = Plot(
        "Loss",
        draw("Loss by epoch", across, Axis.around(unit, train, validation, log=log), marks),
        (("faint", "training, dropout on"), ("a", "validation, dropout off"), ("c", "kept")),
        "Lower is better." + (" The scale is logarithmic." if log else ""),
    )
    blocks = [losses]
    if score := next((name for name in curve if name in {"validation_accuracy", "validation_rmse"}), None):
        own = curve[score]
        up = Axis.around(spaced(score), own)
        if classifies:
            up = Axis(up.label, max(0, up.low), min(1, up.high), percent=True)
        drawn: list[Mark] = [
            Line(epochs, own),
            Line(epochs[best : best + 1], own[best : best + 1], "c", dots=True),
        ]
        shown = percent(own[best]) if classifies else number(own[best])
        blocks.append(
            Plot(
                spaced(score).capitalize(),
                draw(f"{spaced(score)} by epoch", across, up, drawn),
                (("a", "validation, dropout off"), ("c", "kept")),
                f"{shown} at epoch {int(epochs[best])}.",
            )
        )
    return Section("curves", "How it learned", words, tuple(blocks))


def overfitting(evidence: Evidence) -> Section:
    """How training and validation differ."""
    title = "Does it overfit?"
    curve, metrics = read_curve(evidence), evidence.run.manifest.metrics
    if curve is None:
        return Section("overfitting", title, absent=_NO_CURVE)
    epochs, best = curve["epoch"], _best(evidence, curve)
    train, validation = curve["train_loss"], curve["validation_loss"]
    kept, last, lowest = float(validation[best]), float(validation[-1]), int(np.argmin(validation))
    nats = evidence.manifest.preprocessing.heteroscedastic  # this loss may be below 0, so it has no ratios
    other = None if lowest == best else (int(epochs[lowest]), int(epochs[best]))
    low = float(validation[lowest])
    words = [
        _tail(len(epochs) - 1 - lowest, low, last, nats=nats, other=other),
        _gap(float(train[best]), kept),
    ]
    compared = _validation_against_test(metrics)
    if compared:
        words.append(compared)
    gap = validation - train if nats else validation / np.maximum(train, 1e-300)
    name, unit = ("less", "difference") if nats else ("divided by", "ratio")
    equal = 0.0 if nats else 1.0
    blocks = (
        Plot(
            f"Validation loss {name} training loss",
            draw(
                f"Validation loss {name} training loss, by epoch",
                _epochs(epochs),
                Axis.around(f"{unit} of losses", gap, [equal]),
                [Line([epochs[0], epochs[-1]], [equal, equal], "faint", dashed=True), Line(epochs, gap)],
            ),
            (("a", unit), ("faint", "equal losses")),
            f"A {unit} that keeps rising says that the model is learning its training rows by heart. "
            "Training loss is measured with dropout on, which makes it larger: below "
            f"{equal:g} is usual under dropout.",
        ),
        Table(
            ("loss", f"epoch {int(epochs[best])} (kept)", f"epoch {int(epochs[-1])} (last)"),
            (
                ("training, dropout on", number(float(train[best])), number(float(train[-1]))),
                ("validation, dropout off", number(kept), number(last)),
            ),
        ),
    )
    return Section("overfitting", title, tuple(words), blocks)


def _epochs(epochs: NDArray[np.float64]) -> Axis:
    first, last = float(epochs[0]), float(epochs[-1])
    return Axis("epoch", first, last if last > first else first + 1, whole=True)


def _best(evidence: Evidence, curve: Curve) -> int:
    """The row of the epoch that was kept."""
    named = evidence.run.manifest.metrics.get("best_epoch")
    found = np.flatnonzero(curve["epoch"] == named) if named is not None else []
    return int(found[0]) if len(found) else int(np.argmin(curve["validation_loss"]))


def _tail(later: int, low: float, last: float, *, nats: bool, other: tuple[int, int] | None) -> str:
    """What validation loss did after its lowest; ``other``: that epoch and the kept one, if they differ."""
    after = "the one that was kept" if other is None else f"epoch {other[0]}, where it was lowest"
    if later == 0:
        return (
            "Validation loss was still at its lowest when training ended: there is no sign of overfitting, "
            "and "
            "more epochs might help."
        )
    rise = last - low
    if not nats:
        rise = rise / low if low > 0 else math.nan
    if math.isnan(rise) or rise < 0.05:
        return (
            f"In the {later} epochs after {after}, validation loss stayed within "
            f"{'0.05 nats' if nats else '5%'} of its lowest value: there is no sign of overfitting."
        )
    how = f"{rise:.2f} nats" if nats else percent(rise, 0)
    rose = f"In the {later} epochs after {after}, validation loss rose by {how}: "
    if other is None:
        return f"{rose}training longer would have overfitted. That is why an earlier epoch was kept."
    return (
        f"{rose}by this loss, training longer overfitted. Epoch {other[1]} is kept all the same, as the "
        "recipe asks."
    )


def _gap(train: float, validation: float) -> str:
    if validation <= train:
        return (
            f"At the kept epoch the loss is {number(validation)} on validation rows and {number(train)} on "
            f"training "
            "rows, which are measured with dropout on, and so are harder. The model does no worse on rows it "
            "has not seen."
        )
    return (
        f"At the kept epoch the loss is {number(validation)} on validation rows against {number(train)} on "
        f"training "
        "rows, although these are measured with dropout on, which makes them harder: the model does "
        "better on what it has seen. More dropout, more data or a smaller model may narrow the gap."
    )


def _validation_against_test(metrics: dict[str, float]) -> str:
    for name in ("accuracy", "rmse"):
        pair = [metrics.get(f"{part}_{name}") for part in ("validation", "test")]
        if None not in pair:
            shown = [percent(v or 0) if name == "accuracy" else number(v or 0) for v in pair]
            what = "accuracy" if name == "accuracy" else "root mean squared error"
            return (
                f"Validation rows chose the epoch, test rows chose nothing: {what} is {shown[0]} on the "
                f"former and "
                f"{shown[1]} on the latter."
            )
    return ""
