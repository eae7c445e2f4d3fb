"""Do sets and intervals hold the truth as often as they say with few rows, ties and classes without rows?

A cell is a method, a number of calibration rows and a kind of data. In each repetition the calibration rows
and 200 fresh rows are drawn anew, calibrated by the library and asked for 90%. Kinds of classes:

- ``smooth``: probabilities without ties, too sure;
- ``votes``: shares of ten votes, so that most scores are tied;
- ``sure``: right for 98% of the rows, and a probability of exactly 1 for most;
- ``rare``: two of six classes are so rare that mostly no calibration row has them.

Class-conditional sets are judged for the rows of each true class. Kinds of numbers: ``smooth``, ``rounded``
(predictions and targets are whole numbers), ``uneven`` (Cauchy noise, deviations that say nothing), and
``served``: Monte Carlo samples, whose noise is fitted to the same rows, as an endpoint does it.

A repetition in which the coverage is refused counts for nothing. A cell fails if its coverage, over
repetitions, is below 90% by more than its standard error explains (one-sided 99.9% over all cells, by
Bonferroni). Sets are judged with empty ones allowed; served sets hold the label besides, and their coverage
is stated.

    python benchmarks/coverage_simulation.py [--repetitions 500] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import softmax
from dropserve.signature import Site
from dropserve.uncertainty.answers import calibrated_values
from dropserve.uncertainty.conformal import METHODS, ConformalClassifier
from dropserve.uncertainty.fitting import calibrate_regressor
from dropserve.uncertainty.intervals import INTERVAL_METHODS, ConformalRegressor, IntervalMethod

Float = NDArray[np.float64]
Whole = NDArray[np.intp]
COVERAGE = 900
ROWS = (20, 50, 200, 1000)
FRESH = 200
CLASSES = 6
CLASS_KINDS = ("smooth", "votes", "sure", "rare")
NUMBER_KINDS = ("smooth", "rounded", "uneven", "served")
SAMPLES = 10
SITE = Site(name="drop", kind="dropout", p=0.5, shape=(4,), scale="drop_scale")


def draw_classes(rng: np.random.Generator, kind: str, rows: int, total: int) -> tuple[Float, Whole, Float]:
    """Probabilities [total, C] that a model gives, labels [total] and uniforms [total]."""
    balance = np.zeros(CLASSES)
    if kind == "rare":
        balance[:2] = -np.log(rows)  # about one row in ten repetitions
    logits = rng.normal(size=(total, CLASSES)) * (1.0 if kind == "rare" else 2.0) + balance
    truth = softmax(logits)
    labels = (truth.cumsum(axis=1)[:, :-1] < rng.random((total, 1))).sum(axis=1)
    p = softmax(1.6 * logits)
    if kind == "votes":
        p = rng.multinomial(10, softmax(logits)) / 10
    elif kind == "sure":
        right = rng.random(total) < 0.98
        labels = np.where(right, logits.argmax(axis=1), rng.integers(0, CLASSES, total))
        p = softmax(40 * logits)
        p = np.where(p > 1 - 1e-6, 1.0, np.where(p < 1e-6, 0.0, p))
        p = p / p.sum(axis=1, keepdims=True)
    return p, labels, rng.random(total)


def class_hits(
    rng: np.random.Generator, kind: str, rows: int, method: Any, conditional: bool
) -> tuple[Float, Float, Float] | None:
    """Fresh rows, those whose set holds the truth, those whose served set does; by class [C] or in all."""
    p, y, u = draw_classes(rng, kind, rows, rows + FRESH)
    fitted = ConformalClassifier.fit(
        p[:rows], y[:rows], method=method, uniforms=u[:rows], class_conditional=conditional
    )
    if not fitted.supports(COVERAGE):
        return None
    own = np.arange(FRESH), y[rows:]
    exact, served = (
        fitted.sets(p[rows:], COVERAGE, u[rows:], allow_empty=allowed)[own] for allowed in (True, False)
    )
    group = y[rows:] if conditional else np.zeros(FRESH, int)
    size = CLASSES if conditional else 1
    counted = [np.bincount(group, each, size) for each in (np.ones(FRESH), exact, served)]
    return counted[0], counted[1], counted[2]


def value_hits(
    rng: np.random.Generator, kind: str, rows: int, method: IntervalMethod
) -> tuple[Float, Float, Float] | None:
    """The same of intervals."""
    total = rows + FRESH
    mean = rng.normal(size=(total, 1)) * 5
    deviation = rng.uniform(0.3, 3, (total, 1))
    noise = rng.standard_cauchy((total, 1)) if kind == "uneven" else deviation * rng.normal(size=(total, 1))
    y = mean + noise
    if kind == "rounded":
        mean, y = np.round(mean), np.round(y)
        deviation = np.round(deviation)  # 0 among them
    elif kind == "uneven":
        deviation = rng.uniform(0, 1, (total, 1))
    old, new = slice(0, rows), slice(rows, total)
    if kind == "served":
        samples = mean + 0.5 * deviation * rng.normal(size=(SAMPLES, total, 1))
        record = calibrate_regressor(
            samples[:, old], y[old], settings=Settings(samples=SAMPLES), sites=[SITE], method=method
        )
        ends = calibrated_values(record, samples[:, new], block=10).intervals(COVERAGE)
    else:
        first, second = (
            (mean - 0.7 * deviation, mean + 0.7 * deviation) if method == "cqr" else (mean, deviation)
        )
        fitted = ConformalRegressor.fit(first[old], second[old], y[old], method=method)
        ends = fitted.intervals(first[new], second[new], COVERAGE) if fitted.supports(COVERAGE) else None
    if ends is None:
        return None
    hits = np.array([float(((ends[0] <= y[new]) & (y[new] <= ends[1])).sum())])
    return np.array([float(FRESH)]), hits, hits


@dataclass(frozen=True)
class Cell:
    """Coverage of one cell: of sets with empty ones, its standard error, and of served sets."""

    name: str
    coverage: float
    error: float
    served: float
    refused: int


def judge(name: str, found: list[tuple[Float, Float, Float] | None]) -> list[Cell]:
    """A cell, or one for each class: shares of all fresh rows; the error is that of a ratio of means."""
    kept = [each for each in found if each is not None]
    if not kept:
        return []
    counts, hits, served = (np.stack(part) for part in zip(*kept, strict=True))
    cells: list[Cell] = []
    for k in range(counts.shape[1]):
        n, h = counts[:, k], hits[:, k]
        if n.sum() == 0:
            continue
        share = float(h.sum() / n.sum())
        # never less than the binomial error of one fresh row a repetition: rare classes have few rows
        least = np.sqrt(0.09 / n.sum())
        error = max(float(np.sqrt(np.square(h - share * n).sum()) / n.sum()), float(least))
        label = name if counts.shape[1] == 1 else f"{name}, class {k}"
        cells.append(Cell(label, share, error, float(served[:, k].sum() / n.sum()), len(found) - len(kept)))
    return cells


def simulate(repetitions: int, rows: tuple[int, ...] = ROWS, kinds: tuple[str, ...] = ()) -> list[Cell]:
    """All cells, or those of some kinds."""
    cells: list[Cell] = []
    for n in rows:
        for kind in CLASS_KINDS:
            for method in METHODS:
                for conditional in (False, True):
                    name = f"{method}{' class-conditional' if conditional else ''}, {kind}, {n} rows"
                    if not kinds or kind in kinds:
                        rngs = _generators(name, repetitions)
                        cells += judge(name, [class_hits(g, kind, n, method, conditional) for g in rngs])
        for kind in NUMBER_KINDS:
            for method in INTERVAL_METHODS:
                name = f"{method} interval, {kind}, {n} rows"
                if not kinds or kind in kinds:
                    cells += judge(
                        name, [value_hits(g, kind, n, method) for g in _generators(name, repetitions)]
                    )
    return cells


def _generators(name: str, repetitions: int) -> list[np.random.Generator]:
    return [np.random.default_rng([number, zlib.crc32(name.encode())]) for number in range(repetitions)]


def below(cells: list[Cell]) -> list[Cell]:
    """Those whose coverage is less than asked for by more than chance explains."""
    reach = float(stats.norm.isf(0.001 / len(cells)))
    return [cell for cell in cells if cell.coverage < COVERAGE / 1000 - reach * cell.error]


def main() -> None:
    """Print the cells; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cells = simulate(arguments.repetitions)
    table = Table("cell", "coverage", "standard error", "served", "refused repetitions")
    for cell in sorted(cells, key=lambda cell: (cell.coverage - COVERAGE / 1000) / cell.error):
        table.add_row(
            cell.name, f"{cell.coverage:.4f}", f"{cell.error:.4f}", f"{cell.served:.4f}", str(cell.refused)
        )
    failed = below(cells)
    worst = min(cells, key=lambda cell: (cell.coverage - COVERAGE / 1000) / cell.error)
    over = max(cells, key=lambda cell: cell.coverage)
    plain = [cell for cell in cells if "smooth" in cell.name and "conditional" not in cell.name]
    figures: dict[str, Any] = {
        "cells": len(cells),
        "repetitions": arguments.repetitions,
        "cells_below": len(failed),
        "worst_cell": worst.name,
        "worst_coverage": worst.coverage,
        "worst_standard_errors": (worst.coverage - COVERAGE / 1000) / worst.error,
        "least_coverage": min(cell.coverage for cell in cells),
        "over_coverage_points_smooth": max(cell.coverage - COVERAGE / 1000 for cell in plain) * 100,
        "over_coverage_points": (over.coverage - COVERAGE / 1000) * 100,
        "over_coverage_cell": over.name,
        "served_over_coverage_points": max(cell.served - COVERAGE / 1000 for cell in cells) * 100,
    }
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
