"""Tables with gaps and categories: scikit-learn's pipeline is the oracle, the graph must agree to the bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from dropserve.errors import DataError, RecipeError
from dropserve.model import ServedModel
from dropserve.training.data import INPUT, Dataset, load_dataset
from dropserve.training.recipe_file import check_recipe

JOBS = ("clerk", "nurse", "teacher")


def frame(rows: int = 60, seed: int = 0, gaps: float = 0.2) -> pd.DataFrame:
    """Numbers, categories and numbers that are names, some of them missing; a target without gaps."""
    r = np.random.default_rng(seed)
    lost = r.random((rows, 4)) < gaps
    return pd.DataFrame(
        {
            "age": np.where(lost[:, 0], np.nan, r.normal(40, 12, rows).round(1)),
            "job": np.where(lost[:, 1], None, r.choice(JOBS, rows)),
            "pay": np.where(lost[:, 2], np.nan, r.lognormal(3, 1, rows)),
            "grade": np.where(lost[:, 3], np.nan, r.integers(1, 5, rows)),
            "y": r.normal(size=rows),
        }
    )


def load(folder: Path, recipe: dict[str, Any], table: pd.DataFrame, **data: Any) -> Dataset:
    """The table through CSV and through Parquet, which have to agree."""
    table.assign(grade=table.grade.astype("Int64")).to_csv(folder / "rows.csv", index=False)
    table.to_parquet(folder / "rows.parquet")
    found: list[Dataset] = []
    for source in ("csv", "parquet"):
        keys = {"source": source, "file": f"rows.{source}", "target": "y", "categorical": ["grade"]} | data
        content = recipe | {"task": "regression", "data": keys}
        found.append(load_dataset(check_recipe(content, folder / "recipe.toml"), folder))
    first, second = found
    np.testing.assert_array_equal(first.features, second.features)
    assert first.preprocessing == second.preprocessing
    assert first.table.sha256 == second.table.sha256
    return first


def served(dataset: Dataset) -> np.ndarray:
    """What the exported graph makes of the raw rows."""
    shape = dataset.table.features.shape[1:]
    model = ServedModel(nn.Identity(), dataset.preprocessing, {INPUT: shape})
    rows = model(torch.from_numpy(dataset.table.features))
    unit = dataset.preprocessing.target
    assert unit is not None
    return (rows.numpy() - np.float32(unit.mean[0])) / np.float32(unit.scale[0])


@given(seed=st.integers(0, 999), statistic=st.sampled_from(["median", "mean"]))
@settings(max_examples=8)
def test_what_the_graph_does_is_scikit_learns_pipeline(
    tmp_path_factory: pytest.TempPathFactory, plain_recipe: dict[str, Any], seed: int, statistic: str
) -> None:
    table, folder = frame(80, seed), tmp_path_factory.mktemp("oracle")
    got = load(
        folder, plain_recipe, table, impute=statistic, impute_categories="most_frequent", unknown="other"
    )
    numbers = make_pipeline(SimpleImputer(strategy=statistic), StandardScaler())
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    columns = [("age", numbers, ["age"]), ("job", texts, ["job"]), ("pay", numbers, ["pay"])]
    whole = ColumnTransformer([*columns, ("grade", texts, ["grade"])], sparse_threshold=0)
    raw = table.drop(columns="y").replace({None: np.nan})
    whole.fit(raw.iloc[got.split.train])
    np.testing.assert_allclose(got.features, whole.transform(raw), atol=2e-5)


@pytest.mark.parametrize("scaling", ["feature", "global", "none"])
@pytest.mark.parametrize("gaps", ["most_frequent", "missing"])
def test_training_sees_to_the_bit_what_the_graph_computes(
    tmp_path: Path, recipe: dict[str, Any], scaling: str, gaps: str
) -> None:
    keys = {"impute": "median", "impute_categories": gaps, "unknown": "other", "rare": 5}
    got = load(tmp_path, recipe, frame(120), scaling=scaling, **keys)
    model = ServedModel(nn.Identity(), got.preprocessing.model_copy(update={"target": None}), {INPUT: (4,)})
    np.testing.assert_array_equal(model(torch.from_numpy(got.table.features)).numpy(), got.features)
    assert np.isfinite(got.features).all()
    np.testing.assert_allclose(served(got), got.features, atol=1e-5)


def test_nothing_is_fitted_on_held_out_rows(tmp_path: Path, recipe: dict[str, Any]) -> None:
    table = frame(100)
    keys = {"impute": "mean", "impute_categories": "most_frequent", "unknown": "other"}
    before = load(tmp_path, recipe, table, **keys)
    held = np.setdiff1d(np.arange(100), before.split.train)
    changed = table.copy()
    changed.loc[held, "age"] = 1e6
    changed.loc[held, "job"] = "astronaut"
    changed.loc[held, "grade"] = 9
    after = load(tmp_path, recipe, changed, **keys)
    assert after.preprocessing.columns == before.preprocessing.columns
    assert after.preprocessing.inputs == before.preprocessing.inputs
    job = before.preprocessing.columns[INPUT][1]
    assert job.categories == JOBS
    assert (after.table.features[held, 1] == len(JOBS)).all(), "none of the known ones"
    assert (after.features[held][:, 1:4] == 0).all()


def test_a_single_column_may_differ(tmp_path: Path, recipe: dict[str, Any]) -> None:
    own = {"age": {"impute": 7}, "job": {"impute": "nurse"}, "grade": {"impute": 2, "unknown": "other"}}
    got = load(tmp_path, recipe, frame(), impute="mean", impute_categories="missing", columns=own)
    age, job, pay, grade = got.preprocessing.columns[INPUT]
    train = frame().iloc[got.split.train]
    assert (age.fill, job.fill, grade.fill) == (7, 1, 1)
    assert pay.fill == pytest.approx(train.pay.mean(), rel=1e-6)
    assert (job.other, grade.other) == (False, True)
    assert grade.categories == ("1", "2", "3", "4")


def test_missing_is_a_category_where_training_rows_lack_one(tmp_path: Path, recipe: dict[str, Any]) -> None:
    table = frame(100).assign(grade=1)
    table.loc[50:, "grade"] = 2
    got = load(tmp_path, recipe, table, impute="median", impute_categories="missing")
    _, job, _, grade = got.preprocessing.columns[INPUT]
    assert (job.categories, job.fill) == ((*JOBS, "missing"), 3)
    lost = table.job.isna().to_numpy()
    assert lost.any()
    np.testing.assert_array_equal(got.features[lost, 1:5], np.tile([0, 0, 0, 1], (lost.sum(), 1)))
    assert (grade.categories, grade.fill) == (("1", "2"), None), "nothing is known of missing grades"


def test_rare_categories_are_none_of_the_known_ones(tmp_path: Path, recipe: dict[str, Any]) -> None:
    table = frame(100, gaps=0)
    table.loc[::20, "job"] = "smith"
    got = load(tmp_path, recipe, table, unknown="other", rare=8)
    job = got.preprocessing.columns[INPUT][1]
    assert "smith" not in job.categories
    assert (got.table.features[::20, 1] == len(job.categories)).all()


@pytest.mark.parametrize(
    ("change", "keys", "expected"),
    [
        ({}, {}, "column 'age': the value is missing; fill it in, remove the row, or set data.impute"),
        (
            {},
            {"impute": 0},
            "column 'job': the category is missing; fill it in, remove the row, or set data.",
        ),
        ({"age": [None] * 60}, {"impute": "mean"}, "column 'age': no training row has a value"),
        ({"job": [f"id {n}" for n in range(60)]}, {}, "column 'job': it has 4"),
        ({"job": ["clerk"] * 59 + ["smith"]}, {}, "column 'job': no training row has the category 'smith'"),
        ({}, {"columns": {"age": {"impute": "often"}}}, "column 'age': it holds numbers; impute is 'often'"),
        ({}, {"columns": {"age": {"unknown": "other"}}}, "it holds numbers, and unknown is for categories"),
        ({}, {"columns": {"job": {"impute": "nures"}}}, "impute is 'nures' (did you mean 'nurse'?)"),
        ({}, {"unknown": "other", "rare": 99}, "column 'job': no category is in enough training rows"),
        ({}, {"columns": {"jobb": {}}}, "no column 'jobb' (data.columns) (did you mean 'job'?)"),
    ],
)
def test_what_cannot_be_learned_from_is_named(
    tmp_path: Path, recipe: dict[str, Any], change: dict[str, Any], keys: dict[str, Any], expected: str
) -> None:
    table = frame().assign(**change)
    fill = {"impute": "median", "impute_categories": "most_frequent"} if keys or change else {}
    if keys == {"impute": 0}:
        fill = {}
    with pytest.raises(DataError) as caught:
        load(tmp_path, recipe, table, **(fill | keys))
    assert expected in str(caught.value)


def test_every_column_at_fault_is_named_at_once(tmp_path: Path, recipe: dict[str, Any]) -> None:
    own = {"age": {"impute": "often"}, "job": {"impute": "nures"}}
    with pytest.raises(DataError, match=r"(?s)2 columns .*column 'age'.*column 'job'"):
        load(tmp_path, recipe, frame(), impute=0, impute_categories="missing", columns=own)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"impute": "often"}, "data.impute: got 'often'; allowed: \"error\""),
        ({"impute": True}, "data.impute: got True"),
        ({"impute_categories": 3}, "data.impute_categories: got 3"),
        ({"categorical": ["y"]}, "data.categorical: holds the target 'y'"),
        (
            {"features": ["age"], "categorical": ["agee"]},
            "'agee' is not in data.features (did you mean 'age'?)",
        ),
        ({"rare": 3}, 'data.rare: got 3; it needs unknown = "other"'),
        ({"columns": {"a": {"rare": 3}}}, 'data.columns.a.rare: got 3; it needs unknown = "other"'),
        (
            {"columns": {"a": {"imput": 3}}},
            "data.columns.a.imput: unknown key, value 3 (did you mean 'impute'?)",
        ),
        ({"columns": {"a": {"unknown": 3}}}, "data.columns.a.unknown: got 3; allowed: as data.unknown"),
        ({"columns": {"a": {"impute": []}}}, "data.columns.a.impute: got []"),
        ({"columns": {"a": 3}}, "data.columns.a: got 3"),
    ],
)
def test_a_wrong_key_is_told_with_all_others(
    tmp_path: Path, recipe: dict[str, Any], keys: dict[str, Any], expected: str
) -> None:
    (tmp_path / "rows.csv").write_text("age,y\n1,2\n")
    data = {"source": "csv", "file": "rows.csv", "target": "y"} | keys
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe | {"data": data, "nmae": 1}, tmp_path / "recipe.toml")
    assert expected in str(caught.value)
    assert "nmae" in str(caught.value)


def test_a_column_is_of_categories_if_nothing_in_it_is_a_number(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    text = io.StringIO()
    table = frame(gaps=0)
    table.loc[5, "age"] = 999
    table.astype({"age": object}).replace({"age": {999: "12,5"}}).to_csv(text, index=False)
    (tmp_path / "rows.csv").write_text(text.getvalue())
    content = recipe | {"task": "regression", "data": {"source": "csv", "file": "rows.csv", "target": "y"}}
    with pytest.raises(DataError, match=r"line 7, column 'age': '12,5' is not a number"):
        load_dataset(check_recipe(content, tmp_path / "recipe.toml"), tmp_path)


def test_truth_values_and_whole_numbers_of_parquet_are_written_as_json_does(
    tmp_path: Path, recipe: dict[str, Any]
) -> None:
    flags = [True, False, None] * 20
    table = frame(gaps=0).assign(flag=flags, code=[1, 2, None] * 20)
    table.to_parquet(tmp_path / "rows.parquet")
    data = {"source": "parquet", "file": "rows.parquet", "target": "y", "impute_categories": "missing"}
    content = recipe | {"task": "regression", "data": data | {"features": ["flag", "code"]}}
    content["data"]["categorical"] = ["code"]
    flag, code = load_dataset(check_recipe(content, tmp_path / "r.toml"), tmp_path).preprocessing.columns[
        INPUT
    ]
    assert flag.categories == ("false", "true", "missing")
    assert code.categories == ("1", "2", "missing")
