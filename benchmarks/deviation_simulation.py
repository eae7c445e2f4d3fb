"""Do regressors' fitted deviations do harm with few rows? Simulated samples whose true noise is known.

A cell is a kind of model and a number of calibration rows. Samples are Monte Carlo answers around a mean; the
target is the mean plus an error of the model and noise. ``tau`` models have one noise for all rows, which the
library fits; ``head`` models say a variance for each row. The spread of the samples (of ``head`` models the
variance) is too small (``over``: too sure), right (``well``) or too large (``under``), by a factor drawn anew
in each data set. Noise is normal or, with rare large errors, Student's t with three degrees of freedom.

Differences are of the negative log-likelihood of 2,000 fresh rows, in nats, and the 95% intervals are of
their mean over data sets; all below 0 is good:

- ``factor``: Gaussian, with the calibrated deviation, against the deviation as it was;
- ``tau``: of the mixture, with the fitted precision, against the precision of largest likelihood.

    python benchmarks/deviation_simulation.py [--sets 40] [--json PATH]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats

from dropserve.uncertainty.calibration import VarianceScaling
from dropserve.uncertainty.mixtures import mixture_log_likelihood
from dropserve.uncertainty.regression import fit_precision, noise_of, spread

Float = NDArray[np.float64]
ROWS = (20, 30, 50, 100, 300)
FRESH = 2000
SAMPLES = 20
KINDS = list(itertools.product(("tau", "head"), ("over", "well", "under"), ("normal", "heavy")))
FACTORS = {"over": (0.2, 0.7), "well": (1.0, 1.0), "under": (1.5, 4.0)}


def draw(rng: np.random.Generator, kind: tuple[str, str, str], rows: int) -> tuple[Float, Float, Float]:
    """Samples [T, rows, 1], variances of the noise [T, rows, 1] as the model says, and targets [rows, 1]."""
    source, confidence, tails = kind
    factor = rng.uniform(*FACTORS[confidence])
    share = rng.uniform(0.2, 2)  # of the model's own error in the noise
    deviation = np.ones((rows, 1)) if source == "tau" else rng.uniform(0.3, 2, (rows, 1))
    doubt = share * rng.uniform(0.5, 1.5, (rows, 1))
    noise = rng.normal(size=(rows, 1)) if tails == "normal" else rng.standard_t(3, (rows, 1)) / np.sqrt(3)
    targets = doubt * rng.normal(size=(rows, 1)) + deviation * noise
    samples = factor * doubt * rng.normal(size=(SAMPLES, rows, 1))
    return samples, np.broadcast_to(np.square(factor * deviation), samples.shape), targets


def differences(kind: tuple[str, str, str], rows: int, number: int) -> tuple[float, float]:
    """By which calibration raises the loss of fresh rows: the factor, and tau (NaN where there is none)."""
    rng = np.random.default_rng([number, rows, KINDS.index(kind)])
    samples, variances, y = draw(rng, kind, rows + FRESH)
    old, new = samples[:, :rows], samples[:, rows:]
    of_tau = np.nan
    if kind[0] == "tau":
        precision = fit_precision(old, y[:rows])
        of_tau = _mixture_loss(new, y[rows:], precision[0].variance) - _mixture_loss(
            new, y[rows:], _likeliest(old, y[:rows])
        )
        variances = np.broadcast_to(noise_of(precision), samples.shape)
    found = spread(samples, variances, scheme="iid", block=1)
    scaling = VarianceScaling.fit(found.mean[:rows], found.total[:rows], y[:rows])
    mean, total = found.mean[rows:], found.total[rows:]
    before, after = (-stats.norm.logpdf(y[rows:], mean, std).mean() for std in (total, scaling.std(total)))
    return float(after - before), of_tau


def _mixture_loss(samples: Float, y: Float, variance: float) -> float:
    return -float(mixture_log_likelihood(samples[:, :, 0], variance, y[:, 0]).mean())


def _likeliest(samples: Float, y: Float) -> float:
    """Variance of the noise of largest likelihood, by scipy."""
    scale = float(np.log(np.square(samples.mean(axis=0) - y).mean()))
    grid = scale + np.linspace(-8, 3, 45)
    losses = [_mixture_loss(samples, y, float(np.exp(x))) for x in grid]
    at = grid[int(np.argmin(losses))]
    best = optimize.minimize_scalar(
        lambda x: _mixture_loss(samples, y, float(np.exp(x))), bounds=(at - 0.25, at + 0.25), method="bounded"
    )
    return float(np.exp(best.x))


def main() -> None:
    """Print a row for each cell; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", type=int, default=40, help="data sets in a cell")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = Table(
        "noise", "model", "tails", "rows", "factor (nats), 95% interval", "tau (nats), 95% interval"
    )
    ends: dict[str, dict[str, tuple[float, float]]] = {"factor": {}, "tau": {}}
    for kind, rows in itertools.product(KINDS, ROWS):
        found = np.array([differences(kind, rows, number) for number in range(arguments.sets)])
        told: list[str] = []
        for name, column in zip(ends, found.T, strict=True):
            if np.isnan(column).any():
                told.append("")
                continue
            reach = stats.t.ppf(0.975, len(column) - 1) * column.std(ddof=1) / np.sqrt(len(column))
            low, high = float(column.mean() - reach), float(column.mean() + reach)
            ends[name][" ".join((*kind, str(rows)))] = low, high
            told.append(f"{column.mean():+.4f}, {low:+.4f} to {high:+.4f}")
        table.add_row(*kind, str(rows), *told)
    figures: dict[str, Any] = {"data_sets": len(KINDS) * len(ROWS) * arguments.sets}
    for name, cells in ends.items():
        worst, widest = (max(cells, key=lambda cell, end=end: cells[cell][end]) for end in (0, 1))
        figures |= {
            f"{name}_worst_lower_end": cells[worst][0],
            f"{name}_worst_cell": worst,
            f"{name}_worst_upper_end": cells[widest][1],
            f"{name}_worst_upper_cell": widest,
        }
    sure = [high for cell, (_, high) in ends["factor"].items() if cell.startswith("head over") and
            int(cell.split()[-1]) >= 100]  # fmt: skip
    figures["factor_over_confident_upper_end"] = max(sure)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
