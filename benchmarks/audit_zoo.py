"""The audit over a zoo of models, over random models with and without one trap, and its time.

python benchmarks/audit_zoo.py [--json PATH] [--composed N] [--eager]

A broken model counts as missed unless the check that its author names refuses it at the line its author
marks. A correct model is exported as well, where torch can, and counts as refused if any check fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

import composed  # noqa: E402  # beside the tests
import zoo  # noqa: E402

from dropserve.export.audit import run_audit  # noqa: E402  # torch and onnx take a while: after the path
from dropserve.export.audit.full import full_audit  # noqa: E402
from dropserve.export.subject import Subject  # noqa: E402
from dropserve.manifest import CheckRecord  # noqa: E402
from dropserve.signature import parse_input  # noqa: E402
from dropserve.training.recipe_file import load_recipe  # noqa: E402
from dropserve.training.run import prepare  # noqa: E402

Figures = dict[str, float | int]


def refusals(records: list[CheckRecord]) -> list[CheckRecord]:
    """What failed."""
    return [record for record in records if record.verdict == "failed"]


def broken_models() -> Figures:
    """Audit every broken model."""
    animals, missed, misplaced, seconds = zoo.broken(), 0, 0, list[float]()
    for animal in animals:
        subject = animal.subject()
        start = time.perf_counter()
        failed = refusals(run_audit(subject, zoo.SETTINGS, rebuild=animal.build))
        seconds.append(time.perf_counter() - start)
        named = [record for record in failed if record.name == animal.check]
        right = bool(named) and named[0].where.endswith(animal.places)
        missed += not failed
        misplaced += bool(failed) and not right
        if not right:
            found = [f"{record.name} at {record.where}" for record in failed]
            print(f"  {animal.name}: expected {animal.check} at {animal.places}, found {found}")
    return {
        "broken": len(animals),
        "broken_missed": missed + misplaced,
        "broken_not_refused": missed,
        "broken_wrong_place": misplaced,
        "broken_audit_median_seconds": statistics.median(seconds),
    }


def correct_models(*, graphs: bool) -> Figures:
    """Audit every correct model, with its graphs where it can be exported."""
    animals, refused, exported, seconds = zoo.correct(), 0, 0, list[float]()
    for animal in animals:
        subject = animal.subject()
        start = time.perf_counter()
        records = run_audit(subject, zoo.SETTINGS, rebuild=animal.build, stages=["eager"])
        seconds.append(time.perf_counter() - start)
        with_graphs = graphs and bool(animal.formats)
        settings = animal.settings() if animal.formats else zoo.SETTINGS
        records += full_audit(subject, settings, rebuild=animal.build, graphs=with_graphs)
        exported += with_graphs
        failed = refusals(records)
        refused += bool(failed)
        for record in failed:
            print(f"  {animal.name}: {record.name}: {record.evidence} at {record.where}")
    return {
        "correct": len(animals),
        "correct_refused": refused,
        "correct_exported": exported,
        "correct_eager_median_seconds": statistics.median(seconds),
        "correct_eager_worst_seconds": max(seconds),
    }


def composed_models(count: int) -> Figures:
    """Audit random models without and with one trap in them."""
    failures = 0
    for seed in range(1000, 1000 + count):
        trap = composed.TRAPS[seed % len(composed.TRAPS)]
        sound, unsound = (refusals(_audit_composed(seed, part)) for part in (None, trap))
        flipped = not sound and bool(unsound) and unsound[0].where.endswith(composed.places(trap))
        failures += not flipped
        if not flipped:
            found = [f"{record.name} at {record.where}" for record in (*sound, *unsound)]
            print(f"  seed {seed}, {trap.__name__}: {found}")
    return {"composed": count, "composed_failures": failures}


def _audit_composed(seed: int, trap: type[torch.nn.Module] | None) -> list[CheckRecord]:
    model = composed.compose(seed, trap).eval()
    return run_audit(Subject("composed", model, (parse_input(str(composed.WIDTH)),)), zoo.SETTINGS)


def digits() -> Figures:
    """Time the audit of the model of the digits recipe."""
    prepared = prepare(load_recipe(ROOT / "training" / "recipes" / "digits.toml"))
    subject = Subject("digits", prepared.build().eval(), prepared.signature.inputs)
    times: dict[str, float] = {}
    for name, graphs in (("digits_eager_seconds", False), ("digits_audit_seconds", True)):
        start = time.perf_counter()
        records = full_audit(subject, zoo.SETTINGS, rebuild=prepared.build, graphs=graphs)
        times[name] = time.perf_counter() - start
        if refusals(records):
            raise SystemExit(f"the digits model was refused: {refusals(records)}")
    return {**times, "digits_checks": len(records)}


def main() -> None:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--composed", type=int, default=150, help="random models, each with and without a trap"
    )
    parser.add_argument("--eager", action="store_true", help="do not export the correct models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    zoo.broken()[0].subject()
    run_audit(zoo.correct()[0].subject(), zoo.SETTINGS)  # what torch loads late is nobody's time
    figures: Figures = {}
    for part in (
        digits,
        broken_models,
        lambda: correct_models(graphs=not options.eager),
        lambda: composed_models(options.composed),
    ):
        found = part()
        figures |= found
        for name, value in found.items():
            print(
                f"{name:32}{value:10.3f}" if isinstance(value, float) else f"{name:32}{value:10}", flush=True
            )
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
