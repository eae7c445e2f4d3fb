"""Are planted outliers told? Tables and images through train, export and predictor, at 5% false alarms.

Each data set is trained on two thirds of its rows and exported. The other rows are fresh: as they are, they
measure the false alarms. With a column moved by 10, 100 and 10^6 standard deviations, with every column
shuffled, or from another table, they are to be flagged. Images become blank, noise or inverted, or come from
another set; Fashion-MNIST is held against MNIST where there is a folder with both. Each part of the score and
the other scores answer beside it at thresholds from the same calibration rows. Shuffled rows count where a
random forest tells them from clean ones (held-out AUROC .9).

With n calibration rows and the threshold at the k-th smallest of their scores, the flags among m fresh rows
follow a beta-binomial law with parameters m, n + 1 - k and k, if calibration and fresh rows are exchangeable.
A table's score does not depend on the network. Tables of fewer than 600 rows are therefore divided anew for
each of ``--seeds`` without training; the first division must flag as many rows as the served version does.
The sum over seeds is held against the exact law of the sum.

    python benchmarks/planted_outliers.py [--seeds 200] [--data DIR] [--only SET] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outlier_sets import SEED, DataSet, Rows, images, photographs, planted, tables
from rich.console import Console
from rich.table import Table
from scipy.stats import betabinom
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import common_block, site_rates
from dropserve.dropout.statistics import classification, softmax
from dropserve.export.archive import Stage
from dropserve.export.familiarity import Familiarity, apart
from dropserve.export.nearest import Features, Nearest, in_passes
from dropserve.export.pipeline import export_run, load_subject
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.project import packaged_stages
from dropserve.serving.loading import GraphFiles
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Query
from dropserve.store import Store
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import Prepared, prepare, train
from dropserve.uncertainty.distances import combined, each_part, fit_parts
from dropserve.uncertainty.ood import OodThreshold, OutOfDistribution, scores
from dropserve.uncertainty.quantiles import rank

STAGES = packaged_stages()
HERE = Path(__file__).parent
SMALL = 600  # rows of a table that is divided several times
Flags = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
console = Console(width=150)


@dataclass(frozen=True)
class Published:
    """A trained and exported model.

    Attributes:
        nearest: the score of that name of rows, by the module and the training rows of the graph.
        calibration: rows that fixed the thresholds.
        bytes: size of the graph that compares rows with training rows.
    """

    predictor: Predictor
    files: GraphFiles
    nearest: Callable[[Rows], Any]
    calibration: Rows
    bytes: int

    def detected(self, rows: Rows) -> OutOfDistribution:
        """What the Monte Carlo answer says of rows."""
        (answer,) = self.predictor.answer([Query({"input": rows}, Settings())])
        if isinstance(answer, Exception):
            raise answer
        assert answer.calibrated is not None  # noqa: S101  # for the type checker
        assert answer.calibrated.detected is not None  # noqa: S101  # for the type checker
        return answer.calibrated.detected

    def values(self, rows: Rows) -> dict[str, Any]:
        """Every score of each row by name."""
        detected = self.detected(rows)
        assert detected.nearest is not None  # noqa: S101  # for the type checker
        parts = each_part(detected.nearest, detected.ood.parts)
        found = {"auto": detected.values}
        found |= {part.name: parts[:, place] for place, part in enumerate(detected.ood.parts)}
        if self.predictor.manifest.task != "classification":
            return found
        engine = self.files.monte_carlo()
        assert engine is not None  # noqa: S101  # for the type checker
        settings = Settings()
        (logits,) = engine.samples({"input": rows}, settings).values()
        block = common_block(site_rates(self.predictor.manifest.sites, None))
        statistics = classification(softmax(logits), scheme=settings.scheme, block=block)
        return found | {"nearest": self.nearest(rows)} | scores(statistics, logits)


def prepared(data: DataSet, order: Any, folder: Path, seed: int) -> Prepared:
    """Some rows as files, read and divided by a recipe."""
    flat, classes = data.rows.reshape(len(data.rows), -1), len(np.unique(data.target))
    outputs = classes if data.task == "classification" else 1
    if data.images:
        np.savez(folder / "data.npz", x=data.rows[order], y=data.target[order])
        source: dict[str, Any] = {"source": "npz", "file": "data.npz", "scaling": "global"}
        model: dict[str, Any] = {"class": f"{STAGES}/training/models.py:DigitsCNN"}
        model["arguments"] = {"channels": 8, "dropout2d": 0.1, "dropout": 0.3}
        if data.white > 16:
            model = {"class": f"{HERE}/fashion_cnn.py:FashionCNN"}
            model["arguments"] = {"channels": 8, "hidden": 64}
    else:
        names = [f"c{place}" for place in range(flat.shape[1])]
        lines = [",".join([*names, "target"])]
        for row, target in zip(flat[order], data.target[order], strict=True):
            cells = [f"k{int(v)}" if place in data.codes else repr(float(v)) for place, v in enumerate(row)]
            lines.append(",".join([*cells, f"t{target}" if data.task == "classification" else str(target)]))
        (folder / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        source = {"source": "csv", "file": "data.csv", "target": "target"}
        if data.codes:
            source |= {"categorical": [names[place] for place in data.codes], "unknown": "other"}
        width = len(names) + 3 * len(data.codes)
        model = {"class": f"{STAGES}/training/models.py:MLP"}
        model["arguments"] = {"inputs": width, "outputs": outputs, "hidden": [32], "dropout": 0.2}
    content: dict[str, Any] = {
        "name": "planted",
        "task": data.task,
        "model": model,
        "data": source,
        "split": {"validation": 0.1, "test": 0.05, "calibration": 0.25, "seed": seed},
        "training": {"epochs": 8, "batch_size": 64, "seed": seed},
        "optimiser": {"learning_rate": 0.005},
    }
    path = folder / "recipe.toml"
    return prepare(RecipeFile(path, check_recipe(content, path)))


def published(data: DataSet, order: Any, folder: Path) -> Published:
    """Train on some rows and export."""
    store = Store(folder / "model_store")
    run, _ = train(prepared(data, order, folder, SEED), store)
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    version = export_run(store, run, ExportSettings(), stage)
    with np.load(run.path("calibration.npz")) as held:
        calibration = held["input"].astype(np.float32)
    if not version.path("nearest.onnx").is_file():
        raise RuntimeError(f"no graph of distances; {(version.folder / 'export.json').read_text()}")
    with np.load(run.path("reference.npz")) as held:
        bank, _ = apart({"input": held["input"]})
    features = Features(load_subject(run).module).eval()
    hidden = Nearest(features, in_passes(features, [bank["input"]]))

    def nearest(rows: Rows) -> Any:
        with torch.inference_mode():
            return hidden(torch.from_numpy(rows))[0].numpy()

    files = GraphFiles(version, "onnx", 1)
    size = version.path("nearest.onnx").stat().st_size
    return Published(Predictor(version), files, nearest, calibration, size)


def distinguishable(clean: Rows, shuffled: Rows) -> float:
    """Held-out AUROC of a random forest between clean and shuffled rows."""
    rows, truth = np.concatenate([clean, shuffled]), np.repeat([0, 1], [len(clean), len(shuffled)])
    forest = RandomForestClassifier(200, random_state=SEED)
    found = cross_val_predict(forest, rows, truth, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(truth, found))


def divided(data: DataSet, seed: int) -> tuple[Any, Rows]:
    """Two thirds of the rows by number, for the recipe to divide; the other rows, which nothing has seen."""
    order = np.random.default_rng(seed).permutation(len(data.rows))
    kept = 2 * len(order) // 3
    return order[:kept], data.rows[order[kept:]]


def flagged(ready: Prepared, fresh: Rows) -> int:
    """How many fresh rows of a table are flagged, by what export computes without the network."""
    table, split = ready.dataset.table, ready.dataset.split
    kept = np.sort(np.random.default_rng(0).permutation(split.train))
    bank, others = apart({"input": table.features[kept]})
    columns = ready.dataset.preprocessing.columns
    subject = Subject("planted", torch.nn.Identity(), ready.signature.inputs, columns=columns)
    compare = Familiarity(subject, bank["input"]).eval()

    def compared(rows: Any) -> Any:
        with torch.inference_mode():
            return compare(torch.from_numpy(np.asarray(rows, np.float32)))[0].numpy()

    parts = fit_parts(compared(others["input"]), 50)
    values = combined(compared(table.features[split.calibration]), parts)
    ood = OodThreshold.fit(values, score="auto", parts=parts)
    return int(ood.flags(combined(compared(fresh), parts)).sum())


def alarms(data: DataSet, served: int, n: int, seeds: int) -> dict[str, Any]:
    """How many fresh rows are flagged over seeds, and what the exact law says of that sum.

    Args:
        data: the set.
        served: flags of the served version at the first seed.
        n: calibration rows.
        seeds: how often the rows are divided.
    """
    counts: list[int] = []
    for seed in range(seeds if seeds > 1 else 0):
        order, fresh = divided(data, seed)
        with tempfile.TemporaryDirectory() as folder:
            counts.append(flagged(prepared(data, order, Path(folder), seed), fresh))
    if counts and counts[0] != served:
        raise RuntimeError(f"the served version flags {served} fresh rows, its score {counts[0]}")
    counts = counts or [served]
    m = len(divided(data, SEED)[1])
    k = rank(n, 950)
    one = betabinom(m, n + 1 - k, k).pmf(np.arange(m + 1))
    law = np.cumsum(reduce(np.convolve, [one] * seeds))
    found = sum(counts)
    below = law[found - 1] if found else 0.0
    return {
        "calibration_rows": n,
        "fresh_rows": m,
        "flags_by_seed": counts,
        "share": found / (seeds * m),
        "law_mean": (n + 1 - k) / (n + 1),
        "law_95": [float(np.searchsorted(law, level) / (seeds * m)) for level in (0.025, 0.975)],
        "law_p": float(min(1, 2 * min(law[found], 1 - below))),
    }


def measured(name: str, data: DataSet, other: DataSet, seeds: int) -> dict[str, Any]:
    """Train, export, plant and count; prints one table."""
    rng = np.random.default_rng(SEED)
    order, fresh = divided(data, SEED)
    with tempfile.TemporaryDirectory() as folder:
        found = published(data, order, Path(folder))
        limits = {
            score: OodThreshold.fit(values, score="auto").threshold
            for score, values in found.values(found.calibration).items()
        }
        kinds = {"clean": fresh, **planted(data, fresh, other, rng)}
        flags: dict[str, Flags] = {}
        for kind, rows in kinds.items():
            values = found.values(rows)
            flags[kind] = {score: values[score] > limit for score, limit in limits.items()}
            flags[kind]["auto"] = found.detected(rows).flags
        graph = found.files.nearest()
        cost = {f"us_a_row_{count}": microseconds(graph, fresh[:count]) for count in (1, 64)}
    seeds = seeds if len(data.rows) < SMALL else 1
    served = int(flags["clean"]["auto"].sum())
    law = alarms(data, served, len(found.calibration), seeds)
    forest = None if data.images else distinguishable(fresh, kinds["shuffled"])
    low, high = law["law_95"]
    title = f"{name}: {law['calibration_rows']} calibration rows, {seeds} seeds, "
    title += f"false alarms {law['share']:.3f} of {law['fresh_rows']} fresh rows a seed "
    title += f"(law {law['law_mean']:.3f} [{low:.3f}, {high:.3f}], p {law['law_p']:.3f}); "
    title += f"{found.bytes / 1e6:.2f} MB, "
    title += ", ".join(f"{cost[key]:.0f} us a row at {key[9:]}" for key in cost)
    title += "" if forest is None else f"; forest on shuffled: {forest:.2f}"
    table = Table("score", *kinds, title=title)
    for score in limits:
        table.add_row(score, *(f"{each[score].mean():.3f}" for each in flags.values()))
    console.print(table)
    shares = {score: {kind: float(each[score].mean()) for kind, each in flags.items()} for score in limits}
    return {"false_alarms": law, "shares": shares["auto"], "by_score": shares, "forest": forest, **cost}


def microseconds(graph: Any, rows: Rows) -> float:
    """The fastest of 50 calls, for a row."""
    times: list[float] = []
    for _ in range(50):
        start = time.perf_counter()
        graph({"input": rows})
        times.append(time.perf_counter() - start)
    return min(times) / len(rows) * 1e6


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", help="these data sets")
    parser.add_argument("--seeds", type=int, default=200, help="of tables with few rows")
    parser.add_argument(
        "--data", type=Path, default=HERE.parent.parent / "shared/data", help="has fashion-mnist/ and mnist/"
    )
    arguments = parser.parse_args()
    wanted: dict[str, tuple[DataSet, DataSet]] = {}
    for sets in (tables(), images()):
        names = list(sets)
        wanted |= {name: (sets[name], sets[names[at - len(names) + 1]]) for at, name in enumerate(names)}
    not_run: dict[str, str] = {}
    if all((arguments.data / name).is_dir() for name in ("fashion-mnist", "mnist")):
        wanted["Fashion-MNIST"] = photographs(arguments.data)
    else:
        why = f"no folders fashion-mnist and mnist in {arguments.data}; give one with --data"
        not_run = {"mnist_among_fashion_caught": why}
        console.print(f"[yellow]NOT RUN[/] Fashion-MNIST against MNIST: {why}")
    found = {
        name: measured(name, *pair, arguments.seeds)
        for name, pair in wanted.items()
        if not arguments.only or name in arguments.only
    }

    def least(*kinds: str, clear: float = 0.0) -> float:
        """The smallest share of a kind that was caught, of sets whose forest reaches ``clear``."""
        shares = [
            each["shares"][kind]
            for name, each in found.items()
            for kind in kinds
            if (name, kind) != ("Fashion-MNIST", "other set")  # has a figure of its own
            if kind in each["shares"]
            if (each["forest"] or 0) >= clear
        ]
        return min(shares, default=1.0)

    laws = [each["false_alarms"] for each in found.values()]
    figures: dict[str, Any] = {
        "false_alarms": float(np.mean([law["share"] for law in laws])),
        "least_law_p": min(law["law_p"] for law in laws),
        "out_of_range_caught": least("10 sd", "100 sd", "1000000 sd"),
        "other_data_caught": least("other table", "other set", "blank", "noise", "inverted"),
        "shuffled_caught": least("shuffled", clear=0.9),
        "most_us_a_row_64": max(each["us_a_row_64"] for each in found.values()),
        "not_run": not_run,
    }
    if "Fashion-MNIST" in found:
        figures["mnist_among_fashion_caught"] = found["Fashion-MNIST"]["shares"]["other set"]
    console.print(figures)
    if arguments.json:
        content = {"figures": figures | {"sets": found}}
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
