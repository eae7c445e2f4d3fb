"""The score ``auto``: from a table with names to the answer that says which value is strange."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.manifest import VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.answering import BatchHandler, HttpRequest, Job
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import Store, Stored
from dropserve.training.recipe_file import RecipeFile, check_recipe
from dropserve.training.run import prepare, train

STAGES = packaged_stages()
Version = Stored[VersionManifest]
SCORE, FLAG, REASON = (f"out_of_distribution{end}" for end in ("_score", "", "_reason"))


def people(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ages = rng.integers(18, 90, count)
    incomes = np.round(12000 + 2000 * ages + rng.normal(0, 8000, count).clip(-11000, 60000))
    jobs = rng.choice(["clerk", "nurse", "pilot"], count)
    return [
        {"age": float(a), "income": float(i), "job": str(j)}
        for a, i, j in zip(ages, incomes, jobs, strict=True)
    ]


def build(folder: Path, task: str, count: int) -> Version:
    rows = people(count, 0)
    rng = np.random.default_rng(1)
    lines = ["age,income,job,answer"]
    for row in rows:
        value = row["age"] / 20 + rng.normal()
        answer = ("yes" if value > 2.7 else "no") if task == "classification" else f"{value:.4f}"
        lines.append(f"{row['age']},{row['income']},{row['job']},{answer}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content: dict[str, Any] = {
        "name": "people",
        "task": task,
        "model": {
            "class": f"{STAGES}/training/models.py:MLP",
            "arguments": {"inputs": 5, "outputs": 2 if task == "classification" else 1},
        },
        "data": {
            "source": "csv",
            "file": "people.csv",
            "target": "answer",
            "categorical": ["job"],
            "unknown": "other",
        },
        "training": {"epochs": 3, "batch_size": 64},
    }
    path, store = folder / "recipe.toml", Store(folder / "model_store")
    run, _ = train(prepare(RecipeFile(path, check_recipe(content, path))), store)
    stage = Stage(STAGES / "serving/handler.py", STAGES / "serving/model-config.yaml")
    return export_run(store, run, ExportSettings(), stage)


@pytest.fixture(scope="module", params=["classification", "regression"])
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return build(tmp_path_factory.mktemp("people"), request.param, 800)


def ask(version: Version, rows: list[dict[str, Any]], backend: Any = "onnx") -> dict[str, Any]:
    codec = Codec(version.manifest, monte_carlo=True)
    call = codec.decode(json.dumps({"instances": rows}).encode())
    (answer,) = Predictor(version, backend=backend).answer([call.query])
    assert not isinstance(answer, Exception), answer
    return json.loads(call.encode(answer).body)


def calibrated(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["calibrated"] for each in document["predictions"]]


def test_a_value_outside_the_training_range_is_flagged_by_its_column(version: Version) -> None:
    strange = [
        {"age": 500, "income": 1e9, "job": "nurse"},
        {"age": -3000, "income": -5e6, "job": "clerk"},
        {"age": 50, "income": 1e9, "job": "pilot"},
        {"age": 500, "income": 112000, "job": "pilot"},
        {"age": 50, "income": 112000, "job": "nurse"},
    ]
    document = ask(version, strange)
    found = calibrated(document)
    assert [row[FLAG] for row in found] == [True, True, True, True, False]
    assert document["calibration"]["out_of_distribution"]["score"] == "auto"
    assert found[2][REASON].startswith("column 'income' is 1e+09; training rows lie between ")
    assert found[3][REASON].startswith("column 'age' is 500; training rows lie between 18 and 89")
    assert found[4][REASON] is None


def test_the_report_and_the_export_name_the_score_and_its_false_alarms(version: Version) -> None:
    page = version.path("report.html").read_text("utf-8")
    assert "auto (distances: range, inputs): flagged above " in page
    assert "at most 5.0% of usual rows on average" in page
    assert "out of distribution by auto" in version.path("export.json").read_text("utf-8")


def test_values_that_do_not_go_together_and_unknown_categories_are_told(version: Version) -> None:
    document = ask(
        version,
        [
            {"age": 89, "income": 40000, "job": "nurse"},
            {"age": 50, "income": 112000, "job": "astronaut"},
        ],
    )
    together, unknown = calibrated(document)
    assert together[FLAG] is True
    assert together[REASON].startswith("distance of its inputs to the nearest training row ")
    assert unknown[FLAG] is True
    assert unknown[REASON] == "the category of column 'job' is one that no training row has"


def test_few_fresh_rows_are_flagged_and_no_score_depends_on_batch_mates(version: Version) -> None:
    rows = people(400, 7)
    together = calibrated(ask(version, rows))
    assert np.mean([row[FLAG] for row in together]) < 0.12
    alone = [calibrated(ask(version, [row]))[0] for row in rows[:5]]
    assert together[:5] == alone
    script = calibrated(ask(version, rows[:50], "torchscript"))
    scores = [[row[SCORE] for row in found] for found in (together[:50], script)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3, atol=1e-3)


def test_a_long_request_in_chunks_gets_the_answer_of_the_whole(version: Version) -> None:
    handler = BatchHandler("people-mc", load_endpoint(version.folder, "people-mc", {"threads": 1}))
    rows = [*people(300, 9), {"age": 500, "income": 1e9, "job": "nurse"}]
    request = HttpRequest(json.dumps({"instances": rows}).encode(), "x")
    (job,) = handler.begin([request])
    assert isinstance(job, Job)
    steps = 1
    while (reply := job.step()) is None:
        steps += 1
    assert steps > 2
    assert reply == handler([request])[0]
    assert b"column 'income' is 1e+09" in reply.body


def test_with_too_few_rows_only_values_far_outside_are_told(tmp_path: Path) -> None:
    version = build(tmp_path, "classification", 60)
    document = ask(
        version,
        [{"age": 50, "income": 1e9, "job": "nurse"}, {"age": 50, "income": 112000, "job": "nurse"}],
    )
    assert document["calibration"]["out_of_distribution"]["threshold"] is None
    assert any("Only values far outside" in note for note in document["calibration"]["notes"])
    far, usual = calibrated(document)
    assert (far[FLAG], usual[FLAG]) == (True, None)
    assert far[REASON].startswith("column 'income' is 1e+09")
