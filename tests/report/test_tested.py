"""Confusion, precision and recall are those of scikit-learn, and a run without test answers says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from sklearn.metrics import confusion_matrix

from dropserve.report.content import Table
from dropserve.report.evidence import Evidence
from dropserve.report.tested import FILE, answers_to_test_rows

Make = Callable[..., Evidence]


def given(evidence: Evidence, folder: Path, output: np.ndarray, target: np.ndarray) -> Evidence:
    np.savez(folder / FILE, output=output, target=target)
    manifest = evidence.run.manifest.model_copy(update={"files": {FILE: None}})
    run = SimpleNamespace(manifest=manifest, path=lambda name: folder / name)
    return replace(evidence, run=run)  # type: ignore[arg-type]  # a stand-in for a stored run


def test_confusion_is_scikit_learns(make: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 3, 60)  # no row of the fourth class
    output = 2 * np.eye(4)[target] + rng.normal(size=(60, 4))
    found = answers_to_test_rows(given(make(), tmp_path, output, target))
    expected = confusion_matrix(target, output.argmax(axis=1), labels=range(4))
    (table,) = [b for b in found.blocks if isinstance(b, Table) and b.head[0] == "true class"]
    assert [list(map(int, row[1:])) for row in table.rows] == expected.tolist()
    assert f"{expected.trace()} of 60 (95% interval" in found.words[0]
    assert "No test row is of 1 class: dog" in found.words[1]


def test_a_regressors_residuals_stand_beside_the_mean(make: Make, tmp_path: Path) -> None:
    target = np.array([1.0, 2.0, 3.0, 6.0])
    found = answers_to_test_rows(given(make(task="raw"), tmp_path, target[:, None] + 0.5, target))
    assert "On 4 test rows it is off by 0.5 " in found.words[0]
    assert f"would be off by {target.std():.4g}" in found.words[0]


def test_a_run_without_answers_says_so(make: Make) -> None:
    assert "no answers to test rows" in answers_to_test_rows(make()).absent
