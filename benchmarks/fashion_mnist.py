"""Fashion-MNIST with a small CNN: how good Monte Carlo answers are, and whether it knows what is no clothing.

Trains ``fashion_mnist.toml`` by the path of `dropserve train` (resumable; about half an hour of one core; the
run is kept and used again), exports it, and asks the exported graphs:

- test rows: accuracy, likelihood loss and calibration error with 50 samples, before and after calibration;
- the digits of MNIST against them: every out-of-distribution score. The one that counts is the one that the
  recipe names. It was chosen on *shifts* of validation rows alone, those that Hendrycks et al. tune on ("Deep
  anomaly detection with outlier exposure", ICLR 2019, appendix; the shift of colours has no meaning here).
  They are measured here too, by the same graphs, and the recipe's score must be the best of them;
- balanced masks at 10 samples against iid at 10, 50 and 100, means over seeds.

No test row of either data set decides anything.

    python benchmarks/fashion_mnist.py [--data DIR] [--store DIR] [--seeds 3] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.masks import common_block, site_rates
from dropserve.dropout.rows import Program
from dropserve.dropout.statistics import classification, softmax
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.loading import GraphFiles
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import Store, Stored
from dropserve.uncertainty.answers import calibrated_classes
from dropserve.uncertainty.calibration import Temperature
from dropserve.uncertainty.metrics import accuracy, brier, ece, nll
from dropserve.uncertainty.ood import AUTO, Detection, detection, score
from dropserve.uncertainty.ood import SCORES as ALL
from dropserve.uncertainty.ranking import aurc
from dropserve.uncertainty.record import Calibration

HERE = Path(__file__).parent
RECIPE = HERE / "fashion_mnist.toml"
DATA = HERE.parent.parent / "shared/data"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PASS = 500
SCORES = tuple(name for name in ALL if name != AUTO)  # that one has another graph
SHIFTED = 1500  # validation rows that are shifted
SCHEMES = (("balanced", 10), ("iid", 10), ("iid", 50), ("iid", 100), ("balanced", 50))
Float = NDArray[np.float64]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Graphs:
    """A version's graphs, asked as a server asks them."""

    version: Stored[VersionManifest]
    engine: MonteCarlo
    nearest: Program

    @classmethod
    def of(cls, version: Stored[VersionManifest]) -> Graphs:
        """Load them."""
        files = GraphFiles(version, "onnx", 1)
        engine, nearest = files.monte_carlo(), files.nearest()
        assert engine is not None  # noqa: S101  # for the type checker: the model has dropout
        assert nearest is not None  # noqa: S101  # for the type checker: the recipe names the score
        return cls(version, engine, nearest)

    def logits(self, rows: Rows, settings: Settings) -> Float:
        """[T, B, C]."""
        parts = [
            self.engine.samples({"input": rows[at : at + PASS]}, settings)["output"]
            for at in range(0, len(rows), PASS)
        ]
        return np.concatenate(parts, axis=1).astype(np.float64)

    def scores(self, rows: Rows, logits: Float, settings: Settings) -> dict[str, Float]:
        """Every out-of-distribution score [B]."""
        block = common_block(site_rates(self.version.manifest.sites, None))
        found = classification(softmax(logits), scheme=settings.scheme, block=block)
        parts = [self.nearest({"input": rows[at : at + PASS]})["nearest"] for at in range(0, len(rows), PASS)]
        near = np.concatenate(parts).astype(np.float64)
        return {name: score(name, found, logits, near) for name in SCORES}


def trained(data: Path, folder: Path) -> Stored[RunManifest]:
    """The run of this recipe, this data and this source; trained now if there is none."""
    from dropserve.training.learner import Epoch  # noqa: PLC0415  # torch, for as long as it is needed
    from dropserve.training.recipe import Recipe  # noqa: PLC0415
    from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415
    from dropserve.training.run import Silent, checkpoint_of, prepare, train  # noqa: PLC0415

    class Watcher(Silent):
        def on_epoch(self, row: Epoch) -> None:
            print(f"epoch {row.number}: loss {row.validation_loss:.4f}, accuracy {row.score:.4f}", flush=True)

    file = load_recipe(RECIPE, {"data.folder": str(data / "fashion-mnist"), "training.device": "cpu"})
    prepared, store = prepare(file), Store(folder)
    wanted = file.recipe.resolved()
    wanted["data"].pop("folder")
    for name in reversed(store.runs(file.recipe.name)):
        run = store.run(file.recipe.name, name)
        recipe = Recipe.model_validate(
            run.manifest.recipe
        ).resolved()  # keys that are new have their defaults
        recipe["data"].pop("folder")
        same = run.manifest.data["sha256"], run.manifest.source.sha256
        if recipe == wanted and same == (prepared.dataset.table.sha256, prepared.source.sha256):
            print(f"the run {run.manifest.id} is there")
            return run
    return train(prepared, store, Watcher(), checkpoint_of(prepared, folder / ".training"))[0]


def exported(run: Stored[RunManifest], folder: Path) -> Stored[VersionManifest]:
    """A version of the run, made by today's code."""
    from dropserve.export.archive import Stage  # noqa: PLC0415  # as above
    from dropserve.export.pipeline import Report, export_run  # noqa: PLC0415
    from dropserve.export.settings import ExportSettings  # noqa: PLC0415

    stages, report = packaged_stages(), Report()
    stage = Stage(stages / "serving/handler.py", stages / "serving/model-config.yaml")
    version = export_run(Store(folder), run, ExportSettings(formats=("onnx",)), stage, report)
    print("\n".join(report.notes))
    return version


def shifts(rows: Rows, rng: np.random.Generator) -> dict[str, Rows]:
    """What validation rows are turned into."""
    others = rows[rng.permutation(len(rows))]
    tiles = rows.reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(-1, 16, 7, 7)
    mixed = np.stack([each[rng.permutation(16)] for each in tiles])
    jigsaw = mixed.reshape(-1, 4, 4, 7, 7).swapaxes(2, 3).reshape(rows.shape)
    noise = rng.normal(1, 0.5, rows.shape)
    made = {
        "uniform noise": rng.uniform(0, 255, rows.shape),
        "mean of two": (rows + others) / 2,
        "geometric mean": np.sqrt(rows * others),
        "jigsaw": jigsaw,
        "speckle": np.clip(rows * noise, 0, 255),
        "inverted": 255 - rows,
    }
    return {name: each.astype(np.float32) for name, each in made.items()}


def measure_shifts(graphs: Graphs, rows: Rows, console: Console) -> dict[str, float]:
    """Mean AUROC over the shifts, by score."""
    settings = Settings()
    usual = graphs.scores(rows, graphs.logits(rows, settings), settings)
    found: dict[str, dict[str, float]] = {name: {} for name in SCORES}
    for shift, shifted in shifts(rows, np.random.default_rng(0)).items():
        strange = graphs.scores(shifted, graphs.logits(shifted, settings), settings)
        for name in SCORES:
            found[name][shift] = detection(usual[name], strange[name]).auroc
    names = list(found[SCORES[0]])
    table = Table("score", *names, "mean", title=f"AUROC, {len(rows)} validation rows against shifts of them")
    means = {name: float(np.mean(list(each.values()))) for name, each in found.items()}
    for name, each in found.items():
        table.add_row(name, *(f"{each[shift]:.3f}" for shift in names), f"{means[name]:.4f}")
    console.print(table)
    return means


def measure_test(
    graphs: Graphs, rows: Rows, labels: NDArray[np.int64], digits: Rows, console: Console
) -> dict[str, Any]:
    """Accuracy, likelihood and calibration of 50 samples; every score against the digits."""
    settings, manifest = Settings(), graphs.version.manifest
    record = Calibration.from_json(manifest.calibration or {})
    logits = graphs.logits(rows, settings)
    block = common_block(site_rates(manifest.sites, None))
    statistics = classification(softmax(logits), scheme=settings.scheme, block=block)
    usual = graphs.scores(rows, logits, settings)
    answers = calibrated_classes(
        record,
        logits,
        statistics,
        {"input": rows},
        settings.seed,
        usual[record.ood.score if record.ood else ""],
    )
    require_served(graphs.version, rows[:40], answers.probabilities[:40], answers.strangeness[:40])
    table = Table("answers", "accuracy", "NLL", "ECE", "ECE (mass)", "Brier", "AURC",
                  title=f"{len(rows)} test rows, {settings.samples} samples")  # fmt: skip
    figures: dict[str, Any] = {}
    for name, p in (("uncalibrated", statistics.mean), ("calibrated", answers.probabilities)):
        wrong = (p.argmax(1) != labels).astype(float)
        own = {"accuracy": accuracy(p, labels), "nll": nll(p, labels), "ece": ece(p, labels),
               "ece_mass": ece(p, labels, equal="mass"), "brier": brier(p, labels),
               "aurc": aurc(p.max(1), wrong)}  # fmt: skip
        table.add_row(name, *(f"{value:.4f}" for value in own.values()))
        figures |= {key if name == "calibrated" else f"{key}_{name}": value for key, value in own.items()}
    console.print(table)
    strange = graphs.scores(digits, graphs.logits(digits, settings), settings)
    table = Table("score", "AUROC", "FPR at 95% TPR", title="Fashion-MNIST against MNIST, test rows of both")
    found: dict[str, Detection] = {name: detection(usual[name], strange[name]) for name in SCORES}
    assert record.ood is not None  # noqa: S101  # for the type checker: a classifier's
    for name, each in found.items():
        chosen = " (the recipe's)" if name == record.ood.score else ""
        table.add_row(f"{name}{chosen}", f"{each.auroc:.4f}", f"{each.fpr95:.4f}")
        figures |= {f"auroc_{name}": each.auroc, f"fpr95_{name}": each.fpr95}
    console.print(table)
    chosen = record.ood.score
    sets = {c: answers.sets(c) for c in (900, 950)}
    figures |= {
        "temperature": record.temperature.value if record.temperature else None,
        "ood_score": chosen,
        "auroc": found[chosen].auroc,
        "fpr95": found[chosen].fpr95,
        "false_alarms": float(record.ood.flags(usual[chosen]).mean()),
        "digits_flagged": float(record.ood.flags(strange[chosen]).mean()),
        **{f"coverage_{c}": float(s[np.arange(len(labels)), labels].mean()) for c, s in sets.items()},
        **{f"set_size_{c}": float(s.sum(1).mean()) for c, s in sets.items()},
    }
    console.print(
        f"At the served threshold {figures['false_alarms']:.1%} of the test rows and "
        f"{figures['digits_flagged']:.1%} of the digits are flagged; sets at 90% and 95% held the truth in "
        f"{figures['coverage_900']:.1%} and {figures['coverage_950']:.1%}."
    )
    return figures


def require_served(
    version: Stored[VersionManifest], rows: Rows, probabilities: Float, strangeness: Float
) -> None:
    """The endpoint says in JSON what is measured here."""
    codec = Codec(version.manifest, monte_carlo=True)
    call = codec.decode(json.dumps({"instances": rows.tolist()}).encode())
    (answer,) = Predictor(version).answer([call.query])
    if isinstance(answer, Exception):
        raise answer
    found = [each["calibrated"] for each in json.loads(call.encode(answer).body)["predictions"]]
    np.testing.assert_allclose(
        [list(each["probabilities"].values()) for each in found], probabilities, atol=1e-9
    )
    np.testing.assert_allclose([each["out_of_distribution_score"] for each in found], strangeness, atol=1e-9)


def measure_masks(
    graphs: Graphs,
    held: Mapping[str, NDArray[Any]],
    rows: Rows,
    labels: NDArray[np.int64],
    digits: Rows,
    seeds: int,
) -> dict[tuple[str, int], dict[str, float]]:
    """Balanced against iid masks, means over seeds; each at a temperature fitted on the calibration rows."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    block = common_block(site_rates(graphs.version.manifest.sites, None))
    for seed in range(seeds):
        for scheme in ("balanced", "iid"):
            counts = [count for name, count in SCHEMES if name == scheme]
            settings = Settings(max(counts), seed, scheme)
            # The samples of a seed do not depend on how many there are: fewer are a beginning of more.
            drawn = [graphs.logits(each, settings) for each in (held["input"], rows, digits)]
            for count in counts:
                own, test, strange = (
                    classification(softmax(each[:count]), scheme=scheme, block=block) for each in drawn
                )
                p = Temperature.fit(own.mean, held["target"]).probabilities(test.mean)
                entropy = detection(test.predictive_entropy, strange.predictive_entropy)
                mutual = detection(test.mutual_information, strange.mutual_information)
                figures = {
                    "nll": nll(test.mean, labels), "nll_calibrated": nll(p, labels),
                    "ece": ece(test.mean, labels), "ece_calibrated": ece(p, labels),
                    "auroc_entropy": entropy.auroc, "auroc_mutual_information": mutual.auroc,
                }  # fmt: skip
                found.setdefault((scheme, count), []).append(figures)
    return {key: {name: float(np.mean([each[name] for each in many])) for name in many[0]}
            for key, many in found.items()}  # fmt: skip


def show_masks(found: Mapping[tuple[str, int], Mapping[str, float]], seeds: int, console: Console) -> None:
    """The table of :func:`measure_masks`."""
    heads = ("NLL", "calibrated", "ECE", "calibrated", "AUROC, entropy", "AUROC, mutual information")
    table = Table("masks", *heads, title=f"Masks and samples, means over {seeds} seeds")
    for scheme, count in SCHEMES:
        values = found[scheme, count].values()
        table.add_row(f"{scheme}, T={count}", *(f"{value:.4f}" for value in values))
    console.print(table)


def missing(data: Path) -> list[str]:
    """Files that are not there, compressed or not."""
    wanted = [data / folder / name for folder in ("fashion-mnist", "mnist") for name in FILES]
    wanted = [path for path in wanted if path.parent.name != "mnist" or path.name.startswith("t10k")]
    return [str(p) for p in wanted if not p.is_file() and not p.with_name(f"{p.name}.gz").is_file()]


def main() -> None:
    """Train if need be, measure, print; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder with fashion-mnist/ and mnist/, as IDX files"
    )
    parser.add_argument(
        "--store", type=Path, default=HERE / "results/fashion-mnist", help="keeps the trained run"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the masks that are compared")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if lacking := missing(options.data):
        text = f"no data: there is no {', '.join(lacking)} (nor .gz); name its folder with --data"
        print(text)
        if options.json:
            options.json.write_text(json.dumps({"figures": {"not_run": text}}), encoding="utf-8")
        return
    from dropserve.training.idx import read_file  # noqa: PLC0415  # quick to fail without data

    def read(folder: str, name: str) -> NDArray[Any]:
        path = options.data / folder / name
        return read_file(path if path.is_file() else path.with_name(f"{name}.gz"))

    run = trained(options.data.resolve(), options.store)
    graphs = Graphs.of(exported(run, options.store))
    with np.load(run.path("validation.npz")) as arrays:
        validation = arrays["input"][:SHIFTED].astype(np.float32)
    with np.load(run.path("calibration.npz")) as arrays:
        held = {"input": arrays["input"].astype(np.float32), "target": arrays["target"]}
    rows, digits = (
        read(folder, FILES[2])[:, None].astype(np.float32) for folder in ("fashion-mnist", "mnist")
    )
    # The labels of the files are digits, and the run's labels are these in order.
    labels = read("fashion-mnist", FILES[3]).astype(np.int64)
    means = measure_shifts(graphs, validation, console)
    figures = measure_test(graphs, rows, labels, digits, console)
    figures["chosen_by_shifts"] = max(means, key=lambda name: means[name])
    figures["recipe_names_the_best_on_shifts"] = figures["chosen_by_shifts"] == figures["ood_score"]
    figures |= {f"shifts_{name}": value for name, value in means.items()}
    masks = measure_masks(graphs, held, rows, labels, digits, options.seeds)
    show_masks(masks, options.seeds, console)
    figures |= {
        f"{scheme}_{count}_{name}": value
        for (scheme, count), own in masks.items()
        for name, value in own.items()
    }
    figures["balanced_10"], figures["iid_10"], figures["iid_50"], figures["iid_100"] = (
        ", ".join(f"{masks[key][name]:.4f}" for name in ("nll_calibrated", "ece_calibrated", "auroc_entropy"))
        for key in SCHEMES[:4]
    )
    if options.json:
        options.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
