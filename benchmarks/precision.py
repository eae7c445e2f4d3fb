"""What do fp16 and int8 cost, and what do they bring? Six models, and two of a size worth converting.

Each is trained on scikit-learn's handwritten digits, resampled to the shape that it takes (a sequence of
rows, three channels, principal components); four of ten rows are held out. Then it is exported three times,
as `dropserve export` does: half of the held-out rows set the scales of int8, the others judge. Sizes are of
the files: the deterministic graph, and trunk and head together. Times are of the processor, one thread, as
served: the deterministic answer and T=50 Monte Carlo samples, at 1 and 64 rows; the precisions take turns
within a round, and medians are taken. Parity is the greatest and the root mean square difference from fp32 as
a share of the output's scale, the Monte Carlo one sample by sample under the same masks.

Last, what static scales are for: how far large batch-mates move a row's answer under onnxruntime's dynamic
quantisation, and under ours.

    python benchmarks/precision.py [--rounds 9] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import heart_networks
import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.console import Console
from rich.table import Table
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.rows import Steady
from dropserve.export.artefacts import HEAD, MODEL, TRUNK, Artefacts, build
from dropserve.export.metadata import without_notes
from dropserve.export.onnx import OnnxProgram
from dropserve.export.precision import Held, judge, lower, row_quanta
from dropserve.export.precision.independence import rows_are_independent
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.serving.graphs import OnnxGraph
from dropserve.signature import parse_input

Array = NDArray[Any]
PRECISIONS = ("fp32", "fp16", "int8")
SAMPLES = 50
EPOCHS, BATCH = 40, 32
HARD = (3, 8, 5, 9, 2, 7, 1, 0, 6, 4)  # digits, those that look alike first


def wide_mlp() -> nn.Module:
    """512 units twice."""
    return nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(512, 10),
    )  # fmt: skip


def wide_cnn() -> nn.Module:
    """32 and 64 channels."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


# Name, how to build it, a row's shape, classes.
MODELS: list[tuple[str, Callable[[], nn.Module], str, int]] = [
    ("MLP", heart_networks.Mlp, "10", 5),
    ("CNN, Dropout2d, BatchNorm", heart_networks.Cnn, "1,8,8", 4),
    ("residual CNN", heart_networks.Residual, "3,6,6", 3),
    ("AlphaDropout, SELU", heart_networks.Selu, "10", 2),
    ("Transformer, batch second", partial(heart_networks.Transformer, batch_first=False), "12,16", 3),
    ("LSTM", heart_networks.Recurrent, "5,8", 2),
    ("wide MLP", wide_mlp, "64", 10),
    ("wide CNN", wide_cnn, "1,14,14", 10),
]


def digits(shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    """Handwritten digits of some classes as rows of a shape, and their class."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, HARD[:classes])
    images = images[chosen].reshape(-1, 8, 8) / 16 - 0.3
    target = np.array([HARD.index(label) for label in labels[chosen]])
    if shape == (64,):
        rows = images.reshape(-1, 64)
    elif len(shape) == 1:
        found = PCA(shape[0], random_state=0).fit_transform(images.reshape(-1, 64))
        rows = found / found.std()
    else:
        height, width = shape[-2:]
        rows = np.stack([zoom(image, (height / 8, width / 8), order=1) for image in images])
        if len(shape) == 3:
            channels = [rows, *np.gradient(rows, axis=(1, 2))][: shape[0]]
            rows = np.stack(channels, axis=1)
    return np.ascontiguousarray(rows, np.float32), target


def trained(make: Callable[[], nn.Module], rows: Array, target: Array) -> nn.Module:
    """A network fitted with dropout on, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make().train()
        optimiser = torch.optim.Adam(module.parameters(), 3e-3, weight_decay=1e-4)
        x, y = torch.tensor(rows), torch.tensor(target)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(x)).split(BATCH):
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(x[index]), y[index]).backward()
                optimiser.step()
    return module.eval()


@dataclass
class Result:
    """One model in one precision; times in microseconds of processor time."""

    model_kib: float
    mc_kib: float
    accuracy: float
    mc_accuracy: float
    plain: tuple[float, float] = (0.0, 0.0)
    mc: tuple[float, float] = (0.0, 0.0)
    largest: float = 0.0
    typical: float = 0.0
    mc_largest: float = 0.0
    failed: int = 0


def kib(made: Artefacts, *parts: str) -> float:
    """Size of some files of a model."""
    return sum(made.paths[part].stat().st_size for part in parts if part in made.paths) / 1024


class Served:
    """A model as a server runs it, on one thread."""

    def __init__(self, made: Artefacts, quanta: dict[str, int]) -> None:
        self.plain = Steady(OnnxGraph(made.paths[MODEL]), least=quanta[MODEL])
        head = OnnxGraph(made.paths[HEAD])
        trunk = OnnxGraph(made.paths[TRUNK]) if TRUNK in made.paths else None
        fixed = set(head.input_names) - {spec.name for spec in made.masks}
        self.engine = MonteCarlo(made.sites, head, trunk, head_inputs=fixed,
                                 least_quanta=(quanta[HEAD], quanta.get(TRUNK, 1)))  # fmt: skip

    def calls(self, x: Array) -> list[Callable[[], object]]:
        """The deterministic answer and the samples."""
        fed = {"input": x}
        return [lambda: self.plain(fed), lambda: self.engine.samples(fed, Settings(samples=SAMPLES))]


def timed(served: dict[str, Served], x: Array, rounds: int) -> dict[str, list[float]]:
    """Medians, in microseconds, of both kinds of answer."""
    calls = {precision: one.calls(x) for precision, one in served.items()}
    taken: dict[tuple[str, int], list[float]] = {(p, kind): [] for p in calls for kind in range(2)}
    repeat: dict[tuple[str, int], int] = {}
    for precision, kind in taken:
        call = calls[precision][kind]
        for _ in range(5):
            call()
        start = time.perf_counter()
        call()
        repeat[precision, kind] = max(1, min(200, int(0.02 / max(1e-6, time.perf_counter() - start))))
    for _ in range(rounds):
        for (precision, kind), times in taken.items():
            call = calls[precision][kind]
            start = time.process_time()
            for _ in range(repeat[precision, kind]):
                call()
            times.append((time.process_time() - start) / repeat[precision, kind] * 1e6)
    return {p: [median(taken[p, kind]) for kind in range(2)] for p in calls}


def measure(
    make: Callable[[], nn.Module], shape: str, classes: int, rounds: int
) -> tuple[dict[str, Result], dict[str, float]]:
    """One model in all precisions; and how far large batch-mates move its rows."""
    spec = parse_input(shape)
    rows, target = digits(spec.sized(), classes)
    order = np.random.default_rng(0).permutation(len(rows))
    training, held_out = np.split(order, [int(0.6 * len(rows))])
    module = trained(make, rows[training], target[training])
    subject = Subject("model", module, (spec,), {"input": rows[held_out]})
    held = Held.of(subject, target[held_out])
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as root:
        settings = ExportSettings(formats=("onnx",))
        made = {"fp32": build(subject, Path(root), settings)}
        for path in made["fp32"].paths.values():  # as it is published
            graph = onnx.load(path)
            without_notes(graph)
            path.write_bytes(graph.SerializeToString())
        for precision in PRECISIONS[1:]:
            folder = Path(root) / precision
            folder.mkdir()
            chosen = settings.model_copy(update={"precision": precision})
            made[precision] = lower(made["fp32"], held, folder, chosen)
            found = judge(made["fp32"], made[precision], held, chosen, "classification")
            figures = found.figures
            accuracy = figures["precision-accuracy"]
            results.setdefault("fp32", result(made["fp32"], accuracy, "fp32"))
            results[precision] = one = result(made[precision], accuracy, "lowered")
            one.largest, one.typical = figures["precision-parity"]["max"], figures["precision-parity"]["rms"]
            one.mc_largest = figures["precision-monte-carlo"]["max"]
            one.failed = sum(check.verdict == "failed" for check in found.checks)
        quanta = row_quanta(made["fp32"], held.judging)
        served = {precision: Served(one, quanta) for precision, one in made.items()}
        times = [timed(served, rows[held_out][:count], rounds) for count in (1, 64)]
        moved = {
            "dynamic": mates_move(dynamic(made["fp32"].paths[MODEL], Path(root)), rows[held_out]),
            "ours": float(bool(rows_are_independent(made["int8"], held.judging)[0])),
        }
    for precision, one in results.items():
        one.plain = times[0][precision][0], times[1][precision][0]
        one.mc = times[0][precision][1], times[1][precision][1]
    return results, moved


def result(made: Artefacts, accuracy: dict[str, float], which: str) -> Result:
    """Sizes and accuracies."""
    return Result(
        model_kib=kib(made, MODEL),
        mc_kib=kib(made, TRUNK, HEAD),
        accuracy=accuracy[f"dropout_off_{which}"],
        mc_accuracy=accuracy[f"monte_carlo_mean_{which}"],
    )


def dynamic(path: Path, folder: Path) -> Path:
    """The same model by onnxruntime's dynamic quantisation."""
    target = folder / "dynamic.onnx"
    ort.set_default_logger_severity(4)
    quantize_dynamic(path, target, weight_type=QuantType.QInt8)
    return target


def mates_move(path: Path, rows: Array) -> float:
    """How far a hundredfold batch-mate moves a row's answer, as a share of the output's scale."""
    try:
        program = OnnxProgram(path)
    except Exception:  # noqa: BLE001  # it makes convolutions that the CPU provider cannot run
        return float("nan")
    batch = rows[:9].copy()
    usual = program({"input": batch})["output"]
    batch[1:] *= 100
    return float(np.abs(program({"input": batch})["output"][0] - usual[0]).max() / np.abs(usual).max())


def table(found: dict[str, dict[str, Result]]) -> Table:
    """All models and precisions."""
    grid = Table(
        title=f"one thread, microseconds of processor; Monte Carlo of {SAMPLES} samples; parity in shares of "
        "the output's scale",
        header_style="dim",
    )
    heads = ("model", "", "KiB", "MC KiB", "B=1", "B=64", "MC B=1", "MC B=64", "accuracy", "MC accuracy")
    for head in (*heads, "largest", "typical", "MC largest"):
        grid.add_column(head, justify="right" if head not in {"model", ""} else "left", no_wrap=True)
    for name, results in found.items():
        for precision, r in results.items():
            times = [f"{value:,.0f}" for value in (*r.plain, *r.mc)]
            shares = [f"{100 * value:.1f}%" for value in (r.accuracy, r.mc_accuracy)]
            apart = [f"{v:.1e}" if precision != "fp32" else "" for v in (r.largest, r.typical, r.mc_largest)]
            sizes = [f"{r.model_kib:,.1f}", f"{r.mc_kib:,.1f}"]
            label = name if precision == "fp32" else ""
            grid.add_row(label, precision, *sizes, *times, *shares, *apart, end_section=precision == "int8")
    return grid


def summary(found: dict[str, dict[str, Result]], moved: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Figures over all models, and ratios to fp32 of the two large ones."""
    figures: dict[str, Any] = {"models": len(found)}
    for p in PRECISIONS[1:]:
        pairs = [(results["fp32"], results[p]) for results in found.values()]
        lost = [max(a.accuracy - r.accuracy, a.mc_accuracy - r.mc_accuracy) for a, r in pairs]
        ratios = {
            "size": [(a.model_kib + a.mc_kib) / (r.model_kib + r.mc_kib) for a, r in pairs],
            "speed_b1": [a.plain[0] / r.plain[0] for a, r in pairs],
            "speed_b64": [a.plain[1] / r.plain[1] for a, r in pairs],
            "mc_speed_b1": [a.mc[0] / r.mc[0] for a, r in pairs],
            "mc_speed_b64": [a.mc[1] / r.mc[1] for a, r in pairs],
        }
        figures |= {
            f"{p}_checks_failed": sum(r.failed for _, r in pairs),
            f"{p}_largest": max(max(r.largest, r.mc_largest) for _, r in pairs),
            f"{p}_typical": max(r.typical for _, r in pairs),
            f"{p}_points_lost": 100 * max(lost),
            **{f"{p}_{name}_ratio": [round(ratio, 2) for ratio in each] for name, each in ratios.items()},
        }
    large = slice(-2, None)
    figures["checks_failed"] = figures["fp16_checks_failed"] + figures["int8_checks_failed"]
    figures["int8_size_large"] = min(figures["int8_size_ratio"][large])
    figures["int8_speed_b64_large"] = min(figures["int8_speed_b64_ratio"][large])
    figures["fp16_speed_b64_least"] = min(figures["fp16_speed_b64_ratio"])
    figures["dynamic_rows_moved"] = float(np.nanmax([m["dynamic"] for m in moved.values()]))
    figures["models_whose_rows_move"] = int(sum(m["ours"] for m in moved.values()))
    return figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Result]] = {}
    moved: dict[str, dict[str, float]] = {}
    for name, make, shape, classes in MODELS:
        found[name], moved[name] = measure(make, shape, classes, options.rounds)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table(found))
    figures = summary(found, moved)
    for key, value in figures.items():
        print(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}")
    print("ratios: fp32 over the other, in the order of the table; above 1 is smaller or faster")
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
