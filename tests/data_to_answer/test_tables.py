"""Tables with categories and gaps, from a file to the answers of a real TorchServe, by a user's commands.

What the answers must be is computed without us: scikit-learn's imputers, scaler and one-hot encoder, fitted
on the training rows, and the network in numpy with the weights of the run and the masks of the seed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from dropserve.client import Client
from dropserve.dropout.masks import draw
from dropserve.errors import RequestError
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.runtime import free_ports
from dropserve.store import Store, Stored
from dropserve.training.data import load_dataset
from dropserve.training.recipe_file import load_recipe

pytestmark = pytest.mark.slow

JOBS, GRADES = ["clerk", "nurse", "teacher"], ["1", "2", "3", "4"]
COLUMNS = ["age", "job", "pay", "grade"]
SETTINGS = {"mc_samples": 60, "mc_seed": 7}
RECIPE = """
name = "{name}"
task = "{task}"

[model]
class = "{models}:MLP"
arguments = {{ inputs = 10, outputs = {outputs}, hidden = [24], dropout = 0.3 }}

[data]
source = "{source}"
file = "rows.{source}"
target = "{target}"
features = ["age", "job", "pay", "grade"]
categorical = ["grade"]
impute = "median"
impute_categories = "missing"

[data.columns.grade]
impute = "most_frequent"
unknown = "other"

[data.columns.pay]
impute = "mean"

[training]
epochs = 12
batch_size = 32

[optimiser]
learning_rate = 0.01
"""
CASES = {
    "csv": {"name": "bands", "task": "classification", "outputs": 3, "target": "band"},
    "parquet": {"name": "bonus", "task": "regression", "outputs": 1, "target": "bonus"},
}


def table() -> pd.DataFrame:
    """400 people; a tenth of each feature is missing."""
    r = np.random.default_rng(1)
    age, job, grade = r.normal(40, 12, 400).round(1), r.choice(JOBS, 400), r.integers(1, 5, 400)
    bonus = age / 10 + 2 * (job == "nurse") + grade + r.normal(0, 0.5, 400)
    frame = pd.DataFrame({"age": age, "job": job, "pay": r.lognormal(3, 0.5, 400).round(2), "grade": grade})
    frame = frame.astype({"grade": "Int64"}).mask(r.random((400, 4)) < 0.1)
    bands = np.array(["low", "middle", "top"])[np.digitize(bonus, [6, 8.5])]
    return frame.assign(band=bands, bonus=bonus.round(2))


ASKED = [
    {"age": 31, "job": "nurse", "pay": 20.5, "grade": 3},
    {"age": None, "job": "clerk", "pay": 8, "grade": "1"},
    {"age": 55.5, "job": None, "pay": None, "grade": None},
    {"age": 40, "job": "teacher", "pay": 30, "grade": "another"},
]


@dataclass(frozen=True)
class Case:
    """A trained and exported model."""

    source: str
    run: Stored[RunManifest]
    version: Stored[VersionManifest]
    folder: Path

    @property
    def name(self) -> str:
        return str(CASES[self.source]["name"])

    @cached_property
    def inputs(self) -> np.ndarray:
        """What scikit-learn makes of the rows asked about, ``[4, 10]``."""
        file = load_recipe(self.folder / f"{self.source}.toml")
        train = load_dataset(file.recipe, file.folder).split.train
        raw = table()[COLUMNS].astype({"grade": object, "job": object})
        raw["grade"] = raw["grade"].map(str, na_action="ignore")
        raw = raw.replace({pd.NA: np.nan, None: np.nan})
        numbers = {
            name: make_pipeline(SimpleImputer(strategy=how), StandardScaler())
            for name, how in (("age", "median"), ("pay", "mean"))
        }
        job = make_pipeline(
            SimpleImputer(strategy="constant", fill_value="missing"),
            OneHotEncoder(categories=[[*JOBS, "missing"]]),
        )
        grade = make_pipeline(
            SimpleImputer(strategy="most_frequent"),
            OneHotEncoder(categories=[GRADES], handle_unknown="ignore"),
        )
        steps = [("age", numbers["age"]), ("job", job), ("pay", numbers["pay"]), ("grade", grade)]
        whole = ColumnTransformer([(name, step, [name]) for name, step in steps], sparse_threshold=0)
        asked = pd.DataFrame(ASKED)[COLUMNS].replace({None: np.nan})
        asked["grade"] = asked["grade"].map(str, na_action="ignore")
        return whole.fit(raw.iloc[train]).transform(asked)

    def outputs(self, masks: np.ndarray) -> np.ndarray:
        """The network in numpy, ``[T, 4, outputs]``: probabilities, or values in their own unit."""
        w = load_file(self.run.path("weights.safetensors"))
        hidden = np.maximum(self.inputs @ w["layers.0.weight"].T + w["layers.0.bias"], 0)
        out = (hidden * masks[:, None]) @ w["layers.3.weight"].T + w["layers.3.bias"]
        target = self.run.manifest.preprocessing.target
        return softmax(out, axis=-1) if target is None else out * target.scale[0] + target.mean[0]

    @cached_property
    def plain(self) -> np.ndarray:
        return self.outputs(np.ones((1, 24)))[0]

    @cached_property
    def samples(self) -> np.ndarray:
        sites = self.version.manifest.sites
        return self.outputs(draw(sites, SETTINGS["mc_samples"], seed=SETTINGS["mc_seed"])[sites[0].scale])


def dropserve(folder: Path, *words: str, stdin: str | None = None) -> str:
    line = [str(Path(sys.executable).parent / "dropserve"), *words]
    done = subprocess.run(line, cwd=folder, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files, both recipes; trained and exported."""
    folder = tmp_path_factory.mktemp("tables")
    table().to_csv(folder / "rows.csv", index=False)
    table().to_parquet(folder / "rows.parquet")
    models = packaged_stages() / "training/models.py"
    for source, keys in CASES.items():
        (folder / f"{source}.toml").write_text(RECIPE.format(source=source, models=models, **keys))
        dropserve(folder, "train", f"{source}.toml")
        dropserve(folder, "export", str(keys["name"]))
    return folder


@pytest.fixture(scope="module")
def url(project: Path) -> Iterator[str]:
    """One TorchServe with both models."""
    port = free_ports(1)[0]
    dropserve(project, "serve", *(str(keys["name"]) for keys in CASES.values()), "--port", str(port))
    yield f"http://127.0.0.1:{port}"
    dropserve(project, "stop")


@pytest.fixture(scope="module", params=list(CASES))
def case(project: Path, request: pytest.FixtureRequest) -> Case:
    store, name = Store(project / "model_store"), str(CASES[request.param]["name"])
    return Case(request.param, store.run(name), store.version(name), project)


def near(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, float), expected, rtol=2e-5, atol=2e-6)


def told(case: Case, predictions: list[dict[str, Any]]) -> list[Any]:
    """The figures of an answer as the oracle has them."""
    if case.source == "csv":
        return [list(prediction["probabilities"].values()) for prediction in predictions]
    return [[prediction["value"]] for prediction in predictions]


def post(url: str, path: str, document: Any) -> dict[str, Any]:
    response = httpx.post(url + path, json=document, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("form", ["by name", "by list"])
def test_v1_on_both_endpoints(url: str, case: Case, form: str) -> None:
    rows = ASKED if form == "by name" else [list(row.values()) for row in ASKED]
    plain = post(url, f"/predictions/{case.name}", {"instances": rows})
    near(told(case, plain["predictions"]), case.plain)
    document = {"instances": rows, "parameters": SETTINGS}
    answer = post(url, f"/v1/models/{case.name}-mc:predict", document)
    near(told(case, answer["predictions"]), case.samples.mean(axis=0))
    doubt = [prediction["uncertainty"] for prediction in answer["predictions"]]
    if case.source == "csv":
        total = entropy(case.samples.mean(axis=0), axis=-1)
        near([each["predictive_entropy"] for each in doubt], total)
    else:
        near([[each["standard_deviation"]] for each in doubt], case.samples.std(axis=0))
    usual = post(url, f"/predictions/{case.name}-mc", {"instances": rows})
    assert all(prediction["calibrated"] is not None for prediction in usual["predictions"])


def test_v2_has_an_input_for_each_column(url: str, case: Case) -> None:
    columns = {name: [row[name] for row in ASKED] for name in COLUMNS}
    columns["grade"] = [None if value is None else str(value) for value in columns["grade"]]
    entries = [
        {
            "name": name,
            "shape": [4],
            "datatype": "BYTES" if name in {"job", "grade"} else "FP32",
            "data": data,
        }
        for name, data in columns.items()
    ]
    own = "probabilities" if case.source == "csv" else "value"
    document = {"inputs": entries, "parameters": SETTINGS, "outputs": [{"name": own}]}
    (output,) = post(url, f"/v2/models/{case.name}-mc/infer", document)["outputs"]
    near(np.reshape(output["data"], (4, -1)), case.samples.mean(axis=0))
    binary = {
        name: np.array(data, np.float32) if name in {"age", "pay"} else data for name, data in columns.items()
    }
    with Client(url) as client:
        near(client.infer(case.name, binary)[own].reshape(4, -1), case.plain)


def test_the_commands_and_the_client_of_people(url: str, case: Case) -> None:
    (case.folder / "rows.json").write_text(json.dumps(ASKED))
    words = ["predict", "--model", case.name, "--input", "rows.json", "--json"]
    near(told(case, json.loads(dropserve(case.folder, *words))["predictions"]), case.plain)
    lone = json.dumps(list(ASKED[1].values()))
    found = json.loads(dropserve(case.folder, *words[:3], "--json", stdin=lone))
    near(told(case, found["predictions"]), case.plain[1:2])
    with Client(url) as client:
        again = client.predict(case.name, pd.DataFrame(ASKED), mc=True, samples=60, seed=7)
        assert again == client.predict(case.name, ASKED, mc=True, samples=60, seed=7)
        with pytest.raises(RequestError, match=r'instance 0, "job" is a string \("smith"\)'):
            client.predict(case.name, [ASKED[0] | {"job": "smith"}])


def test_what_is_known_of_the_columns_is_told(case: Case) -> None:
    manifest = case.version.manifest
    age, job, pay, grade = manifest.preprocessing.columns["input"]
    assert job.categories == (*JOBS, "missing")
    assert (grade.categories, grade.other) == (tuple(GRADES), True)
    assert None not in {age.fill, job.fill, pay.fill, grade.fill}
    checks = {check.name: check for check in manifest.checks}
    assert {check.verdict for check in manifest.checks} <= {"passed", "skipped"}
    kinds = 5  # rows, random, zeros, large, missing
    runs = re.search(r"in (\d+) runs", checks["parity-torchscript"].evidence)
    assert runs is not None
    assert int(runs[1]) == kinds * 4 + 1, "at 1, 2, 3 and 17 rows; and one batch of edge rows"
    page = case.version.path("report.html").read_text("utf-8")
    assert "clerk, nurse, teacher, missing" in page
    assert "1, 2, 3, 4, or another" in page


def test_the_shipped_recipe_of_a_table_goes_all_the_way(tmp_path: Path) -> None:
    recipe = packaged_stages() / "training/recipes/cafes.toml"
    dropserve(tmp_path, "train", str(recipe), "--epochs", "5")
    assert "published" in dropserve(tmp_path, "export", "cafes")
    example = (packaged_stages() / "examples/cafe.json").read_text()
    port = str(free_ports(1)[0])
    dropserve(tmp_path, "serve", "cafes", "--engine", "asgi", "--port", port)
    try:
        found = dropserve(tmp_path, "predict", "--mc", "--json", stdin=example)
    finally:
        dropserve(tmp_path, "stop")
    assert 1 < json.loads(found)["predictions"][0]["value"] < 5
