"""A study on a terminal, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table as Grid

from dropserve.training.overfit.evidence import Bar, Evidence, Line

_COLOURS = ("#c23b22", "#1f6fb4", "#6a8f3c", "#8a8a8a")


def columns(evidence: Evidence) -> dict[str, Callable[[Line], Bar]]:
    """What is shown of a line, by its heading."""
    score = "accuracy" if evidence.classifies else "RMSE"
    return {
        f"test {score}": lambda line: line.test,
        "gain over p = 0": lambda line: line.gain,
        f"train {score}, last epoch": lambda line: line.train,
        "loss gap, last epoch": lambda line: line.gap,
        "co-adaptation": lambda line: line.co_adaptation,
        "gain by averaging": lambda line: line.averaging,
    }


def grid(evidence: Evidence) -> Grid:
    """A terminal table."""
    shown = columns(evidence)
    table = Grid("rows", "p", *shown)
    for rows in evidence.sizes:
        for line in evidence.at(rows):
            last = line is evidence.at(rows)[-1]
            cells = [_text(read(line)) for read in shown.values()]
            table.add_row(f"{rows:,}" if not line.rate else "", f"{line.rate:g}", *cells, end_section=last)
    return table


def markdown(evidence: Evidence, title: str) -> str:
    """The same as a page, with the sentence."""
    shown = columns(evidence)
    lines = [
        f"# {title}",
        "",
        evidence.sentence,
        "",
        f"| training rows | p | {' | '.join(shown)} |",
        f"|---:|---:|{'---:|' * len(shown)}",
    ]
    for line in evidence.lines:
        cells = " | ".join(_text(read(line)) for read in shown.values())
        lines.append(f"| {line.rows:,} | {line.rate:g} | {cells} |")
    return "\n".join(lines) + "\n"


def _text(bar: Bar) -> str:
    if abs(bar.mean) < 1e-12 > bar.half:
        return "0"
    digits = 4 if abs(bar.mean) < 10 else 2
    return f"{bar.mean:.{digits}f} ± {bar.half:.{digits}f}"


def write_picture(path: Path, evidence: Evidence, title: str) -> None:
    """Four panels over p, one line for each number of training rows, 95% intervals as bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # only when there is one
    from matplotlib.figure import Figure  # noqa: PLC0415  # no pyplot: no global state, no display

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    score = "accuracy" if evidence.classifies else "RMSE"
    panels: list[tuple[str, Callable[[Line], Bar]]] = [
        (f"test {score}", lambda line: line.test),
        ("validation loss - training loss,\nlast epoch", lambda line: line.gap),
        ("mean |correlation| of hidden units", lambda line: line.co_adaptation),
        (f"test {score} gained by averaging\nsamples over scaling weights", lambda line: line.averaging),
    ]
    for axes, (name, read) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for rows, colour in zip(evidence.sizes, _COLOURS, strict=False):
            lines = evidence.at(rows)
            bars = [read(line) for line in lines]
            axes.errorbar(
                [line.rate for line in lines],
                [bar.mean for bar in bars],
                [bar.half for bar in bars],
                marker="o",
                markersize=4,
                capsize=3,
                color=colour,
                label=f"{rows:,} rows",
            )
        axes.set(xlabel="dropout rate p", title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
