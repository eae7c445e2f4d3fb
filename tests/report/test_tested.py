"""Confusion, precision and recall are those of scikit-learn, and a run without test answers says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from dropserve.report.content import Table
from dropserve.report.evidence import Evidence
from dropserve.report.page import compose
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


def test_the_first_page_says_what_was_measured(make: Make, tmp_path: Path) -> None:
    target = np.arange(60) % 3
    output = 5.0 * np.eye(4)[target]
    answers = compose(given(make(), tmp_path, output, target)).summary
    said = {answer.question: " ".join(answer.said) for answer in answers}
    assert "net is a classifier that chooses among 4 classes (ant, bee, cat, dog)" in said["What is it?"]
    assert "trained on 900 rows of animals" in said["What is it?"]
    assert "60 of 60 (95% interval" in said["How good is it?"]
    assert (
        "right on 20. (These are 60 of 100, drawn at random.) On these rows the model is clearly better"
        in said["How good is it?"]
    )
    assert "calibrated on 200 rows" in said["How sure is it?"]
    limits = said["What must it not be used for?"]
    assert "tested on 60 rows" in limits
    assert "right about dog (0): fewer than 20 test rows" in limits


def test_the_first_page_of_a_run_without_test_rows_says_so(make: Make) -> None:
    run = {"metrics": {"validation_accuracy": 0.9}, "data": {"source": "animals", "rows": {"validation": 50}}}
    answers = compose(make("the run has no held-out rows", dropout=False, run_changes=run)).summary
    said = {answer.question: " ".join(answer.said) for answer in answers}
    assert "90.0% of 50 validation rows" in said["How good is it?"]
    assert "also chose the epoch" in said["How good is it?"]
    assert "no dropout to sample" in said["How sure is it?"]
    assert "no test rows were held out" in said["What must it not be used for?"]
    assert "there is none" in said["What must it not be used for?"]


@pytest.mark.parametrize("seed", range(20))
def test_a_model_is_called_better_than_the_most_frequent_class_only_if_it_is(
    make: Make, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 80))
    target = rng.integers(0, 4, rows) * rng.integers(0, 2, rows)
    output = rng.uniform(0, 3) * np.eye(4)[target] + rng.normal(size=(rows, 4))
    said = answers_to_test_rows(given(make(), tmp_path, output, target)).words[0]
    right, usual = output.argmax(axis=1) == target, target == np.bincount(target).argmax()
    won, lost = (right & ~usual).sum(), (usual & ~right).sum()
    if "clearly better" in said:
        assert binomtest(int(won), int(won + lost)).proportion_ci(method="wilson").low > 0.5
    elif "within chance" in said:
        assert won > lost
    else:
        assert "no better" in said
        assert right.sum() <= usual.sum()


def test_answers_that_are_no_numbers_are_said(make: Make, tmp_path: Path) -> None:
    output = np.full((3, 4), np.nan)
    found = answers_to_test_rows(given(make(), tmp_path, output, np.array([0, 1, 2])))
    assert "3 of 3" in found.absent
    none = answers_to_test_rows(given(make(), tmp_path, np.empty((0, 4)), np.empty(0, int)))
    assert "no test rows" in none.absent
