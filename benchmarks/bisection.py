"""Discrepancies planted in exported files: does a failed check name the place?

python benchmarks/bisection.py [--json PATH] [--only WORD]

Each plant of tests/zoo/planted changes one file after its export (or what loads it). Parity is then run
as an export runs it. A plant counts as named if the check that must fail does, and its finding gives the
first tensor that the plant reaches and the module to which it belongs. Sound files are bisected too, as if
they had failed: whatever is named there is false.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

import planted  # noqa: E402  # beside the tests

from dropserve.export.artefacts import Artefacts  # noqa: E402  # torch and onnx take a while: after the path
from dropserve.export.bisection import Bisector, Failure  # noqa: E402
from dropserve.export.cases import masked_cases, plain_cases  # noqa: E402
from dropserve.export.onnx import LEVELS  # noqa: E402
from dropserve.export.parity import parity  # noqa: E402
from dropserve.export.settings import ExportSettings  # noqa: E402
from dropserve.export.subject import Subject  # noqa: E402


def named(plant: planted.Plant, subject: Subject, sound: Artefacts) -> tuple[bool, dict[str, Any], str]:
    """Whether a plant is named, the finding, and the place."""
    with tempfile.TemporaryDirectory() as folder, plant.around():
        report = parity(subject, plant.planted(sound, Path(folder)), plant.settings)
    record = next(check for check in report.checks if check.name == plant.check)
    finding = report.figures[plant.check].get("bisection", {})
    places = [part.partition(" at ")[0] for part in record.where.split(", ")]
    key = "node" if plant.file.endswith(".ts") else "tensor"
    right = finding.get(key) == plant.first(sound) and plant.place in places
    return record.verdict == "failed" and right, finding, record.where


def sound_files(subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> tuple[int, int]:
    """Bisect files that agree: how many bisections, and how many of them name a place."""
    bisector = Bisector(subject, artefacts, settings)
    case = plain_cases(subject, settings)[0]
    graphs = [f"onnxruntime {level}" for level in LEVELS] + ["TorchScript"]
    failures = [Failure(graph, case.inputs, case.expected) for graph in graphs]
    if artefacts.program is not None:
        masked = masked_cases(artefacts.program, artefacts.masks, [case])[0]
        failures += [Failure(graph, masked.tiled(), masked.flat) for graph in graphs]
        failures.append(Failure("head", case.inputs, masked.expected, masked.masks))
    findings = [bisector.find(failure) for failure in failures]
    for finding in findings:
        if finding.tensor or "could not be done" in finding.note:
            print(f"  {subject.name}: falsely {finding.evidence()}")
    return len(findings), sum(bool(f.tensor) or "could not be done" in f.note for f in findings)


def main() -> None:
    """Run all, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="", help="plants with this word in their description or model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plants = [plant for plant in planted.PLANTS if options.only in f"{plant.what} {plant.model}"]
    exported: dict[tuple[str, bool, int], tuple[Subject, Artefacts, ExportSettings]] = {}
    seconds, verdicts, files = list[float](), Counter[str](), set[str]()
    with contextlib.ExitStack() as stack:
        for plant in plants:
            key = plant.model, plant.exporting, plant.opset
            if key not in exported:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                exported[key] = (*plant.export(folder), plant.settings)
            start = time.perf_counter()
            right, finding, where = named(plant, *exported[key][:2])
            seconds.append(time.perf_counter() - start)
            verdicts["named" if right else "not named"] += 1
            files.add(plant.file)
            print(f"{'named' if right else 'NOT':6}{plant.model:11}{plant.file:13}{plant.what}")
            print(f"{'':30}at {where}: {finding.get('gap', {}).get('looks', '')}; {finding.get('cause', '')}")
        counts = [sound_files(*made) for (_, wrong, _), made in exported.items() if not wrong]
    figures = {
        "planted": len(plants),
        "named": verdicts["named"],
        "not_named": verdicts["not named"],
        "sound_bisections": sum(count for count, _ in counts),
        "sound_named": sum(false for _, false in counts),
        "kinds_of_file": len(files),
        "parity_and_bisection_median_seconds": statistics.median(seconds),
    }
    for name, value in figures.items():
        print(f"{name:40}{value:8.2f}" if isinstance(value, float) else f"{name:40}{value:8}")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
