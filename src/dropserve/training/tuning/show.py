"""A search as a terminal table, and as a picture: loss by trial, and against each value that was tuned."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from rich.table import Table as Grid

from dropserve.training.tuning.search import Tuned

_GREY, _BLUE, _RED = "#8a8a8a", "#1f6fb4", "#c23b22"
_MOST = 10  # trials in the table, and those with a name


def write_picture(path: Path, tuned: Tuned, title: str) -> None:
    """One panel for the history, and one for each tuned value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # only when there is one
    from matplotlib.figure import Figure  # noqa: PLC0415  # no pyplot: no global state, no display

    trials, best = tuned.trials, tuned.best
    names = [*tuned.space.names, "learning_rate", "weight_decay"]
    figure = Figure(figsize=(3.2 * (1 + len(names)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses = [trial.loss for trial in trials]
    history, *panels = figure.subplots(1, 1 + len(names), sharey=True)
    history.plot([trial.number for trial in trials], losses, "o", color=_GREY, markersize=3)
    history.plot([trial.number for trial in trials], list(accumulate(losses, min)), color=_BLUE, label="best")
    history.set(xlabel="trial", ylabel="lowest validation loss")
    history.legend(frameon=False)
    for axes, name in zip(panels, names, strict=True):
        axes.plot([trial.values[name] for trial in trials], losses, "o", color=_GREY, markersize=3)
        axes.plot(best.values[name], best.loss, "o", color=_RED)
        if tuned.own:
            axes.plot(tuned.own.values[name], tuned.own.loss, "x", color=_BLUE)
        axes.set(xlabel=name.replace("_", " "))
        if name in {"learning_rate", "weight_decay"}:
            axes.set_xscale("log")
    if min(losses) > 0 and max(losses) > 5 * min(losses):
        history.set_yscale("log")
    for axes in (history, *panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.suptitle(f"{title}: best is trial {best.number} (red); the recipe as it stood is the cross")
    figure.savefig(path, dpi=110)


def grid(tuned: Tuned) -> Grid:
    """The best trials, the recipe's own and the best without dropout, as a terminal table."""
    best, without = tuned.best, tuned.without
    names = [*tuned.space.names, "learning_rate", "weight_decay"]
    table = Grid(box=None, pad_edge=False, header_style="dim")
    table.add_column("trial", no_wrap=True)
    for head in (*(name.replace("_", " ") for name in names), "loss", "above the best (95%)"):
        table.add_column(head, justify="right")
    ranked = sorted(tuned.trials, key=lambda trial: trial.loss)
    for place, trial in enumerate(ranked):
        known = (("best", best), ("the recipe", tuned.own), ("without dropout", without))
        told = [word for word, named in known if trial is named]
        if place >= _MOST and not told:
            continue
        found = tuned.behind(trial)
        behind = "" if found is None else f"{found[0]:.4g} ± {found[1]:.2g}"
        values = [f"{trial.values[name]:.3g}" for name in names]
        name = f"{trial.number} {', '.join(told)}".rstrip()
        table.add_row(name, *values, f"{trial.loss:.4g}", behind)
    return table
