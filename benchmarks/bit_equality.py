"""Same question, same answer? One request in two processes, on 1 and 2 threads, alone and among 64 rows.

Six networks are imported, exported and published as a user would. Each answer is then asked for in four
settings, every one in a fresh process: 1 and 2 threads, all 64 rows in one request and each row alone. All
statistics (means, deviations, entropies, mutual information, standard errors) and the masks themselves are
compared with those of the first setting: by their bits on onnxruntime, and as a share of the output's scale
on TorchScript (which is there in fp32 alone), whose every answer is held against onnxruntime's.

    python benchmarks/bit_equality.py [--precision fp32] [--samples 100] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import heart_networks
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import draw
from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.manifest import RunManifest
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Query
from dropserve.store import Store, Stored
from dropserve.training.import_model import import_model

HERE = Path(__file__).parent
ROWS, SEED = 64, 7
Arrays = dict[str, NDArray[Any]]

# Name in the store, class in heart_networks.py, its arguments, a row's shape, task.
MODELS: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("mlp", "Mlp", {}, "10", "classification"),
    ("cnn", "Cnn", {}, "1,8,8", "classification"),
    ("residual", "Residual", {}, "3,6,6", "raw"),
    ("transformer", "Transformer", {"batch_first": False}, "12,16", "classification"),
    ("lstm", "Recurrent", {}, "5,8", "regression"),
    ("selu", "Selu", {}, "10", "regression"),
]
SETTINGS = [(threads, rows) for threads in (1, 2) for rows in (ROWS, 1)]


def publish(root: Path, precision: str) -> None:
    """Import and export the networks into a store."""
    torch.set_num_threads(1)
    store, serving = Store(root / "model_store"), packaged_stages() / "serving"
    stage = Stage(serving / "handler.py", serving / "model-config.yaml")
    for name, cls, arguments, shape, task in MODELS:
        module = heart_networks.build(partial(getattr(heart_networks, cls), **arguments))
        weights = root / f"{name}.safetensors"
        save_file(module.state_dict(), weights)
        spec = f"{HERE / 'heart_networks.py'}:{cls}"
        run = import_model(store, spec, weights, [shape], name=name, task=task, arguments=arguments).run  # type: ignore[arg-type]
        settings = ExportSettings(precision=precision)  # type: ignore[arg-type]  # of the command line's choices
        export_run(store, run if precision == "fp32" else with_rows(store, run), settings, stage)


def with_rows(store: Store, run: Stored[RunManifest]) -> Stored[RunManifest]:
    """The run with drawn rows as if held out: int8 takes its scales from them."""
    (spec,) = run.manifest.signature.inputs
    rows = np.random.default_rng(11).normal(size=(600, *spec.sized())).astype(np.float32)
    with store.staging(run.manifest.name, RunManifest) as staging:
        for name in run.manifest.files:
            target = staging.folder / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(run.path(name).read_bytes())
        np.savez(staging.folder / "validation.npz", **{spec.name: rows})
        return store.publish(staging, run.manifest.model_copy(update={"id": staging.id}))


def answer(root: Path, backend: str, threads: int, rows: int, samples: int, target: Path) -> None:
    """In a process of its own: ask for every row, ``rows`` at a time, and write what comes."""
    store = Store(root / "model_store")
    found: Arrays = {}
    for name, *_ in MODELS:
        version = store.version(name)
        predictor = Predictor(version, backend=backend, threads=threads)  # type: ignore[arg-type]
        (spec,) = version.manifest.signature.inputs
        x = np.random.default_rng(3).normal(size=(ROWS, *spec.sized())).astype(np.float32)
        settings = Settings(samples=samples, seed=SEED)
        queries = [Query({spec.name: x[i : i + rows]}, settings) for i in range(0, ROWS, rows)]
        answers = [predictor.answer([query])[0] for query in queries]
        for mask, values in draw(version.manifest.sites, samples, seed=SEED).items():
            found[f"{name}/masks/{mask}"] = values
        parts = [_statistics(each) for each in answers]
        for key in parts[0]:
            found[f"{name}/{key}"] = np.concatenate([part[key] for part in parts])
    np.savez(target, **found)


def _statistics(result: Any) -> Arrays:
    if isinstance(result, Exception):
        raise result
    found: Arrays = {}
    for output, statistics in result.statistics.items():
        for part in fields(statistics):
            if (value := getattr(statistics, part.name)) is not None:
                found[f"{output}/{part.name}"] = value
    return found


def ask(root: Path, backend: str, threads: int, rows: int, samples: int) -> Arrays:
    """Start such a process and read what it wrote."""
    target = root / f"{backend}-{threads}-{rows}.npz"
    line = [sys.executable, __file__, "--worker", str(root), backend, str(threads), str(rows), str(target)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([*line, "--samples", str(samples)], check=True, env=environment)
    with np.load(target) as arrays:
        return dict(arrays)


def compare(name: str, reference: Arrays, other: Arrays) -> tuple[int, float]:
    """Of one model: how many arrays differ in a bit, and the worst difference as a share of the scale."""
    keys = [key for key in reference if key.startswith(f"{name}/") and "/masks/" not in key]
    differ = sum(not same_bits(reference[key], other[key]) for key in keys)
    scale = max(float(np.abs(reference[key]).max()) for key in keys if key.endswith("/mean"))
    worst = max(float(np.abs(reference[key] - other[key]).max()) / scale for key in keys)
    return differ, worst


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are equal to the last bit, the sign of zero included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def measure(root: Path, samples: int, backends: Sequence[str]) -> tuple[Table, dict[str, Any]]:
    """All settings of the backends against the first."""
    results = {(b, *s): ask(root, b, *s, samples) for b in backends for s in SETTINGS}
    reference = results["onnx", *SETTINGS[0]]
    others = {key: found for key, found in results.items() if found is not reference}
    grid = Table(box=None, pad_edge=False, header_style="dim", title=f"{ROWS} rows, {samples} samples")
    for column in ("", "statistics", "onnx: arrays that differ", "torchscript: worst, of scale"):
        grid.add_column(column, justify="right" if column else "left")
    unequal, script = 0, 0.0
    figures: dict[str, Any] = {}
    for name, *_ in MODELS:
        compared = {key: compare(name, reference, found) for key, found in others.items()}
        differ = sum(count for (backend, *_), (count, _) in compared.items() if backend == "onnx")
        scripts = [error for (backend, *_), (_, error) in compared.items() if backend == "torchscript"]
        worst = max(scripts, default=0.0)
        unequal, script = unequal + differ, max(script, worst)
        kept = sum(key.startswith(f"{name}/") and "/masks/" not in key for key in reference)
        grid.add_row(name, str(kept), str(differ), f"{worst:.1e}")
        figures[f"{name}_onnx_arrays_that_differ"] = differ
        figures[f"{name}_torchscript_relative_error"] = worst
    figures |= {
        "onnx_bit_equal": unequal == 0,
        "torchscript_relative_error": script,
        "masks_bit_equal": _masks_equal(reference, others),
    }
    return grid, figures


def _masks_equal(reference: Arrays, others: Mapping[Any, Arrays]) -> bool:
    masks = [key for key in reference if "/masks/" in key]
    return all(same_bits(reference[key], found[key]) for found in others.values() for key in masks)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=100, help="Monte Carlo samples of each answer")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", nargs=5, metavar="X", help=argparse.SUPPRESS)
    parser.add_argument(
        "--precision", choices=["fp32", "fp16", "int8"], default="fp32", help="of the ONNX graphs"
    )
    options = parser.parse_args()
    if options.worker:
        root, backend, threads, rows, target = options.worker
        answer(Path(root), backend, int(threads), int(rows), options.samples, Path(target))
        return
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder), options.precision)
        backends = ("onnx", "torchscript") if options.precision == "fp32" else ("onnx",)
        grid, found = measure(Path(folder), options.samples, backends)
    console = Console()
    console.print(grid)
    script = f"TorchScript within {found['torchscript_relative_error']:.1e} of scale of it (bar 1e-6); "
    console.print(
        f"{options.precision}, two thread counts, 64 rows together and one by one, each in its own process: "
        f"onnxruntime {'bit-equal' if found['onnx_bit_equal'] else 'NOT bit-equal'}; "
        f"{script if 'torchscript' in backends else ''}masks "
        f"{'bit-equal' if found['masks_bit_equal'] else 'NOT bit-equal'}",
        highlight=False,
    )
    if options.json:
        options.json.write_text(json.dumps({"figures": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
