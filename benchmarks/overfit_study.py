"""Does dropout beat overfitting? On digits, two tables, and MNIST with 1,000 and with all training images.

    python benchmarks/overfit_study.py [--data DIR] [--only NAME ...] [--docs DIR] [--json PATH]

The study is that of `dropserve overfit`: the recipes as they are shipped, and for MNIST the net
784-512-512-10 (ReLU) for 20 epochs in 32 bits, with 6,000 images to validate on. What was trained is kept
under --results and not trained again. --docs writes the pictures (docs/overfit-NAME.png). The gains are those
of the rate that the validation rows choose, on test rows, in points of accuracy or in the unit of the target;
beside each stands half its 95% interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dropserve.project import Project, packaged_stages
from dropserve.training.overfit.evidence import Evidence, weigh
from dropserve.training.overfit.show import markdown, write_picture
from dropserve.training.overfit.study import Plan, run
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import dataset_title, prepare

HERE = Path(__file__).resolve().parent
SHIPPED = ("digits", "diabetes", "csv")
SEEDS = {"mnist": 3}
SMALL = {"mnist": 1000}
MNIST = {
    "model.arguments.hidden": [512, 512],
    "model.arguments.pieces": 1,
    "split.validation": 0.1,
    "training.epochs": 20,
    "training.batch_size": 128,
    "training.monitor": "loss",
    "training.precision": "32",
}


def study(name: str, data: Path, results: Path, docs: Path | None) -> Evidence:
    """One data set; what is done is read back."""
    if name == "mnist":
        file = load_recipe(HERE / "recipes/mnist.toml", {**MNIST, "data.folder": str(data)})
    else:
        file = load_recipe(packaged_stages() / f"training/recipes/{name}.toml")
    prepared = prepare(file)
    plan = Plan.of(prepared.dataset, SMALL.get(name), SEEDS.get(name, 5))
    cells = run(prepared, plan, results / name / "trained")
    evidence = weigh(cells, classifies=file.recipe.task == "classification")
    title = f"{name}: {type(prepared.model).__name__} on {dataset_title(prepared.dataset)}"
    print(markdown(evidence, title), flush=True)
    if docs:
        write_picture(docs / f"overfit-{name}.png", evidence, title)
    return evidence


def main() -> None:
    """Study what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data/mnist")
    parser.add_argument("--only", action="append", choices=[*SHIPPED, "mnist"], help="one of them; repeat it")
    parser.add_argument("--results", type=Path, default=Project(Path.cwd()).run_dir / "overfit")
    parser.add_argument("--docs", type=Path, help="write the pictures into this folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.only or (*SHIPPED, "mnist"):
        if name == "mnist" and not options.data.is_dir():
            figures["not_run"] = f"no folder {options.data}; give one with --data"
            print(f"mnist: NOT RUN: {figures['not_run']}")
            continue
        evidence = study(name, options.data, options.results, options.docs)
        factor = 100 if evidence.classifies else 1
        for rows, size in zip(evidence.sizes, ("small", "full"), strict=False):
            line = evidence.chosen(rows)
            figures[f"{name}_{size}_gain"] = factor * line.gain.mean
            figures[f"{name}_{size}_gain_half_interval"] = factor * line.gain.half
        figures[f"{name}_sentence"] = evidence.sentence
    if options.only:
        figures["not_run"] = f"a part: {', '.join(options.only)}"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
