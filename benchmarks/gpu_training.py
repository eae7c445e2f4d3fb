"""Seconds per epoch and accuracy of trainings on this machine's CPU and on its GPU, in 32 bits and bfloat16.

    python benchmarks/gpu_training.py [--data DIR] [--seeds 5] [--epochs 4] [--wide 4096] [--json PATH]

Three trainings, from small to wide: the recipe `digits` as it stands; MNIST by benchmarks/recipes/mnist.toml
with fewer epochs; and two epochs of the same with --wide units a layer. Each goes through recipe, training
and publishing as `dropserve train` does, on all cores of the CPU and on one GPU. Seconds are the median over
epochs, validation included, without the first one, in which a GPU warms up. Digits is trained with several
seeds; the noise of a difference in accuracy is the standard error of the mean of the paired differences. What
the GPU has trained (but for the wide net, whose files are large) is exported: parity is the greatest
difference, as a share of the output's scale, of any exported file from the eager model. Without a CUDA device
nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dropserve.export.archive import Stage
from dropserve.export.pipeline import Report, export_run
from dropserve.export.settings import read_settings
from dropserve.manifest import RunManifest
from dropserve.project import packaged_stages
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare, train

HERE = Path(__file__).resolve().parent
STAGES = packaged_stages()
WAYS = {
    "cpu": {"training.device": "cpu", "training.precision": "32"},
    "gpu_32": {"training.device": "cuda", "training.precision": "32"},
    "gpu_bf16": {"training.device": "cuda", "training.precision": "bf16-mixed"},
}


@dataclass(frozen=True)
class Case:
    """What is trained."""

    name: str
    recipe: Path
    changed: dict[str, Any]
    seeds: int = 1
    exports: bool = True


@dataclass
class Measured:
    """Seconds an epoch and test accuracy of each seed."""

    seconds: list[float] = field(default_factory=list[float])
    accuracy: list[float] = field(default_factory=list[float])


def measure(case: Case, way: str, store: Store) -> tuple[Measured, Stored[RunManifest]]:
    """Train with each seed; the last run is returned too."""
    found, runs = Measured(), list[Stored[RunManifest]]()
    for seed in range(case.seeds):
        prepared = prepare(load_recipe(case.recipe, {**case.changed, **WAYS[way], "training.seed": seed}))
        run, fitted = train(prepared, store)
        runs.append(run)
        found.seconds.append(float(np.median([row.seconds for row in fitted.curve[1:]])))
        found.accuracy.append(run.manifest.metrics["test_accuracy"])
    return found, runs[-1]


def parity(store: Store, run: Stored[RunManifest]) -> float:
    """The greatest relative difference of any exported file from the eager model."""
    report = Report()
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    export_run(store, run, read_settings(STAGES / "export/checks.toml"), stage, report)
    return max(float(figures["max"]) for figures in report.parity.values())


def compare(case: Case) -> dict[str, float]:
    """Train in every way, print a line for each, and give the figures."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        store, cpu = Store(Path(folder)), Measured()
        for way in WAYS:
            found, run = measure(case, way, store)
            seconds, accuracy = float(np.mean(found.seconds)), 100 * float(np.mean(found.accuracy))
            figures |= {f"{case.name}_{way}_seconds": seconds, f"{case.name}_{way}_accuracy": accuracy}
            line = f"{case.name:<12}{way:<10}{seconds:>10.4f} s{accuracy:>9.2f} %"
            if way == "cpu":
                cpu = found
                print(line, flush=True)
                continue
            difference = 100 * (np.array(found.accuracy) - np.array(cpu.accuracy))
            ratio, exported = float(np.mean(cpu.seconds)) / seconds, ""
            figures |= {
                f"{case.name}_{way}_speedup": ratio,
                f"{case.name}_{way}_points": float(difference.mean()),
            }
            if case.exports:
                worst = figures[f"{case.name}_{way}_parity"] = parity(store, run)
                exported = f", parity {worst:.2g}"
            noise = ""
            if len(difference) > 1:
                error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
                figures[f"{case.name}_{way}_points_error"] = error
                noise = f" (standard error {error:.2f})"
            print(
                f"{line}{ratio:>8.2f} x{difference.mean():>+8.2f} points{noise}{exported}",
                flush=True,
            )
    return figures


def write(figures: dict[str, Any], path: Path | None) -> None:
    """Write what has been measured so far."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Compare what there is data for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/mnist")
    parser.add_argument("--seeds", type=int, default=5, help="of digits: 0 to N-1")
    parser.add_argument("--epochs", type=int, default=4, help="of MNIST, at least 2")
    parser.add_argument("--wide", type=int, default=4096, help="units a layer of the wide net")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    if options.epochs < 2 or options.seeds < 1:
        parser.error("expected at least 2 epochs and 1 seed")
    figures: dict[str, Any] = {}
    if not torch.cuda.is_available():
        figures["not_run"] = f"torch {torch.__version__} sees no CUDA device here"
    else:
        gpu, threads = torch.cuda.get_device_name(), torch.get_num_threads()
        print(f"{gpu}, torch {torch.__version__}; the CPU with {threads} threads", flush=True)
        figures |= {"gpu": gpu, "torch": torch.__version__, "threads": threads}
        cases = [Case("digits", STAGES / "training/recipes/digits.toml", {}, options.seeds)]
        if options.data.is_dir():
            fewer = {"data.folder": str(options.data), "training.epochs": options.epochs}
            wide = {"training.epochs": 2, "model.arguments.hidden": [options.wide] * 2}
            mnist = HERE / "recipes/mnist.toml"
            cases += [Case("mnist", mnist, fewer), Case("mnist_wide", mnist, fewer | wide, exports=False)]
        else:
            why = f"no folder {options.data}; give one with --data"
            keys = [
                f"{name}_{way}_speedup" for name in ("mnist", "mnist_wide") for way in WAYS if way != "cpu"
            ]
            figures["not_run"] = dict.fromkeys(keys, why)
            print(f"NOT RUN: mnist: {why}")
        for case in cases:
            figures |= compare(case)
            write(figures, options.json)
    if isinstance(figures.get("not_run"), str):
        print(f"NOT RUN: {figures['not_run']}")
    write(figures, options.json)


if __name__ == "__main__":
    main()
