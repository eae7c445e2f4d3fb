"""The learning curve as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from dropserve.training.learner import Epoch


def score_name(task: str) -> str:
    """What :attr:`Epoch.score` is: ``accuracy`` or ``rmse``."""
    return "accuracy" if task == "classification" else "rmse"


def write_curve_csv(path: Path, curve: Sequence[Epoch], task: str) -> None:
    """One line for each epoch."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        score = f"validation_{score_name(task)}"
        writer.writerow(["epoch", "train_loss", "validation_loss", score, "learning_rate", "seconds"])
        for row in curve:
            numbers = (row.train_loss, row.validation_loss, row.score, row.learning_rate, row.seconds)
            writer.writerow([row.number, *(f"{number:.6g}" for number in numbers)])


def loss_name(task: str, noise: str) -> str:
    """What the losses of an :class:`Epoch` are, with their unit."""
    if task == "classification":
        return "cross entropy (nats)"
    if noise == "heteroscedastic":
        return "likelihood loss (nats, standardised)"
    return "mean squared error (standardised)"


def write_curve_png(
    path: Path,
    curve: Sequence[Epoch],
    best: Epoch,
    *,
    task: str,
    title: str,
    noise: str = "homoscedastic",
) -> None:
    """Losses on the left, the validation score on the right, the best epoch marked in both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # only when there is a curve
    from matplotlib.figure import Figure  # noqa: PLC0415  # no pyplot: no global state, no display
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: PLC0415  # as above

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    epochs = [row.number for row in curve]
    losses.plot(epochs, [row.train_loss for row in curve], color="#8a8a8a", label="training, dropout on")
    losses.plot(
        epochs, [row.validation_loss for row in curve], color="#1f6fb4", label="validation, dropout off"
    )
    losses.plot(best.number, best.validation_loss, "o", color="#c23b22", label=f"kept: epoch {best.number}")
    classifies = task == "classification"
    losses.set(
        xlabel="epoch",
        ylabel=loss_name(task, noise),
        title="loss",
    )
    if classifies and min(row.validation_loss for row in curve) > 0:
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        losses.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        losses.yaxis.set_minor_locator(NullLocator())
    losses.legend(frameon=False)
    scores.plot(epochs, [row.score for row in curve], color="#1f6fb4")
    scores.plot(best.number, best.score, "o", color="#c23b22")
    scores.axvline(best.number, color="#c23b22", linewidth=0.8, linestyle=":")
    scores.set(
        xlabel="epoch",
        ylabel="accuracy" if classifies else "RMSE (unit of the target)",
        title=f"validation {'accuracy' if classifies else 'RMSE'}: {best.score:.4g} at epoch {best.number}",
    )
    for axes in (losses, scores):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
