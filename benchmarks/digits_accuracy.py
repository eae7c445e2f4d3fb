"""Test accuracy of the digits recipe: the mean over training seeds, the split fixed.

    python benchmarks/digits_accuracy.py [--seeds 5] [--recipe FILE] [--json PATH]

It goes through the recipe, the data, the training and the publishing that `dropserve train` uses, and reads
the accuracy from the published manifest. The recipe's settings were chosen on the validation rows alone.
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

BAR = 0.975


def main() -> None:
    """Train once for each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="train with the seeds 0 to N-1")
    parser.add_argument("--recipe", type=Path, default=packaged_stages() / "training/recipes/digits.toml")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows: list[tuple[float, float, float, float]] = []
    splits: set[str] = set()
    print(f"{'seed':>4}  {'validation':>10}  {'test':>7}  {'epoch':>5}  {'seconds':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            prepared = prepare(load_recipe(options.recipe, {"training.seed": seed}))
            begin = time.perf_counter()
            run, fitted = train(prepared, Store(Path(folder)))
            seconds = time.perf_counter() - begin
            metrics = run.manifest.metrics
            splits.add(str(run.manifest.data["split_sha256"]))
            rows.append(
                (metrics["validation_accuracy"], metrics["test_accuracy"], fitted.best.number, seconds)
            )
            print(
                f"{seed:>4}  {rows[-1][0]:>10.4f}  {rows[-1][1]:>7.4f}  {rows[-1][2]:>5.0f}  {seconds:>7.1f}"
            )
    if len(splits) != 1:
        raise SystemExit("the split moved with the training seed")
    validation, test, _, seconds = np.array(rows).mean(axis=0)
    spread = np.array(rows)[:, 1].std(ddof=1) if len(rows) > 1 else 0.0
    print(f"mean  {validation:>9.4f}  {test:>7.4f}  (deviation of one run {spread:.4f}; bar {BAR})")
    if options.json:
        figures = {
            "accuracy_mean": float(test),
            "accuracy_deviation": float(spread),
            "validation_accuracy_mean": float(validation),
            "train_seconds_mean": float(seconds),
            "seeds": len(rows),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
