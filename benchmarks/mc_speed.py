"""How fast is Monte Carlo dropout? One thread: exported trunk and head against what one would write in eager.

Rivals, both in PyTorch's own train mode under ``inference_mode``: (a) a loop of T passes over the batch,
(b) one pass over the batch repeated T times. Ours is what a server runs: ``dropout.engine.MonteCarlo`` over
the exported ONNX graphs, masks of the default seed (cached after the first request; ``fresh seed`` draws
them anew for every call). Every rival runs in turn within a round, rounds are repeated, and medians are
taken. Times are of the processor, so that a busy machine does not count; memory and caches are still shared.

The share of the machine's arithmetic peak counts the multiply-adds of the layers alone, at the largest
setting of the MLP, against a 2048 x 2048 x 2048 matrix product in the same process.

    python benchmarks/mc_speed.py [--rounds 5] [--json PATH]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.export.artefacts import HEAD, MODEL, TRUNK, Artefacts, build
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.serving.graphs import OnnxGraph
from dropserve.signature import parse_input

BATCHES, SAMPLES = (1, 8, 64), (10, 50, 200)
LEAST = 0.02  # seconds that one measurement takes at least


@dataclass(frozen=True)
class Network:
    """A network with its multiply-adds per row: before the first mask, and after."""

    name: str
    module: nn.Module
    shape: str
    trunk: int
    head: int


def networks() -> list[Network]:
    """The MLP 64-256-256-10, and a CNN with one dropout, before its last layer."""
    mlp = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(256, 10),
    )  # fmt: skip
    cnn = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    convolutions = 26 * 26 * 32 * 9 + 24 * 24 * 64 * 32 * 9
    return [
        Network("MLP", mlp, "64", 64 * 256, 256 * 256 + 256 * 10),
        Network("CNN", cnn, "1,28,28", convolutions + 64 * 12 * 12 * 128, 128 * 10),
    ]


class Timer:
    """Calls rivals in turn and keeps the median time of each."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, rivals: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Seconds of a call of each."""
        calls = {name: self._calls(rival) for name, rival in rivals.items()}
        taken: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(self.rounds):
            for name, rival in rivals.items():
                taken[name].append(_seconds(rival, calls[name]))
        return {name: median(times) for name, times in taken.items()}

    @staticmethod
    def _calls(rival: Callable[[], Any]) -> int:
        """Enough calls to be timed well, once the rival is warm."""
        _seconds(rival, 3)
        count = 1
        while (taken := _seconds(rival, count) * count) < LEAST:
            count = max(count + 1, min(count * 4, round(count * LEAST / max(taken, 1e-9) * 1.2)))
        return count


def _seconds(rival: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        rival()
    return (time.process_time() - start) / calls


def measure(network: Network, timer: Timer, seeds: itertools.count[int]) -> list[dict[str, Any]]:
    """Every batch size and number of samples."""
    subject = Subject(network.name, network.module.eval(), (parse_input(network.shape),))
    with tempfile.TemporaryDirectory() as folder:
        artefacts = build(subject, Path(folder), ExportSettings(formats=("onnx",)))
        graph = OnnxGraph(artefacts.paths[MODEL])
        engine = monte_carlo(artefacts)
    train = network.module.train()
    rows: list[dict[str, Any]] = []
    for batch, samples in itertools.product(BATCHES, SAMPLES):
        x = subject.batch(batch)["input"]
        inputs, settings = {"input": x.numpy()}, Settings(samples=samples)
        with torch.inference_mode():
            times = timer(
                {
                    "ours": lambda inputs=inputs, s=settings: engine.samples(inputs, s),
                    "fresh": lambda inputs=inputs, t=samples: engine.samples(
                        inputs, Settings(samples=t, seed=next(seeds))
                    ),
                    "loop": lambda x=x, t=samples: torch.stack([train(x) for _ in range(t)]),
                    "repeat": lambda x=x, t=samples: train(x.repeat(t, *[1] * (x.dim() - 1))),
                    "pass": lambda inputs=inputs: graph(inputs),
                }
            )
        operations = 2 * (batch * network.trunk + samples * batch * network.head)
        rows.append({"network": network.name, "B": batch, "T": samples, "operations": operations, **times})
    return rows


def monte_carlo(artefacts: Artefacts) -> MonteCarlo:
    """The engine over the exported graphs, as a server makes it."""
    head = OnnxGraph(artefacts.paths[HEAD])
    trunk = OnnxGraph(artefacts.paths[TRUNK]) if TRUNK in artefacts.paths else None
    masks = {spec.name for spec in artefacts.masks}
    return MonteCarlo(artefacts.sites, head, trunk, head_inputs=set(head.input_names) - masks)


def peak(timer: Timer) -> float:
    """Operations per second of a large matrix product: the better of torch and numpy."""
    size = 2048
    a, b = (torch.randn(size, size) for _ in range(2))
    m, n = a.numpy(), b.numpy()
    times = timer({"torch": lambda: a @ b, "numpy": lambda: np.matmul(m, n)})
    return 2 * size**3 / min(times.values())


def figures(rows: list[dict[str, Any]], top: float) -> dict[str, Any]:
    """What ``accept.toml`` asks for."""
    mlp = [row for row in rows if row["network"] == "MLP"]
    cnn = [row for row in rows if row["network"] == "CNN"]
    one, many = ([row for row in mlp if row["B"] == size] for size in (1, 64))
    largest = max(mlp, key=lambda row: row["operations"])
    result: dict[str, Any] = {
        "mlp_b1_over_loop": min(row["loop"] / row["ours"] for row in one),
        "mlp_b1_over_loop_fresh_seed": min(row["loop"] / row["fresh"] for row in one),
        "mlp_b64_over_both": min(min(row["loop"], row["repeat"]) / row["ours"] for row in many),
        "mlp_b64_over_both_fresh_seed": min(min(row["loop"], row["repeat"]) / row["fresh"] for row in many),
        "cnn_t50_passes": max(row["ours"] / row["pass"] for row in cnn if row["T"] == 50),
        "peak_share": largest["operations"] / largest["ours"] / top,
        "peak_gflops": top / 1e9,
    }
    for row in rows:
        key = f"{row['network'].lower()}_b{row['B']}_t{row['T']}"
        result[f"{key}_microseconds"] = row["ours"] * 1e6
        result[f"{key}_over_loop"] = row["loop"] / row["ours"]
        result[f"{key}_over_repeat"] = row["repeat"] / row["ours"]
    return result


def table(rows: list[dict[str, Any]], top: float) -> Table:
    """One line for each setting."""
    grid = Table(box=None, pad_edge=False, header_style="dim", title="Monte Carlo dropout, one thread")
    for column in ("", "B", "T", "ours us", "fresh seed us", "loop x", "repeat x", "in passes", "of peak"):
        grid.add_column(column, justify="right")
    for row in rows:
        grid.add_row(
            row["network"],
            str(row["B"]),
            str(row["T"]),
            f"{row['ours'] * 1e6:.0f}",
            f"{row['fresh'] * 1e6:.0f}",
            f"{row['loop'] / row['ours']:.1f}",
            f"{row['repeat'] / row['ours']:.1f}",
            f"{row['ours'] / row['pass']:.2f}",
            f"{row['operations'] / row['ours'] / top:.0%}",
        )
    return grid


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repeats of every measurement")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timer, seeds = Timer(options.rounds), itertools.count(1)
    top = peak(timer)
    rows = [row for network in networks() for row in measure(network, timer, seeds)]
    found = figures(rows, top)
    console = Console()
    console.print(table(rows, top))
    console.print(
        f"MLP, least over the loop at B=1: {found['mlp_b1_over_loop']:.1f} (bar 20); least over loop and "
        f"repeat at B=64: {found['mlp_b64_over_both']:.1f} (bar 4); CNN at T=50: at most "
        f"{found['cnn_t50_passes']:.2f} passes (bar 3); peak {found['peak_gflops']:.0f} GFLOP/s, "
        f"{found['peak_share']:.0%} of it reached",
        highlight=False,
    )
    if options.json:
        options.json.write_text(json.dumps({"figures": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
