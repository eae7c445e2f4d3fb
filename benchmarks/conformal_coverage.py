"""Do prediction sets hold the true class as often as they say? Real digits, random splits, theory and MAPIE.

A small dropout network is trained on half of scikit-learn's digits. Its Monte Carlo answers (T=50, balanced
masks) on the other half are split at random into calibration and test rows, 100 times. Given any pool of
rows the theory of the mean coverage over such splits is exact (``uncertainty.quantiles.coverage_theory``).
The range is one of 99%: there are six, and a range of 95% would miss one of six in every fourth trial.

    python benchmarks/conformal_coverage.py [--splits 100] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mapie.classification import SplitConformalClassifier
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from torch import nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.statistics import softmax
from dropserve.signature import Site
from dropserve.uncertainty.conformal import (
    METHODS,
    ConformalClassifier,
    Method,
    choose_penalty,
    row_uniforms,
)
from dropserve.uncertainty.metrics import accuracy
from dropserve.uncertainty.quantiles import coverage_theory

Float = NDArray[np.float64]
COVERAGES = (900, 950)
CALIBRATION = 459  # (n + 1) c is whole for both coverages, so the theory's mean is the target itself
TUNING = 120  # rows on which RAPS chooses its penalty, in no split
WIDTH, RATE = 128, 0.5


class Given(ClassifierMixin, BaseEstimator):
    """For MAPIE: an estimator whose features are its probabilities."""

    classes_ = np.arange(10)
    fitted_ = True

    def fit(self, _x: Float, _y: Float) -> Given:
        """Nothing to do."""
        return self

    def predict_proba(self, x: Float) -> Float:
        """The probabilities themselves."""
        return x

    def predict(self, x: Float) -> NDArray[np.int64]:
        """The most probable class."""
        return x.argmax(axis=1)


def train(x: NDArray[np.float32], y: NDArray[np.int64]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Fit 64-128-128-10 with dropout 0.5, and return its masked program."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
    net = nn.Sequential(first, nn.ReLU(), nn.Dropout(RATE), second, nn.ReLU(), nn.Dropout(RATE), last)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(40):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            optimiser.step()

    @torch.no_grad()
    def head(feeds: dict[str, Any]) -> dict[str, Any]:
        h, m0, m1 = (torch.from_numpy(np.ascontiguousarray(feeds[k])) for k in ("input", "m0", "m1"))
        h = torch.relu(first(h)) * m0
        return {"output": last(torch.relu(second(h)) * m1).numpy()}

    return head


def mapie_sets(method: str, p: Float, y: NDArray[np.int64], new: Float, seed: int) -> NDArray[np.bool_]:
    """MAPIE's sets [B, C, coverage]; APS and RAPS randomised, as ours are."""
    oracle = SplitConformalClassifier(
        Given(), confidence_level=[c / 1000 for c in COVERAGES], conformity_score=method, random_state=seed
    )
    params = None if method == "lac" else {"include_last_label": "randomized"}
    return oracle.conformalize(p, y).predict_set(new, conformity_score_params=params)[1]


def measure(splits: int) -> tuple[dict[str, Any], Table]:
    """Train, sample, split, and compare."""
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(x))
    half = len(x) // 2
    head = train(x[order[:half]], y[order[:half]])
    sites = [Site(name=f"drop{i}", kind="dropout", p=RATE, shape=(WIDTH,), scale=f"m{i}") for i in range(2)]
    held, truth = x[order[half:]], y[order[half:]]
    samples = MonteCarlo(sites, head).samples({"input": held}, Settings())["output"]
    p, u = softmax(samples).mean(axis=0), row_uniforms({"input": held}, seed=0)
    penalty, free = choose_penalty(p[:TUNING], truth[:TUNING], u[:TUNING])
    pool = np.arange(TUNING, len(p))
    test = len(pool) - CALIBRATION

    found: dict[tuple[Method, int], list[tuple[float, float, float, float, float]]] = {}
    for split in range(splits):
        mixed = rng.permutation(pool)
        a, b = mixed[:CALIBRATION], mixed[CALIBRATION:]
        for method in METHODS:
            fitted = ConformalClassifier.fit(
                p[a], truth[a], method=method, uniforms=u[a], penalty=penalty, free_ranks=free
            )
            theirs = mapie_sets(method, p[a], truth[a], p[b], split)
            for i, coverage in enumerate(COVERAGES):
                sets = fitted.sets(p[b], coverage, u[b])
                hit = [s[np.arange(test), truth[b]].mean() for s in (sets, theirs[:, :, i])]
                size = [s.sum(axis=1).mean() for s in (sets, theirs[:, :, i])]
                row = (hit[0], hit[1], size[0], size[1], float((~sets.any(axis=1)).mean()))
                found.setdefault((method, coverage), []).append(row)

    right = accuracy(p[pool], truth[pool])
    title = f"digits, accuracy {right:.4f}; {CALIBRATION} calibration and {test} test rows, {splits} splits"
    table = Table("asked", "sets", "coverage", "theory, 99% range", "MAPIE", title=title)
    for name in ("mean size", "MAPIE", "ratio", "empty"):
        table.add_column(name)
    figures: dict[str, Any] = {"splits": splits, "accuracy": right}
    worst, inside = 0.0, True
    for (method, coverage), rows in sorted(found.items(), key=lambda item: item[0][1]):
        hit, their_hit, size, their_size, empty = np.mean(rows, axis=0).tolist()
        mean, deviation = coverage_theory(CALIBRATION, coverage, test)
        reach = 2.576 * deviation / np.sqrt(splits)
        within = abs(hit - mean) <= reach
        worst, inside = max(worst, abs(hit - coverage / 1000) * 100), inside and within
        key = f"{method}_{coverage}"
        figures |= {
            f"coverage_{key}": hit,
            f"within_theory_{key}": bool(within),
            f"size_{key}": size,
            f"mapie_size_{key}": their_size,
            f"size_ratio_{key}": size / their_size,
            f"empty_{key}": empty,
            f"spread_ratio_{key}": float(np.std([row[0] for row in rows], ddof=1) / deviation),
        }
        table.add_row(
            f"{coverage / 10:g}%",
            method,
            f"{hit:.4f}",
            f"{mean - reach:.4f} to {mean + reach:.4f}{'' if within else ' (outside)'}",
            f"{their_hit:.4f}",
            f"{size:.3f}",
            f"{their_size:.3f}",
            f"{size / their_size:.3f}",
            f"{empty:.1%}",
        )
    figures |= {"worst_gap_points": worst, "within_theory": bool(inside)}
    return figures, table


def main() -> None:
    """Print the table; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures, table = measure(arguments.splits)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"Furthest from the coverage asked: {figures['worst_gap_points']:.2f} points; "
        f"all within the theory's range: {figures['within_theory']}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
