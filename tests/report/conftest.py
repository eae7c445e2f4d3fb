"""Evidence as an export hands it over, made without one: the answers are drawn, the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropserve.dropout.engine import Settings
from dropserve.manifest import CheckRecord, RunManifest, SourceRecord, VersionManifest
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.signature import Signature, Site, TensorSpec
from dropserve.store import Store
from dropserve.uncertainty.fitting import calibrate_classifier, calibrate_regressor

SETTINGS = Settings()
SITE = Site(name="drop", kind="dropout", p=0.5, shape=(16,), scale="mask_0", where="net.py:12")
CHECKS = (
    CheckRecord(name="forward-runs", verdict="passed", evidence="3 forwards"),
    CheckRecord(name="variable-lengths", verdict="skipped", evidence="no input has a variable length"),
)
PARITY = {"parity-onnx": {"runs": 80, "problem": None, "max": 5.2e-7, "mean": 3.6e-8, "p99": 2.5e-7}}
CURVE = """epoch,train_loss,validation_loss,validation_accuracy,learning_rate,seconds
1,1.7,0.8,0.85,0.001,1.0
2,0.7,0.3,0.90,0.001,1.0
3,0.4,0.2,0.95,0.001,1.0
4,0.2,0.4,0.91,0.001,1.0
"""
Make = Callable[..., Evidence]


def _class_rows(rows: int = 200, classes: int = 4, seed: int = 0) -> HeldOut:
    """Answers that are right more often than not, and too unsure; pictures of 8 x 8 as inputs."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, rows)
    plain = 1.5 * np.eye(classes)[target] + rng.normal(size=(rows, classes))
    samples = 0.5 * plain + rng.normal(scale=0.4, size=(SETTINGS.samples, rows, classes))
    inputs = {"input": rng.integers(0, 17, (rows, 64)).astype(np.float32)}
    return HeldOut(inputs, target, plain.astype(np.float32), samples.astype(np.float32), SETTINGS, rows)


def _value_rows(rows: int = 200, targets: int = 1) -> HeldOut:
    """Answers whose errors have the deviation 2, around samples of deviation 0.5."""
    rng = np.random.default_rng(1)
    plain = rng.normal(50, 10, (rows, targets))
    target = plain + rng.normal(scale=2, size=plain.shape)
    samples = plain + rng.normal(scale=0.5, size=(SETTINGS.samples, *plain.shape))
    inputs = {"input": rng.normal(size=(rows, 10)).astype(np.float32)}
    return HeldOut(inputs, target, plain, samples, SETTINGS, rows)


@pytest.fixture
def class_rows() -> Callable[..., HeldOut]:
    return _class_rows


@pytest.fixture
def value_rows() -> Callable[..., HeldOut]:
    return _value_rows


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Evidence of a trained classifier; what is given by name replaces its part."""

    def evidence(
        held: HeldOut | str | None = None,
        *,
        task: str = "classification",
        curve: str | None = CURVE,
        dropout: bool = True,
        name: str = "net",
        labels: tuple[str, ...] = ("ant", "bee", "cat", "dog"),
        checks: tuple[CheckRecord, ...] = CHECKS,
        run_changes: dict[str, Any] | None = None,
        intervals: Any = "scaled",
        **changes: Any,
    ) -> Evidence:
        held = _class_rows() if held is None else held
        shared: dict[str, Any] = {
            "name": name,
            "task": task,
            "labels": labels if task == "classification" else (),
            "signature": Signature(
                inputs=(TensorSpec(name="input", shape=(64,)),),
                outputs=(TensorSpec(name="output", shape=(4,)),),
            ),
            "source": SourceRecord(spec="/x/net.py:Net", sha256="a1" * 32, copy_file="source/net.py"),
            "metrics": {"validation_accuracy": 0.91, "test_accuracy": 0.87, "best_epoch": 3.0},
            "data": {"source": "animals", "sha256": "b2" * 32, "rows": {"train": 900, "test": 100}},
        }
        shared |= run_changes or {}
        store = Store(tmp_path / f"store-{len(list(tmp_path.iterdir()))}")
        with store.staging("net", RunManifest) as staging:
            if curve is not None:
                (staging.folder / "learning_curve.csv").write_text(curve)
            run = store.publish(staging, RunManifest(id=staging.id, **shared))
        folder = tmp_path / f"version-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"graph")
        calibration = None
        if isinstance(held, HeldOut) and held.samples is not None and task != "raw":
            if task == "classification":
                found = calibrate_classifier(
                    held.samples,
                    held.target,
                    held.inputs,
                    settings=SETTINGS,
                    sites=[SITE],
                    plain=held.plain,
                )
            else:
                found = calibrate_regressor(
                    held.samples, held.target, settings=SETTINGS, sites=[SITE], method=intervals
                )
            calibration = found.to_json()
        manifest = VersionManifest(
            version=7,
            run=run.manifest.id,
            sites=(SITE,) if dropout else (),
            checks=checks,
            calibration=calibration,
            **shared,
        )
        values: dict[str, Any] = {
            "calibrated": "not calibrated: the reason" if calibration is None else "calibrated on 200 rows",
            "parity": PARITY,
            "notes": [],
            "seconds": {"load": 0.5, "export": 7.5},
        }
        return Evidence(run=run, manifest=manifest, folder=folder, held=held, **(values | changes))

    return evidence
