"""MNIST without convolutions: test error of a perceptron with dropout, and of the same without, over seeds.

    python benchmarks/mnist_error.py [--data DIR] [--seeds 3] [--epochs N] [--hidden N] [--json PATH]

It goes through the recipe (benchmarks/recipes/mnist.toml), the training and the measuring of
`dropserve train`. Test images choose nothing: the last epoch is kept. A training goes on from
its last finished epoch after an interruption, and what is done is kept under --results. One takes some 12
minutes of a core that multiplies in bfloat16, longer on another. Fewer epochs or units are
labelled, and are not the promised figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dropserve.project import Project
from dropserve.store import Store
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import checkpoint_of, prepare, train
from dropserve.training.whole_files import read_json, write_whole

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipes/mnist.toml"
WAYS = {"dropout": {}, "plain": {"model.arguments.dropout": 0.0, "model.arguments.input_dropout": 0.0}}


def one(overrides: dict[str, Any], folder: Path) -> dict[str, float]:
    """One training: errors in percent, and seconds of this process."""
    prepared = prepare(load_recipe(RECIPE, overrides))
    checkpoint = checkpoint_of(prepared, folder)
    path = checkpoint.path.with_suffix(".json")
    known = read_json(path)
    if known is not None:
        return known
    before = checkpoint.read()
    spent = sum(row.seconds for row in before.curve) if before else 0.0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as store:
        run, fitted = train(prepared, Store(Path(store)), checkpoint=checkpoint)
    metrics = run.manifest.metrics
    result = {
        "test_error": 100 * (1 - metrics["test_accuracy"]),
        "validation_error": 100 * (1 - metrics["validation_accuracy"]),
        "best_epoch": float(fitted.best.number),
        "seconds": time.perf_counter() - begin + spent,
    }
    write_whole(path, result)
    return result


def main() -> None:
    """Train with and without dropout for each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/mnist")
    parser.add_argument("--seeds", type=int, default=3, help="train with the seeds 0 to N-1")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--hidden", type=int, help="units a layer, in place of the recipe's")
    parser.add_argument("--results", type=Path, default=Project(Path.cwd()).run_dir / "bench" / "mnist")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    changed: dict[str, Any] = {"data.folder": str(options.data)}
    if options.epochs:
        changed["training.epochs"] = options.epochs
    if options.hidden:
        changed["model.arguments.hidden"] = [options.hidden] * 2
    figures: dict[str, Any] = {}
    if not options.data.is_dir():
        figures["not_run"] = f"no folder {options.data}; give one with --data"
    else:
        print(f"{'':<10}{'seed':>5}{'test %':>9}{'valid. %':>10}{'epoch':>7}{'minutes':>9}", flush=True)
        for way, overrides in WAYS.items():
            rows: list[dict[str, float]] = []
            for seed in range(options.seeds):
                rows.append(one({**changed, **overrides, "training.seed": seed}, options.results))
                row = rows[-1]
                print(
                    f"{way:<10}{seed:>5}{row['test_error']:>9.2f}{row['validation_error']:>10.2f}"
                    f"{row['best_epoch']:>7.0f}{row['seconds'] / 60:>9.1f}",
                    flush=True,
                )
            errors = np.array([row["test_error"] for row in rows])
            figures[f"{way}_error"] = float(errors.mean())
            figures[f"{way}_minutes"] = sum(row["seconds"] for row in rows) / 60 / len(rows)
        print(", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
        if options.epochs or options.hidden or options.seeds < 3:
            figures["not_run"] = "a smaller setting than the promised one"
    if "not_run" in figures:
        print(f"NOT RUN: {figures['not_run']}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
