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
from .words import FEW, count, number, percent, spaced

CURVE = "learning_curve.csv"
Curve = dict[str, NDArray[np.float64]]
_LITTLE = 0.05  # a rise of validation loss that is not called one: a share, or nats
_LOWEST = "there, the loss on the validation rows was lowest"
_BEST = "there, the score on the validation rows was best"
_NAMED = "the run names it as the one to keep"
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
            f"Training ran for {count(len(epochs), 'epoch')}, each one pass over the training rows. The "
            f"weights of epoch {int(epochs[best])} are kept: "
            f"{why_kept(curve, best, monitor_of(evidence.run.manifest))}."
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
    kept, last = float(validation[best]), float(validation[-1])
    nats = evidence.manifest.preprocessing.heteroscedastic  # this loss may be below 0, so it has no ratios
    words = [
        tail(curve, best, nats=nats, rows=_validation_rows(evidence)),
        gap(float(train[best]), kept, dropout=bool(evidence.manifest.sites)),
    ]
    compared = _validation_against_test(metrics, monitor_of(evidence.run.manifest))
    if compared:
        words.append(compared)
    with np.errstate(invalid="ignore", over="ignore"):  # of losses that are not finite: not drawn
        apart = validation - train if nats else validation / np.maximum(train, 1e-300)
    name, unit = ("less", "difference") if nats else ("divided by", "ratio")
    equal = 0.0 if nats else 1.0
    usual = ""
    if evidence.manifest.sites:
        usual = (
            "Training loss is measured with dropout on, which tends to make it larger: below "
            f"{equal:g} is usual under dropout."
        )
    blocks = (
        Plot(
            f"Validation loss {name} training loss",
            draw(
                f"Validation loss {name} training loss, by epoch",
                _epochs(epochs),
                Axis.around(f"{unit} of losses", apart, [equal]),
                [Line([epochs[0], epochs[-1]], [equal, equal], "faint", dashed=True), Line(epochs, apart)],
            ),
            (("a", unit), ("faint", "equal losses")),
            f"A {unit} that keeps rising hints that the model learns its training rows by heart. {usual}",
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
    return int(found[0]) if len(found) else lowest_of(curve["validation_loss"])


def lowest_of(losses: NDArray[np.float64]) -> int:
    """The first row with the lowest finite loss; the last row if there is none."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return int(np.argmin(finite)) if np.isfinite(finite).any() else len(losses) - 1


def why_kept(curve: Curve, best: int, monitor: str) -> str:
    """Why this epoch was kept, as far as the curve bears it out."""
    losses = curve["validation_loss"]
    if monitor == "nothing":
        return "the last ones, as the recipe asks" if best == len(losses) - 1 else _NAMED
    if monitor == "loss":
        return _LOWEST if np.isfinite(losses[best]) and losses[best] == losses[lowest_of(losses)] else _NAMED
    for name, sign in (("validation_accuracy", -1.0), ("validation_rmse", 1.0)):
        if name in curve:
            score = sign * curve[name]
            return _BEST if np.isfinite(score[best]) and score[best] == score[lowest_of(score)] else _NAMED
    return _NAMED


def _validation_rows(evidence: Evidence) -> int | None:
    """How many rows the curve's loss is a mean of, where the run says it."""
    rows = evidence.run.manifest.data.get("rows")
    many = rows.get("validation") if isinstance(rows, dict) else None
    return many if isinstance(many, int) else None


def tail(curve: Curve, best: int, *, nats: bool, rows: int | None = None) -> str:
    """What validation loss did after its lowest value, in all epochs after it.

    Args:
        curve: with ``epoch`` and ``validation_loss``.
        best: the row of the kept epoch.
        nats: the loss may be below 0: differences are told, not shares.
        rows: that the loss is a mean of; few say less.
    """
    epochs, losses = curve["epoch"], curve["validation_loss"]
    if not np.isfinite(losses).all():
        many = count(int((~np.isfinite(losses)).sum()), "epoch")
        return f"Validation loss was not a finite number in {many} of {len(losses)}: the training diverged."
    lowest = lowest_of(losses)
    low, last, after = float(losses[lowest]), float(losses[-1]), losses[lowest + 1 :]
    if last == low:
        return (
            "Validation loss was at its lowest when training ended: it gives no sign of overfitting, and "
            "more epochs might help."
        )
    high = float(after.max())
    shares = not nats and low > 0
    rise, end = ((high - low) / low, (last - low) / low) if shares else (high - low, last - low)
    unit = "" if shares else " nats" if nats else " (its unit is that of the loss)"
    since = f"In the {count(len(after), 'epoch')} after epoch {int(epochs[lowest])}, where it was lowest,"
    if rise <= _LITTLE and (shares or nats):
        bound = "5%" if shares else "0.05 nats"
        return (
            f"{since} validation loss stayed within {bound} of its lowest value: it gives no sign of "
            "overfitting."
        )
    where = int(epochs[lowest + 1 + int(after.argmax())])
    up, at_end = (percent(v) if shares else f"{number(v)}{unit}" for v in (rise, end))
    told = f"{since} validation loss rose by up to {up} (at epoch {where}) and ended {at_end} above it"
    if end <= _LITTLE and (shares or nats):
        return f"{told}: it came back, so this is an uneven curve more than a sign of overfitting."
    sign = "by this loss, the later epochs overfitted"
    if rows is not None and rows < FEW:
        sign = f"a sign of overfitting, though chance moves a mean of {count(rows, 'row')} much"
    kept = "An earlier epoch is kept" if lowest == best else f"Epoch {int(epochs[best])} is kept all the same"
    return f"{told}: {sign}. {kept}."


def gap(train: float, validation: float, *, dropout: bool) -> str:
    """How the losses on seen and unseen rows differ at the kept epoch."""
    if not (math.isfinite(train) and math.isfinite(validation)):
        return "At the kept epoch a loss is not a finite number, so the two losses cannot be compared."
    harder = ", which are measured with dropout on, and so are harder" if dropout else ""
    both = (
        f"At the kept epoch the loss is {number(validation)} on validation rows and {number(train)} on "
        f"training rows{harder}."
    )
    if validation == train or number(validation) == number(train):  # 0.0 is not written like -0.0
        return f"{both} They are the same to four digits."
    if validation < train:
        return f"{both} By this measure the model does no worse on rows it has not seen."
    return (
        f"{both} The model does better on what it has seen. More dropout, more data or a smaller model "
        "may narrow the gap."
    )


def _validation_against_test(metrics: dict[str, float], monitor: str) -> str:
    for name in ("accuracy", "rmse"):
        pair = [metrics.get(f"{part}_{name}") for part in ("validation", "test")]
        if None not in pair:
            shown = [percent(v or 0) if name == "accuracy" else number(v or 0) for v in pair]
            chose = "Test rows chose nothing"
            if monitor != "nothing":
                chose = "Validation rows chose the epoch, test rows chose nothing"
            what = "accuracy" if name == "accuracy" else "root mean squared error"
            return f"{chose}: {what} is {shown[0]} on the former and {shown[1]} on the latter."
    return ""
