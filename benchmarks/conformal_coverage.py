"""Do prediction sets hold the true class as often as they say? Real digits, random splits, theory and MAPIE.

The digits recipe is trained on half of the rows and exported. The other half is split at random into
calibration and test rows, 100 times, and each time sets are compared with the truth: the library's, by all
three methods and beside MAPIE's, and those that the endpoint returns as JSON at its default settings.
Given any pool of rows the theory of the mean coverage over such splits is exact
(``quantiles.coverage_theory``). Its range is one of 99%: there are eight, and one of 95% would miss one of
the eight in every third trial. The library's sets are judged with empty ones allowed, so that the theory is
exact. Those of the endpoint hold at least the label, so their coverage must only not be below the theory's:
``served_worst_gap_points`` is how far below, ``served_over_coverage_points`` how far above.

    python benchmarks/conformal_coverage.py [--splits 100] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mapie.classification import SplitConformalClassifier
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.base import BaseEstimator, ClassifierMixin

from dropserve.dropout.engine import Settings
from dropserve.dropout.statistics import softmax
from dropserve.manifest import VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.loading import GraphFiles
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import Store, Stored
from dropserve.uncertainty.conformal import (
    METHODS,
    ConformalClassifier,
    choose_penalty,
    row_uniforms,
)
from dropserve.uncertainty.fitting import calibrate_classifier
from dropserve.uncertainty.metrics import accuracy
from dropserve.uncertainty.quantiles import coverage_theory

Float = NDArray[np.float64]
Whole = NDArray[np.int64]
COVERAGES = (900, 950)
CALIBRATION = 459  # (n + 1) c is whole for both coverages, so the theory's mean is the target itself
TUNING = 120  # rows on which RAPS chooses its penalty, in no split


class Given(ClassifierMixin, BaseEstimator):
    """For MAPIE: an estimator whose features are its probabilities."""

    classes_ = np.arange(10)
    fitted_ = True

    def fit(self, _x: Float, _y: Float) -> Given:
        """Nothing to do."""
        return self

    def predict_proba(self, x: Float) -> Float:
        """The probabilities themselves."""
        return x

    def predict(self, x: Float) -> Whole:
        """The most probable class."""
        return x.argmax(axis=1)


@dataclass(frozen=True)
class Pool:
    """Rows that were not trained on, and what the exported graphs say of them at default settings."""

    version: Stored[VersionManifest]
    x: NDArray[np.float32]
    y: Whole
    logits: Float

    @property
    def mean(self) -> Float:
        """Mean probabilities [B, C]."""
        return softmax(self.logits).mean(axis=0)


def make_pool(folder: Path) -> Pool:
    """Train and export the digits recipe, half of the rows held out."""
    from dropserve.export.archive import Stage  # noqa: PLC0415  # torch, for as long as it is needed
    from dropserve.export.pipeline import export_run  # noqa: PLC0415
    from dropserve.export.settings import ExportSettings  # noqa: PLC0415
    from dropserve.training.recipe_file import load_recipe  # noqa: PLC0415
    from dropserve.training.run import prepare, train  # noqa: PLC0415

    stages = packaged_stages()
    halves = {"split.validation": 0.25, "split.test": 0.25}
    prepared = prepare(load_recipe(stages / "training/recipes/digits.toml", halves))
    run, _ = train(prepared, Store(folder))
    stage = Stage(stages / "serving/handler.py", stages / "serving/model-config.yaml")
    version = export_run(Store(folder), run, ExportSettings(formats=("onnx",)), stage)
    split, table = prepared.dataset.split, prepared.dataset.table
    held = np.concatenate([split.validation, split.test])
    x, y = table.features[held].astype(np.float32), table.target[held].astype(np.int64)
    engine = GraphFiles(version, "onnx", 1).monte_carlo()
    assert engine is not None  # noqa: S101  # for the type checker
    logits = engine.samples({"input": x}, Settings())["output"].astype(np.float64)
    return Pool(version, x, y, logits)


def mapie_sets(method: str, p: Float, y: Whole, new: Float, seed: int) -> NDArray[np.bool_]:
    """MAPIE's sets [B, C, coverage]; APS and RAPS randomised, as ours are."""
    oracle = SplitConformalClassifier(
        Given(), confidence_level=[c / 1000 for c in COVERAGES], conformity_score=method, random_state=seed
    )
    params = None if method == "lac" else {"include_last_label": "randomized"}
    return oracle.conformalize(p, y).predict_set(new, conformity_score_params=params)[1]


def served_sets(pool: Pool, a: Whole, b: Whole) -> list[NDArray[np.bool_]]:
    """The sets [B, C] that the endpoint returns, calibrated on rows ``a``, asked about rows ``b``."""
    record = calibrate_classifier(
        pool.logits[:, a],
        pool.y[a],
        {"input": pool.x[a]},
        settings=Settings(),
        sites=pool.version.manifest.sites,
    )
    manifest = pool.version.manifest.model_copy(update={"calibration": record.to_json()})
    version = replace(pool.version, manifest=manifest)
    codec = Codec(manifest, monte_carlo=True)
    instances = pool.x[b].tolist()
    asked = [{}, {"parameters": {"mc_coverage": COVERAGES[1]}}]  # the default is 900
    calls = [codec.decode(json.dumps({"instances": instances} | more).encode()) for more in asked]
    found: list[NDArray[np.bool_]] = []
    for call, answer in zip(calls, Predictor(version).answer([c.query for c in calls]), strict=True):
        if isinstance(answer, Exception):
            raise answer
        sets = np.zeros((len(b), 10), bool)
        for row, prediction in enumerate(json.loads(call.encode(answer).body)["predictions"]):
            sets[row, [int(label) for label in prediction["calibrated"]["prediction_set"]]] = True
        found.append(sets)
    return found


def judge(sets: NDArray[np.bool_], y: Whole) -> tuple[float, float, float]:
    """Coverage, mean size and share of empty sets."""
    size = sets.sum(axis=1)
    return float(sets[np.arange(len(y)), y].mean()), float(size.mean()), float((size == 0).mean())


def measure(pool: Pool, splits: int) -> dict[tuple[str, int], NDArray[np.float64]]:
    """For each way of making sets and each coverage, [splits, 6]: coverage, size, empty; MAPIE's the same."""
    rng = np.random.default_rng(0)
    p, u = pool.mean, row_uniforms({"input": pool.x}, seed=0)
    mixed = rng.permutation(len(p))
    tuning, rest = mixed[:TUNING], mixed[TUNING:]
    penalty, free = choose_penalty(p[tuning], pool.y[tuning], u[tuning])
    found: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for split in range(splits):
        mixed = rng.permutation(rest)
        a, b = mixed[:CALIBRATION], mixed[CALIBRATION:]
        theirs = {m: mapie_sets(m, p[a], pool.y[a], p[b], split) for m in METHODS}
        served = served_sets(pool, a, b)
        for i, coverage in enumerate(COVERAGES):
            for method in METHODS:
                fitted = ConformalClassifier.fit(
                    p[a], pool.y[a], method=method, uniforms=u[a], penalty=penalty, free_ranks=free
                )
                mine = judge(fitted.sets(p[b], coverage, u[b], allow_empty=True), pool.y[b])
                row = (*mine, *judge(theirs[method][:, :, i], pool.y[b]))
                found.setdefault((method, coverage), []).append(row)
            row = (*judge(served[i], pool.y[b]), *judge(theirs["lac"][:, :, i], pool.y[b]))
            found.setdefault(("served", coverage), []).append(row)
    return {key: np.array(rows) for key, rows in found.items()}


def main() -> None:
    """Print the table; write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = make_pool(Path(folder))
        found = measure(pool, arguments.splits)
    right, test = accuracy(pool.mean, pool.y), len(pool.y) - TUNING - CALIBRATION
    table = Table(
        *("asked", "sets", "coverage", "theory, 99% range", "MAPIE", "mean size", "MAPIE", "ratio", "empty"),
        title=f"digits, accuracy {right:.4f}; {CALIBRATION} calibration and {test} test rows, "
        f"{arguments.splits} splits",
    )
    figures: dict[str, Any] = {"splits": arguments.splits, "accuracy": right}
    gaps: dict[bool, float] = {False: 0.0, True: 0.0}
    inside: dict[bool, bool] = {False: True, True: True}
    over = 0.0
    for (method, coverage), rows in sorted(found.items(), key=lambda item: item[0][1]):
        hit, size, empty, their_hit, their_size, _ = rows.mean(axis=0).tolist()
        mean, deviation = coverage_theory(CALIBRATION, coverage, test)
        reach = 2.576 * deviation / np.sqrt(arguments.splits)
        served = method == "served"
        within = hit >= mean - reach if served else abs(hit - mean) <= reach
        gap = (coverage / 1000 - hit) * 100
        gaps[served] = max(gaps[served], gap if served else abs(gap))
        over = max(over, -gap) if served else over
        inside[served] = inside[served] and bool(within)
        key = f"{method}_{coverage}"
        figures |= {
            f"coverage_{key}": hit,
            f"within_theory_{key}": bool(within),
            f"size_{key}": size,
            f"mapie_size_{key}": their_size,
            f"size_ratio_{key}": size / their_size,
            f"empty_{key}": empty,
            f"spread_ratio_{key}": float(rows[:, 0].std(ddof=1) / deviation),
        }
        table.add_row(
            f"{coverage / 10:g}%",
            "endpoint (lac)" if served else method,
            f"{hit:.4f}",
            f"{mean - reach:.4f} to {mean + reach:.4f}{'' if within else ' (outside)'}",
            *(f"{value:.4f}" for value in (their_hit, size, their_size, size / their_size)),
            f"{empty:.1%}",
        )
    figures |= {
        "worst_gap_points": gaps[False],
        "within_theory": inside[False],
        "served_worst_gap_points": gaps[True],
        "served_within_theory": inside[True],
        "served_over_coverage_points": over,
    }
    for coverage in COVERAGES:
        pairs = [(m, figures[f"size_{m}_{coverage}"], figures[f"mapie_size_{m}_{coverage}"]) for m in METHODS]
        figures[f"sizes_{coverage}"] = "; ".join(f"{m} {a:.3f} / {b:.3f}" for m, a, b in pairs)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"Furthest from the coverage asked: {gaps[False]:.2f} points in the library; through the endpoint "
        f"{gaps[True]:.2f} points below and {over:.2f} above; as the theory says: {inside[False]}, "
        f"{inside[True]}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"figures": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
