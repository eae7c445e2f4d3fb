"""Are calibrated answers as good as plain ones where data are few? Real nets, trained on some hundred rows.

- ``wine``: scikit-learn's 178 wines, the README's model and recipe, the default split: 27 rows calibrate.
  There are no more wines, so the fresh rows are the 27 test rows.
- ``digits``: 300 images of three of scikit-learn's digits, the recipe of digits.toml, the default split: 45
  rows calibrate. The fresh rows are the test rows and all other images of those digits, about 280.

Each seed draws the rows, the split and the training anew. Likelihood losses are of fresh rows, of the answer
without dropout (plain), of the Monte Carlo mean, and of that mean calibrated on the held-out rows.

    python benchmarks/small_data_calibration.py [--seeds 10] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn import datasets

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.program import masked_program
from dropserve.dropout.statistics import softmax
from dropserve.model import ServedModel, set_mode
from dropserve.project import packaged_stages
from dropserve.signature import TensorSpec
from dropserve.training.fit import fit
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare
from dropserve.uncertainty.calibration import Temperature
from dropserve.uncertainty.metrics import nll

Float = NDArray[np.float64]
Whole = NDArray[np.int64]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, features, classes, width=32, p=0.3):
        super().__init__()
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, classes)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        x = self.dropout(torch.relu(self.first(x)))
        x = x + self.dropout(torch.relu(self.second(x)))
        return self.last(x)
"""
RECIPES = {
    "wine": """
name = "wine"
task = "classification"
[model]
class = "net.py:Net"
arguments = { features = 13, classes = 3 }
[data]
source = "npz"
file = "rows.npz"
[training]
epochs = 60
batch_size = 16
""",
    "digits": f"""
name = "digits"
task = "classification"
[model]
class = "{packaged_stages() / "training/models.py"}:MLP"
arguments = {{ inputs = 64, outputs = 3, hidden = [512, 512], dropout = 0.5, input_dropout = 0.2 }}
[data]
source = "npz"
file = "rows.npz"
scaling = "global"
[training]
epochs = 60
batch_size = 64
patience = 15
[optimiser]
name = "adamw"
learning_rate = 1e-3
weight_decay = 0.1
schedule = "cosine"
""",
}


@dataclass(frozen=True)
class Answers:
    """Probabilities [B, C] without dropout and of Monte Carlo, and the truth [B], of rows not trained on."""

    plain: Float
    mean: Float
    truth: Whole


def rows_of(data: str, seed: int) -> tuple[Float, Whole, Float, Whole]:
    """Rows of a data set for training, and those that are left, with their classes."""
    if data == "wine":
        x, y = datasets.load_wine(return_X_y=True)
        count = len(x)
    else:
        x, y = datasets.load_digits(return_X_y=True)
        chosen = np.random.default_rng([seed, 1]).permutation(10)[:3]
        kept = np.isin(y, chosen)
        x, y = x[kept], np.searchsorted(np.sort(chosen), y[kept])
        count = 300
    mixed = np.random.default_rng(seed).permutation(len(x))
    first, rest = mixed[:count], mixed[count:]
    return x[first], y[first], x[rest], y[rest]


def answers_of(data: str, seed: int, recipes: Mapping[str, str] = RECIPES) -> tuple[Answers, Answers]:
    """Train once; the answers to the rows that calibrate and to fresh rows."""
    x, y, rest, rest_truth = rows_of(data, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(NET, encoding="utf-8")
        (folder / "recipe.toml").write_text(recipes[data], encoding="utf-8")
        np.savez(folder / "rows.npz", x=x, y=y)
        file = load_recipe(folder / "recipe.toml", {"training.seed": seed, "split.seed": seed})
        prepared = prepare(file)
        fitted = fit(prepared.build, prepared.dataset, file.recipe)
    dataset = prepared.dataset
    (spec,) = prepared.signature.inputs
    served = set_mode(ServedModel(fitted.model, dataset.preprocessing, {spec.name: spec.sized()}))
    split, table = dataset.split, dataset.table
    parts = [
        (table.features[split.validation], table.target[split.validation]),
        (
            np.concatenate([table.features[split.test], rest.astype(table.features.dtype)]),
            np.concatenate([table.target[split.test], rest_truth]),
        ),
    ]
    calibration, fresh = (ask(served, spec, rows.astype(np.float32), truth) for rows, truth in parts)
    return calibration, fresh


def ask(served: torch.nn.Module, spec: TensorSpec, rows: NDArray[np.float32], truth: Any) -> Answers:
    """What a server answers at its default settings."""
    program = masked_program(served, [spec])
    names = (spec.name, *program.mask_names)

    def run(fed: Mapping[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return {"output": program(*(torch.from_numpy(fed[name]) for name in names))[0].numpy()}

    logits = MonteCarlo(program.sites, run, steady=False).samples({spec.name: rows}, Settings())["output"]
    with torch.no_grad():
        plain = served(torch.from_numpy(rows)).numpy()
    return Answers(
        softmax(plain.astype(np.float64)),
        softmax(logits.astype(np.float64)).mean(axis=0),
        np.asarray(truth, np.int64),
    )


def main() -> None:
    """Print a row for each training; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="train with the seeds 0 to N-1")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    figures: dict[str, Any] = {"seeds": arguments.seeds}
    for data in RECIPES:
        table = Table("seed", "errors", "temperature", "plain", "Monte Carlo", "calibrated", title=data)
        losses = np.empty((arguments.seeds, 3))
        for seed in range(arguments.seeds):
            calibration, fresh = answers_of(data, seed)
            found = Temperature.fit(calibration.mean, calibration.truth, calibration.plain)
            made = (fresh.plain, fresh.mean, found.probabilities(fresh.mean))
            losses[seed] = [nll(p, fresh.truth) for p in made]
            errors = int((calibration.mean.argmax(axis=1) != calibration.truth).sum())
            table.add_row(
                str(seed),
                f"{errors} of {len(calibration.truth)}",
                f"{found.value:.3f}",
                *(f"{loss:.4f}" for loss in losses[seed]),
            )
        table.add_row("mean", "", "", *(f"{loss:.4f}" for loss in losses.mean(axis=0)))
        console.print(table)
        over_plain, over_mean = losses[:, 2] - losses[:, 0], losses[:, 2] - losses[:, 1]
        figures |= {
            f"{data}_over_plain": float(over_plain.mean()),
            f"{data}_over_plain_worst": float(over_plain.max()),
            f"{data}_over_monte_carlo": float(over_mean.mean()),
            f"{data}_over_monte_carlo_worst": float(over_mean.max()),
        }
    console.print(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
