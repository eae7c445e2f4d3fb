"""Are planted outliers told? Tables and images through train, export and predictor, at 5% false alarms.

Each data set is trained on two thirds of its rows and exported. The other rows are fresh: as they are, they
measure the false alarms, beside the mean and deviation that theory gives over draws of calibration and
fresh rows. With a column moved by 10, 100 and 10^6 standard deviations, with every column
shuffled, or from another table, they are to be flagged. Images become blank, noise or inverted, or come from
another set. Each part of the score, and scores of indecision, answer beside it at thresholds from the same
calibration rows. Shuffled rows count where a random forest tells them from clean ones (held-out AUROC .9).

    python benchmarks/planted_outliers.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import ClassificationStatistics
from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.project import packaged_stages
from dropserve.serving.loading import GraphFiles
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Answer, Query
from dropserve.store import Store
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train
from dropserve.uncertainty.distances import each_part
from dropserve.uncertainty.ood import OodThreshold
from dropserve.uncertainty.quantiles import coverage_theory

SEED = 0
STAGES = packaged_stages()
INDECISION = ("predictive_entropy", "mutual_information")
Rows = np.ndarray[Any, np.dtype[np.float32]]
Flags = dict[str, np.ndarray[Any, np.dtype[np.bool_]]]
console = Console(width=150)


@dataclass(frozen=True)
class DataSet:
    """Rows [N, ...] with targets [N]; ``codes`` are columns of whole numbers that stand for categories."""

    rows: Rows
    target: Any
    task: str = "classification"
    codes: tuple[int, ...] = ()

    @property
    def images(self) -> bool:
        """Whether a row is an image [channels, height, width]."""
        return self.rows.ndim > 2


def tables() -> dict[str, DataSet]:
    """Five tables; one has categories, one is of a regressor."""
    cancer, wine = datasets.load_breast_cancer(), datasets.load_wine()
    diabetes, digits = datasets.load_diabetes(), datasets.load_digits()
    made, classes = datasets.make_classification(1500, 20, n_informative=8, n_redundant=8, random_state=SEED)
    made[:, 18:] = np.random.default_rng(SEED).integers(0, 4, (len(made), 2))
    return {
        "breast cancer": DataSet(cancer.data.astype(np.float32), cancer.target),
        "wine": DataSet(wine.data.astype(np.float32), wine.target),
        "diabetes": DataSet(diabetes.data.astype(np.float32), diabetes.target, "regression"),
        "digits as a table": DataSet(digits.data.astype(np.float32), digits.target),
        "made, two of categories": DataSet(made.astype(np.float32), classes, codes=(18, 19)),
    }


def images() -> dict[str, DataSet]:
    """Digits, bars and rings of 8 x 8 pixels."""
    digits = datasets.load_digits()
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:8, :8]

    def drawn(shape: Callable[[int], Any]) -> DataSet:
        classes = rng.integers(0, 10, 1500)
        rows = np.stack([np.asarray(shape(kind), float) for kind in classes]) * rng.uniform(
            10, 16, (1500, 1, 1)
        )
        noisy = np.clip(rows + rng.normal(0, 0.5, rows.shape), 0, 16)
        return DataSet(noisy[:, None].astype(np.float32), classes)

    def bar(kind: int) -> Any:
        return np.abs((x if kind % 2 else y) - 1 - kind // 2) <= rng.integers(0, 2)

    def ring(kind: int) -> Any:
        away = np.hypot(x - rng.uniform(2.5, 4.5), y - rng.uniform(2.5, 4.5))
        radius = 1.2 + kind // 2 * 0.4
        return np.abs(away - radius) < 0.7 if kind % 2 else away < radius

    return {
        "digits": DataSet(digits.data.reshape(-1, 1, 8, 8).astype(np.float32), digits.target),
        "bars": drawn(bar),
        "rings": drawn(ring),
    }


def published(name: str, data: DataSet, order: Any, folder: Path) -> tuple[Predictor, Any, Any, Rows]:
    """Train on rows and export; the predictor, the record, the graph of distances, the calibration rows."""
    flat, classes = data.rows.reshape(len(data.rows), -1), len(np.unique(data.target))
    outputs = classes if data.task == "classification" else 1
    if data.images:
        np.savez(folder / "data.npz", x=data.rows[order], y=data.target[order])
        source: dict[str, Any] = {"source": "npz", "file": "data.npz", "scaling": "global"}
        model = {"class": f"{STAGES}/training/models.py:DigitsCNN"}
        model["arguments"] = {"channels": 8, "dropout2d": 0.1, "dropout": 0.3}  # type: ignore[assignment]
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
        model["arguments"] = {"inputs": width, "outputs": outputs, "hidden": [32], "dropout": 0.2}  # type: ignore[assignment]
    content: dict[str, Any] = {
        "name": "planted",
        "task": data.task,
        "model": model,
        "data": source,
        "split": {"validation": 0.1, "test": 0.05, "calibration": 0.25, "seed": SEED},
        "training": {"epochs": 8, "batch_size": 64, "seed": SEED},
        "optimiser": {"learning_rate": 0.005},
    }
    path, store = folder / "recipe.toml", Store(folder / "model_store")
    run, _ = train(prepare(RecipeFile(path, check_recipe(content, path))), store)
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    version = export_run(store, run, ExportSettings(), stage)
    with np.load(run.path("calibration.npz")) as held:
        calibration = held["input"].astype(np.float32)
    nearest = GraphFiles(version, "onnx", 1).nearest()
    if nearest is None:
        raise RuntimeError(f"{name}: no graph of distances; {(version.folder / 'export.json').read_text()}")
    return Predictor(version), version, nearest, calibration


def ask(predictor: Predictor, rows: Rows) -> Answer:
    """The Monte Carlo answer to rows."""
    (answer,) = predictor.answer([Query({"input": rows}, Settings())])
    if isinstance(answer, Exception):
        raise answer
    return answer


class Scores:
    """Every score of a version, each flagging above its threshold from the calibration rows."""

    def __init__(self, predictor: Predictor, nearest: Any, calibration: Rows) -> None:
        self.predictor, self.nearest = predictor, nearest
        self.limits = {
            name: OodThreshold.fit(values, score="auto") for name, values in self.values(calibration).items()
        }

    def values(self, rows: Rows) -> dict[str, Any]:
        """The score of each row by name."""
        answer = ask(self.predictor, rows)
        assert answer.calibrated is not None  # noqa: S101
        detected = answer.calibrated.detected
        assert detected is not None  # noqa: S101
        assert answer.statistics is not None  # noqa: S101
        assert detected.nearest is not None  # noqa: S101
        parts = each_part(detected.nearest, detected.ood.parts)
        found = {"auto": detected.values}
        found |= {part.name: parts[:, place] for place, part in enumerate(detected.ood.parts)}
        (statistics,) = answer.statistics.values()
        if isinstance(statistics, ClassificationStatistics):
            found |= {name: getattr(statistics, name) for name in INDECISION}
        self.served = detected.flags
        return found

    def flags(self, rows: Rows) -> Flags:
        """What each score flags; ``auto`` as it is served."""
        found = {name: self.limits[name].flags(values) for name, values in self.values(rows).items()}
        return found | {"auto": self.served}


def planted(data: DataSet, fresh: Rows, other: DataSet, rng: np.random.Generator) -> dict[str, Rows]:
    """What shall be flagged, by its kind."""
    if data.images:
        blank = np.broadcast_to(rng.choice([0, 8, 16], (len(fresh), 1, 1, 1)), fresh.shape)
        return {
            "blank": blank.astype(np.float32),
            "noise": rng.uniform(0, 16, fresh.shape).astype(np.float32),
            "inverted": 16 - fresh,
            "other set": other.rows[rng.permutation(len(other.rows))[: len(fresh)]],
        }
    numbers = [place for place in range(fresh.shape[1]) if place not in data.codes]
    deviation = data.rows.std(axis=0)
    found: dict[str, Rows] = {}
    for size in (10, 100, 10**6):
        rows = fresh.copy()
        place = rng.choice([p for p in numbers if deviation[p] > 0], len(rows))
        each = np.arange(len(rows))
        rows[each, place] = data.rows.mean(axis=0)[place] + size * deviation[place] * rng.choice(
            [-1, 1], len(rows)
        )
        found[f"{size} sd"] = rows
    found["shuffled"] = np.stack([rng.permutation(column) for column in fresh.T], axis=1)
    moved = np.resize(other.rows[rng.permutation(len(other.rows))], (len(fresh), other.rows.shape[1]))
    rows = fresh.copy()
    rows[:, numbers] = np.resize(moved.T, (len(numbers), len(fresh))).T
    found["other table"] = rows
    return found


def distinguishable(clean: Rows, shuffled: Rows) -> float:
    """Held-out AUROC of a random forest between clean and shuffled rows."""
    rows, truth = np.concatenate([clean, shuffled]), np.repeat([0, 1], [len(clean), len(shuffled)])
    forest = RandomForestClassifier(200, random_state=SEED)
    found = cross_val_predict(forest, rows, truth, cv=5, method="predict_proba")[:, 1]
    return float(roc_auc_score(truth, found))


def measured(name: str, data: DataSet, other: DataSet) -> dict[str, Any]:
    """Train, export, plant and count; prints one table."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(len(data.rows))
    kept, fresh = order[: 2 * len(order) // 3], data.rows[order[2 * len(order) // 3 :]]
    with tempfile.TemporaryDirectory() as folder:
        predictor, version, nearest, calibration = published(name, data, kept, Path(folder))
        scores = Scores(predictor, nearest, calibration)
        kinds = {"clean": fresh, **planted(data, fresh, other, rng)}
        found = {kind: scores.flags(rows) for kind, rows in kinds.items()}
        size = version.path("nearest.onnx").stat().st_size
        cost = {f"us_a_row_{count}": microseconds(nearest, fresh[:count]) for count in (1, 64)}
    alarms = found["clean"]["auto"]
    interval = binomtest(int(alarms.sum()), len(alarms)).proportion_ci()
    coverage, spread = coverage_theory(len(calibration), 950, len(alarms))
    expected = 1 - coverage
    told = None if data.images else distinguishable(fresh, kinds["shuffled"])
    title = f"{name}: {len(calibration)} calibration rows, "
    title += f"false alarms {alarms.mean():.3f} of {len(alarms)} fresh"
    title += f" rows [{interval.low:.3f}, {interval.high:.3f}]"
    title += f" (theory {expected:.3f} +- {spread:.3f}); "
    title += f"{size / 1e6:.2f} MB, "
    title += ", ".join(f"{cost[key]:.0f} us a row at {key[9:]}" for key in cost)
    table = Table(
        "score", *kinds, title=title if told is None else f"{title}; forest on shuffled: {told:.2f}"
    )
    for score in found["clean"]:
        table.add_row(score, *(f"{flags[score].mean():.3f}" for flags in found.values()))
    console.print(table)
    shares = {kind: float(flags["auto"].mean()) for kind, flags in found.items()}
    deviations = float(alarms.mean() - expected) / spread
    return {
        "deviations": deviations,
        "shares": shares,
        "interval": [interval.low, interval.high],
        "forest": told,
        **cost,
    }


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="one data set")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for sets in (tables(), images()):
        names = list(sets)
        for place, name in enumerate(names):
            if arguments.only in (None, name):
                found[name] = measured(name, sets[name], sets[names[(place + 1) % len(names)]])
    least = lambda kinds, on: min(  # noqa: E731
        (
            each["shares"][kind]
            for each in found.values()
            for kind in kinds
            if kind in each["shares"] and on(each)
        ),
        default=1.0,
    )
    always, clear = lambda _: True, lambda each: (each["forest"] or 0) >= 0.9
    figures = {
        "false_alarms": float(np.mean([each["shares"]["clean"] for each in found.values()])),
        "most_deviations_from_theory": max(each["deviations"] for each in found.values()),
        "out_of_range_caught": least(("10 sd", "100 sd", "1000000 sd"), always),
        "other_data_caught": least(("other table", "other set", "blank", "noise", "inverted"), always),
        "shuffled_caught": least(("shuffled",), clear),
        "most_us_a_row_64": max(each["us_a_row_64"] for each in found.values()),
        "sets": found,
    }
    console.print({key: value for key, value in figures.items() if key != "sets"})
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
