"""The audit over the zoo: every broken model refused with the right place, no correct one refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zoo

from dropserve.export.audit import run_audit
from dropserve.export.audit.full import full_audit
from dropserve.export.subject import Subject
from dropserve.training.recipe_file import load_recipe
from dropserve.training.run import prepare

BROKEN, CORRECT = zoo.broken(), zoo.correct()


def test_the_zoo_is_large_enough_and_every_fault_has_a_place() -> None:
    assert len(BROKEN) >= 25
    assert len(CORRECT) >= 15
    assert all(animal.check and animal.places for animal in BROKEN)


@pytest.mark.parametrize("animal", BROKEN, ids=lambda animal: animal.name)
def test_a_broken_model_is_refused_at_the_right_place(animal: zoo.Animal) -> None:
    records = run_audit(animal.subject(), zoo.SETTINGS, rebuild=animal.build)
    failed = {record.name: record for record in records if record.verdict == "failed"}
    assert animal.check in failed, f"refused by {sorted(failed)}"
    assert failed[animal.check].where.endswith(animal.places), failed[animal.check]
    assert all(record.remedy and record.evidence for record in failed.values())
    assert not any("could not finish" in record.evidence for record in records)


@pytest.mark.parametrize("animal", CORRECT, ids=lambda animal: animal.name)
def test_a_correct_model_is_not_refused(animal: zoo.Animal) -> None:
    stages = ["eager", "converse"]
    records = run_audit(animal.subject(), zoo.SETTINGS, rebuild=animal.build, stages=stages)
    assert [record for record in records if record.verdict == "failed"] == []
    judged = {record.name for record in records if record.verdict == "passed"}
    assert judged >= {"torch-random-state", "random-operators", "repeated-forwards", "row-independence"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:careful:UserWarning")  # one model of the zoo warns
@pytest.mark.parametrize(
    "animal", [animal for animal in CORRECT if animal.formats], ids=lambda animal: animal.name
)
def test_the_graphs_of_a_correct_model_are_not_refused(animal: zoo.Animal) -> None:
    records = full_audit(animal.subject(), animal.settings(), rebuild=animal.build)
    assert [record for record in records if record.verdict == "failed"] == []
    assert any(record.name == "parity-onnx" and record.verdict == "passed" for record in records)


RECIPES = sorted((Path(__file__).parents[3] / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_model_of_a_shipped_recipe_is_not_refused(recipe: Path) -> None:
    prepared = prepare(load_recipe(recipe))
    data = prepared.dataset
    rows = {prepared.signature.inputs[0].name: data.features[data.split.validation].astype(np.float32)}
    subject = Subject(recipe.stem, prepared.build().eval(), prepared.model_inputs, rows)
    records = run_audit(subject, zoo.SETTINGS, rebuild=prepared.build, stages=["eager", "converse"])
    assert [record for record in records if record.verdict == "failed"] == []
    assert {r.name for r in records if r.verdict == "passed"} >= {
        "every-site-acts",
        "matches-training-dropout",
    }
