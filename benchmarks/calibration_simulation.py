"""Is a calibrated answer ever worse than an uncalibrated one? Simulated nets whose true posterior is known.

A cell is a kind of net and a number of calibration rows. In each data set of a cell the number of
classes (2 to 10), their balance and the sharpness of the truth are drawn anew. Logits are the true ones
times a factor (above 1: too sure) plus an error. ``plain`` answers are their softmax; Monte Carlo
answers (``mc``) are the mean of ten noisy softmaxes, less sure than any of them. ``near`` cells have few
errors. The temperature is the library's; both likelihood losses are of fresh rows, and the 95% interval
is of the mean difference (calibrated - uncalibrated) over data sets. Calibration does harm in a cell
whose interval lies above +0.002 nats as a whole: one whose *lower* end does. The upper end says besides
how much is known: of 20 data sets it is mostly their spread.

    python benchmarks/calibration_simulation.py [--sets 20] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from dropserve.dropout.statistics import softmax
from dropserve.uncertainty.calibration import HIGHEST, LOWEST, Temperature
from dropserve.uncertainty.metrics import nll

Float = NDArray[np.float64]
ROWS = (30, 50, 100, 300, 1000, 3000)
FRESH = 10_000
KINDS = [
    (confidence, errors, answers)
    for confidence in ("over", "well", "under")
    for errors, answers in (("usual", "plain"), ("near", "plain"), ("usual", "mc"), ("near", "mc"))
]


def draw(
    rng: np.random.Generator, kind: tuple[str, str, str], rows: int
) -> tuple[Float, Float, NDArray[np.intp]]:
    """Probabilities [rows, C] that a net gives, the same without dropout, and labels [rows]."""
    confidence, errors, answers = kind
    classes = int(rng.integers(2, 11))
    sharpness = rng.uniform(1, 3) if errors == "usual" else rng.uniform(6, 14)
    balance = np.log(rng.dirichlet(np.full(classes, rng.choice([1.0, 5.0, 50.0]))))
    truth = sharpness * rng.normal(size=(rows, classes)) + balance
    labels = (softmax(truth).cumsum(axis=1)[:, :-1] < rng.random((rows, 1))).sum(axis=1)
    factor = {"over": rng.uniform(1.5, 4), "well": 1.0, "under": rng.uniform(0.3, 0.7)}[confidence]
    if answers == "plain":
        return softmax(factor * truth), softmax(factor * truth), labels
    logits = factor * truth + rng.uniform(0.5, 2) * rng.normal(size=truth.shape)
    noise = 1.5 * rng.normal(size=(10, *truth.shape))
    return softmax(logits + noise).mean(axis=0), softmax(logits), labels


def cell(kind: tuple[str, str, str], rows: int, sets: int) -> tuple[Float, Float]:
    """Differences of the likelihood loss, and temperatures, of each data set."""
    differences, temperatures = np.empty(sets), np.empty(sets)
    for number in range(sets):
        rng = np.random.default_rng([number, rows, KINDS.index(kind)])
        p, plain, labels = draw(rng, kind, rows + FRESH)
        found = Temperature.fit(p[:rows], labels[:rows], plain[:rows])
        new, truth = p[rows:], labels[rows:]
        differences[number] = nll(found.probabilities(new), truth) - nll(new, truth)
        temperatures[number] = found.value
    return differences, temperatures


def main() -> None:
    """Print a row for each cell; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", type=int, default=20, help="data sets in a cell")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = Table("net", "errors", "answers", "rows", "difference (nats)", "95% interval", "temperatures")
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    sure: dict[str, float] = {}
    ends = 0
    for kind in KINDS:
        for rows in ROWS:
            found, temperatures = cell(kind, rows, arguments.sets)
            reach = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
            name, mean = " ".join((*kind, str(rows))), float(found.mean())
            lows[name], highs[name] = mean - float(reach), mean + float(reach)
            if kind[0] == "over" and rows >= 100:
                sure[name] = highs[name]
            ends += int(((temperatures <= LOWEST * 1.01) | (temperatures >= HIGHEST / 1.01)).sum())
            table.add_row(
                *kind,
                str(rows),
                f"{mean:+.4f}",
                f"{lows[name]:+.4f} to {highs[name]:+.4f}",
                f"{temperatures.min():.2f} to {temperatures.max():.2f}",
            )
    harmed, widest = max(lows, key=lambda name: lows[name]), max(highs, key=lambda name: highs[name])
    least_mended = max(sure, key=lambda name: sure[name])
    figures: dict[str, Any] = {
        "data_sets": len(highs) * arguments.sets,
        "worst_lower_end": lows[harmed],
        "worst_cell": harmed,
        "worst_upper_end": highs[widest],
        "worst_upper_cell": widest,
        "over_confident_upper_end": sure[least_mended],
        "over_confident_cell": least_mended,
        "temperatures_at_an_end": ends,
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
