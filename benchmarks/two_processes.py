"""Test accuracy of the digits recipe trained by two processes (gloo), beside one process.

    python benchmarks/two_processes.py [--seeds 10] [--epochs N] [--recipe FILE] [--json PATH]

Each seed is trained twice on the same split: by one process, and by two that share every batch. Their dropout
masks differ, so single runs do too; what must not differ is the mean. The noise is the standard error of the
mean of the paired differences. Both go through recipe, training and publishing as `dropserve train` does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from dropserve.project import packaged_stages
from dropserve.store import Store
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare, train


def measure(recipe: Path, overrides: dict[str, int], store: Path) -> tuple[float, float, int, float]:
    """Validation and test accuracy, the best epoch, and seconds."""
    prepared = prepare(load_recipe(recipe, overrides))
    begin = time.perf_counter()
    run, fitted = train(prepared, Store(store))
    seconds = time.perf_counter() - begin
    metrics = run.manifest.metrics
    return metrics["validation_accuracy"], metrics["test_accuracy"], fitted.best.number, seconds


def main() -> None:
    """Train twice for each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="train with the seeds 0 to N-1, at least 3")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--recipe", type=Path, default=packaged_stages() / "training/recipes/digits.toml")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.seeds < 3:
        parser.error("a standard error needs at least 3 seeds")
    rows: list[list[tuple[float, float, int, float]]] = []
    print(f"{'seed':>4}  {'test, one':>9}  {'two':>7}  {'difference':>10}  {'epoch':>9}  {'seconds':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            common = {"training.seed": seed} | ({"training.epochs": options.epochs} if options.epochs else {})
            pair = [
                measure(options.recipe, common | {"training.devices": count}, Path(folder))
                for count in (1, 2)
            ]
            rows.append(pair)
            (_, one, epoch, seconds), (_, two, other_epoch, other_seconds) = pair
            print(
                f"{seed:>4}  {one:>9.4f}  {two:>7.4f}  {two - one:>+10.4f}  {epoch:>4}/{other_epoch:<4}  "
                f"{seconds:>6.1f}/{other_seconds:<6.1f}",
                flush=True,
            )
    found = np.array(rows)  # [seeds, one or two, figures]
    difference = found[:, 1, 1] - found[:, 0, 1]
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    validation = found[:, 1, 0] - found[:, 0, 0]
    print(
        f"mean  {found[:, 0, 1].mean():>8.4f}  {found[:, 1, 1].mean():>7.4f}  {mean:>+10.4f}  "
        f"(standard error {error:.4f}; on validation {validation.mean():+.4f})"
    )
    if options.json:
        figures = {
            "accuracy_one": float(found[:, 0, 1].mean()),
            "accuracy_two": float(found[:, 1, 1].mean()),
            "difference_points": 100 * mean,
            "standard_error_points": 100 * error,
            "difference_in_standard_errors": abs(mean) / error if error else float(mean != 0) * 1e9,
            "worst_loss_points": 100 * (2 * error - mean),
            "validation_difference_points": 100 * float(validation.mean()),
            "seconds_ratio": float(np.median(found[:, 1, 3] / found[:, 0, 3])),
            "seeds": len(rows),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
