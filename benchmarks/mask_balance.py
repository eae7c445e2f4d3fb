"""What do balanced masks buy, and is the error they claim the error they make?

Three networks on Fashion-MNIST (an MLP 784-512-512-10, a CNN with Dropout2d, a SELU net with alpha dropout),
each trained at p = 0.1, 0.2 and 0.5. Rows of the test set are answered from T samples under both schemes,
over many seeds, and compared with a reference of 10,000 samples:

- squared error of the predictive mean, iid over balanced, with a 95% bootstrap interval over seeds. The
  reference's own variance is subtracted from both (it is drawn from balanced masks, which make it smallest);
- bias of predictive entropy, mutual information and variance, as a share of their value;
- the standard error that each scheme reports (root mean square) over the error it makes, and how often its
  95% interval holds the reference, at the T that have five blocks. Under iid masks the interval is
  Student's t; under balanced masks it is Student's t on block means, widened for skewness
  (``dropout.statistics.half_width``). What the plain t-interval would cover stands beside it.

    python benchmarks/mask_balance.py [--seeds 100] [--rows 24] [--data DIR] [--json PATH]

Without Fashion-MNIST in DIR it runs on scikit-learn's digits, an MLP 64-512-512-10, and says so.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.masks import SCHEMES
from dropserve.dropout.program import masked_program
from dropserve.dropout.statistics import classification, half_width, softmax, standard_error
from dropserve.dropout.student import t_quantile
from dropserve.signature import TensorSpec

Float = NDArray[np.float64]
RATES = (0.1, 0.2, 0.5)
COUNTS = (5, 10, 15, 20, 30, 50, 100, 200)
LONGEST = COUNTS[-1]
JUDGED = tuple(count for count in COUNTS if count % 10 == 0)
BIASES = (10, 50)
INTERVALS = tuple(count for count in COUNTS if count >= 50)
REFERENCE = 10_000
BLOCK = 10
FUNCTIONALS = ("predictive_entropy", "mutual_information", "variance")
TRAINED = 15_000


@dataclass(frozen=True)
class Data:
    """Images [N, 1, side, side] in [0, 1] and their classes."""

    train: Tensor
    train_class: Tensor
    test: Tensor
    test_class: Tensor

    @property
    def features(self) -> int:
        """Pixels of an image."""
        return self.train[0].numel()


@dataclass
class Errors:
    """What one scheme did on one model: by T, one entry for each repetition."""

    squared: dict[int, list[float]] = field(default_factory=dict)
    claimed: dict[int, list[float]] = field(default_factory=dict)
    held: dict[int, list[float]] = field(default_factory=dict)
    plain: dict[int, list[float]] = field(default_factory=dict)
    values: dict[int, list[Float]] = field(default_factory=dict)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes, compressed."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def load(folder: Path) -> tuple[Data, str]:
    """Fashion-MNIST if it is there, else the digits."""
    source = folder / "fashion-mnist"
    if source.is_dir():
        parts = [read_idx(source / f"{part}-ubyte.gz") for part in (
            "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")]  # fmt: skip
        images = [torch.tensor(part, dtype=torch.float32)[:, None] / 255 for part in parts[::2]]
        classes = [torch.tensor(part, dtype=torch.int64) for part in parts[1::2]]
        return Data(images[0][:TRAINED], classes[0][:TRAINED], images[1], classes[1]), "Fashion-MNIST"
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    label = torch.tensor(digits.target)
    data = Data(image[:1200], label[:1200], image[1200:], label[1200:])
    return data, f"scikit-learn digits (no Fashion-MNIST in {folder})"


def mlp(data: Data, p: float) -> tuple[nn.Module, nn.Module]:
    """Trunk and head of the MLP: the cut is at the first dropout."""
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(data.features, 512), nn.ReLU())
    head = nn.Sequential(nn.Dropout(p), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(p), nn.Linear(512, 10))
    return trunk, head


def cnn(data: Data, p: float) -> tuple[nn.Module, nn.Module]:
    """Whole channels fall, and then units."""
    side = data.train.shape[-1] // 4
    trunk = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    dense = nn.Linear(32 * side * side, 128)
    head = nn.Sequential(nn.Dropout2d(p), nn.Flatten(), dense, nn.ReLU(), nn.Dropout(p), nn.Linear(128, 10))
    return trunk, head


def selu(data: Data, p: float) -> tuple[nn.Module, nn.Module]:
    """Dropped units take a value of their own."""
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(data.features, 256), nn.SELU())
    head = nn.Sequential(
        nn.AlphaDropout(p), nn.Linear(256, 256), nn.SELU(), nn.AlphaDropout(p), nn.Linear(256, 10)
    )
    return trunk, head


NETWORKS: dict[str, Callable[[Data, float], tuple[nn.Module, nn.Module]]] = {
    "MLP": mlp,
    "CNN": cnn,
    "SELU": selu,
}


def trained(name: str, p: float, data: Data) -> tuple[nn.Module, nn.Module, float]:
    """Trunk, head and the accuracy of the deterministic model."""
    torch.manual_seed(0)
    trunk, head = NETWORKS[name](data, p)
    net = nn.Sequential(trunk, head)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(3 if len(data.train) > 5000 else 30):
        for rows in torch.randperm(len(data.train)).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(data.train[rows]), data.train_class[rows]).backward()
            optimiser.step()
    net.eval()
    with torch.no_grad():
        right = (net(data.test).argmax(1) == data.test_class).float().mean()
    return trunk, head, float(right)


def sampler(trunk: nn.Module, head: nn.Module, x: Tensor) -> Callable[[int, int, str], Float]:
    """Probabilities [T, B, C] by (samples, seed, scheme); the trunk has run once."""
    with torch.no_grad():
        middle = trunk(x)
    program = masked_program(head, [TensorSpec(name="input", shape=tuple(middle.shape[1:]))])
    names = ("input", *program.mask_names)

    def run(fed: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            return {"output": program(*(torch.from_numpy(fed[name]) for name in names))[0].numpy()}

    engine = MonteCarlo(program.sites, run, steady=False)
    fed = {"input": middle.numpy()}

    def samples(count: int, seed: int, scheme: str) -> Float:
        return softmax(engine.samples(fed, Settings(samples=count, seed=seed, scheme=scheme))["output"])

    return samples


def functionals(p: Float, scheme: str) -> Float:
    """Entropy, mutual information and variance, averaged over rows (and classes): one number for each."""
    found = classification(p, scheme=scheme, block=BLOCK)
    parts = (found.predictive_entropy, found.mutual_information, np.square(found.std))
    return np.array([part.mean() for part in parts])


def measure(draw: Callable[[int, int, str], Float], seeds: int) -> tuple[dict[str, Errors], Float]:
    """Errors of both schemes, and the functionals of the reference."""
    pieces = [draw(500, 10**6 + i, "balanced") for i in range(REFERENCE // 500)]
    everything = np.concatenate(pieces)
    reference = everything.mean(axis=0)
    own = np.var([piece.mean(axis=0) for piece in pieces], axis=0, ddof=1).mean() / len(pieces)
    true = functionals(everything, "balanced")
    found = {scheme: Errors() for scheme in SCHEMES}
    for scheme, errors in found.items():
        for seed in range(seeds):
            p = draw(LONGEST, seed, scheme)
            for count in COUNTS:
                starts = range(0, LONGEST - count + 1, -(-count // BLOCK) * BLOCK)
                parts = [p[start : start + count] for start in starts]
                squared = [np.square(part.mean(axis=0) - reference).mean() - own for part in parts]
                errors.squared.setdefault(count, []).append(float(np.mean(squared)))
                if count in BIASES:
                    values = np.mean([functionals(part, scheme) for part in parts[:4]], axis=0)
                    errors.values.setdefault(count, []).append(values)
                if count in INTERVALS:
                    note_intervals(errors, parts, reference, scheme, count)
    return found, true


def note_intervals(errors: Errors, parts: list[Float], reference: Float, scheme: str, count: int) -> None:
    """What the reported errors promise, and whether the intervals keep it."""
    units = count if scheme == "iid" else count // BLOCK
    for part in parts:
        distance = np.abs(part.mean(axis=0) - reference)
        claimed = standard_error(part, scheme=scheme, block=BLOCK)
        half = half_width(part, scheme=scheme, block=BLOCK)
        assert claimed is not None  # noqa: S101  # five blocks and more
        assert half is not None  # noqa: S101
        errors.claimed.setdefault(count, []).append(float(np.square(claimed).mean()))
        errors.held.setdefault(count, []).append(float((distance <= half).mean()))
        plain = float((distance <= t_quantile(0.95, units - 1) * claimed).mean())
        errors.plain.setdefault(count, []).append(plain)


def ratio_interval(iid: list[float], balanced: list[float]) -> tuple[float, float, float]:
    """Ratio of means with a 95% bootstrap interval over seeds."""
    a, b = np.array(iid), np.array(balanced)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(a), (2000, len(a)))
    low, high = np.quantile(a[rows].mean(axis=1) / b[rows].mean(axis=1), [0.025, 0.975])
    return float(a.mean() / b.mean()), float(low), float(high)


class Report:
    """Tables and figures, filled model by model."""

    def __init__(self, source: str) -> None:
        self.figures: dict[str, Any] = {"data": source}
        counts = (f"T={count}" for count in COUNTS)
        title = "squared error of the mean, iid over balanced (95% interval)"
        self.error = Table("model", "p", "accuracy", *counts, title=title)
        biases = (f"{name}, T={count}" for name in ("entropy", "MI", "variance") for count in BIASES)
        self.bias = Table("model", "p", "scheme", *biases, title="bias, as a share of the value")
        title = (
            "reported standard error over true error; coverage of our 95% interval (of a plain t-interval)"
        )
        self.claim = Table("model", "p", "scheme", *(f"T={count}" for count in INTERVALS), title=title)
        self.worst_claim = 1.0
        self.gains: list[float] = []
        self.plain_gains: list[float] = []

    def add(self, name: str, p: float, accuracy: float, found: dict[str, Errors], true: Float) -> None:
        """One model at one rate."""
        iid, balanced = found["iid"], found["balanced"]
        ratios = {count: ratio_interval(iid.squared[count], balanced.squared[count]) for count in COUNTS}
        cells = (f"{ratio:.1f} ({low:.1f}-{high:.1f})" for ratio, low, high in ratios.values())
        self.error.add_row(name, f"{p:g}", f"{accuracy:.3f}", *cells)
        tag = f"{name.lower()}_p{round(p * 10):02d}"
        self.figures |= {f"mse_ratio_{tag}_t{count}": ratios[count][0] for count in COUNTS}
        self.figures[f"mse_ratio_{tag}"] = min(ratios[count][0] for count in JUDGED)
        if name == "MLP":
            self.figures[f"mse_ratio_p{round(p * 10):02d}"] = self.figures[f"mse_ratio_{tag}"]
            self.figures[f"mse_ratio_p{round(p * 10):02d}_low"] = min(ratios[count][1] for count in JUDGED)
        for scheme, errors in found.items():
            shares = {count: np.mean(errors.values[count], axis=0) / true - 1 for count in BIASES}
            self.bias.add_row(
                name, f"{p:g}", scheme, *(f"{shares[count][i]:+.1%}" for i in range(3) for count in BIASES)
            )
            for index, functional in enumerate(FUNCTIONALS):
                self.figures[f"bias_{functional}_{scheme}_{tag}_t10"] = float(shares[10][index])
            claims = {c: np.sqrt(np.mean(errors.claimed[c]) / np.mean(errors.squared[c])) for c in INTERVALS}
            cells = (
                f"{claims[c]:.3f}; {np.mean(errors.held[c]):.1%} ({np.mean(errors.plain[c]):.1%})"
                for c in INTERVALS
            )
            self.claim.add_row(name, f"{p:g}", scheme, *cells)
            if scheme == "balanced":
                self.worst_claim = max(self.worst_claim, *claims.values(), key=lambda claim: abs(claim - 1))
        textbook = {c: np.mean(iid.plain[c]) for c in INTERVALS}
        self.gains += [float(np.mean(balanced.held[c]) - textbook[c]) for c in INTERVALS]
        self.plain_gains += [float(np.mean(balanced.plain[c]) - textbook[c]) for c in INTERVALS]

    def finish(self) -> dict[str, Any]:
        """The figures, with those over all models."""
        return self.figures | {
            "standard_error_ratio_furthest": float(self.worst_claim),
            "standard_error_worst_deviation": float(abs(self.worst_claim - 1)),
            "coverage_gain": min(self.gains),
            "coverage_gain_mean": float(np.mean(self.gains)),
            "coverage_gain_of_plain_t": min(self.plain_gains),
            "coverage_gain_of_plain_t_mean": float(np.mean(self.plain_gains)),
        }


def main() -> None:
    """Print the tables; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, source = load(arguments.data)
    print(f"Data: {source}. {arguments.rows} rows, {arguments.seeds} seeds of {LONGEST} samples.")
    report = Report(source)
    for name in NETWORKS:
        for p in RATES:
            trunk, head, accuracy = trained(name, p, data)
            found, true = measure(sampler(trunk, head, data.test[: arguments.rows]), arguments.seeds)
            report.add(name, p, accuracy, found, true)
    figures = report.finish()
    console = Console(width=None if sys.stdout.isatty() else 170)
    for table in (report.error, report.bias, report.claim):
        console.print(table)
    for key in ("mse_ratio_p05", "mse_ratio_p02", *list(figures)[-6:]):
        print(f"{key} {figures[key]:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
