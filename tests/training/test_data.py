"""Splits and scaling, against scikit-learn and against what they have to mean."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from dropserve.errors import DataError
from dropserve.model import ServedModel
from dropserve.training.data import INPUT, fit_scaling, load_dataset, split_rows
from dropserve.training.recipe import SplitTable
from dropserve.training.recipe_file import check_recipe
from dropserve.training.table import Table

HERE = Path()


def table(target: Any, features: Any = None, labels: int = 0) -> Table:
    target = np.asarray(target, np.int64 if labels else np.float32)
    features = np.arange(len(target), dtype=np.float32)[:, None] if features is None else features
    columns = tuple(f"x{i}" for i in range(features.shape[1]))
    return Table("made up", features.astype(np.float32), target, columns, tuple(map(str, range(labels))))


def dataset(recipe: dict[str, Any], **changes: Any) -> Any:
    return load_dataset(check_recipe(recipe | changes, HERE / "recipe.toml"), HERE)


@given(
    counts=st.lists(st.integers(5, 40), min_size=2, max_size=5),
    validation=st.floats(0.1, 0.35),
    test=st.floats(0.1, 0.35),
    seed=st.integers(0, 2**32 - 1),
)
@example(counts=[5, 5], validation=0.35, test=0.35, seed=0)  # too few are left to train with
@settings(max_examples=60)
def test_parts_are_disjoint_whole_and_in_proportion(
    counts: list[int], validation: float, test: float, seed: int
) -> None:
    rows = table(np.repeat(np.arange(len(counts)), counts), labels=len(counts))
    table_ = SplitTable(validation=validation, test=test, seed=seed)
    try:
        split = split_rows(rows, table_)
    except DataError as error:
        assert "rows would be for" in str(error)  # noqa: PT017  # the other outcome is checked below
        held = [round(validation * len(rows)), round(test * len(rows))]
        assert min(*held, len(rows) - sum(held)) < max(3, len(counts))
        return
    parts = [split.train, split.validation, split.test]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(rows)))
    for part in parts:
        share = np.bincount(rows.target[part], minlength=len(counts)) / len(part)
        # each class within two rows of its share of the whole: one for each of the two cuts
        assert np.abs(share * len(part) - np.array(counts) / len(rows) * len(part)).max() <= 2


def test_the_split_is_scikit_learns(recipe: dict[str, Any]) -> None:
    got = dataset(recipe, split={"validation": 0.2, "test": 0.1, "seed": 5})
    y, rows = got.table.target, np.arange(150)
    rest, test = train_test_split(rows, test_size=15, stratify=y, random_state=5)
    train, validation = train_test_split(rest, test_size=30, stratify=y[rest], random_state=5)
    for ours, theirs in (
        (got.split.train, train),
        (got.split.validation, validation),
        (got.split.test, test),
    ):
        np.testing.assert_array_equal(ours, np.sort(theirs))


@pytest.mark.parametrize(
    ("rows", "calibration", "expected"),
    [
        (13_400, None, {"train": 9380, "validation": 1005, "test": 2010, "calibration": 1005}),
        (13_200, None, {"train": 9240, "validation": 1980, "test": 1980}),  # fewer than 2000 to share
        (90_000, None, {"train": 63_000, "validation": 8500, "test": 13_500, "calibration": 5000}),
        (13_400, 0.0, {"train": 9380, "validation": 2010, "test": 2010}),
        (200, 0.1, {"train": 120, "validation": 30, "test": 30, "calibration": 20}),
    ],
)
def test_which_rows_calibrate(rows: int, calibration: float | None, expected: dict[str, int]) -> None:
    data = table(np.arange(rows) % 5, labels=5)
    split = split_rows(data, SplitTable(calibration=calibration))
    assert {part: len(own) for part, own in split.parts.items()} == expected
    np.testing.assert_array_equal(np.sort(np.concatenate([*split.parts.values()])), np.arange(rows))
    for own in split.parts.values():
        counts = np.bincount(data.target[own], minlength=5)
        assert counts.max() - counts.min() <= 2
    without = split_rows(data, SplitTable(calibration=0))
    np.testing.assert_array_equal(split.test, without.test)  # figures on test rows stay comparable
    assert (split.sha256 == without.sha256) == ("calibration" not in expected)


def test_validation_rows_of_the_source_share_too_though_a_class_be_rare_there() -> None:
    target = np.append(np.arange(4000) % 2, [2] * 7)
    parts = np.repeat(np.array([0, 1], np.int8), [1500, 2507])
    parts[-6:] = 0  # one row of class 2 left for validation
    data = dataclasses.replace(table(target, labels=3), parts=parts)
    split = split_rows(data, SplitTable(test=0.2))
    assert (len(split.validation), len(split.calibration)) == (1251, 1250)
    assert set(parts[[*split.validation, *split.calibration]]) == {1}


def test_the_split_follows_its_own_seed_and_its_hash_tells(recipe: dict[str, Any]) -> None:
    first = dataset(recipe)
    again = dataset(recipe, training={"seed": 99})
    other = dataset(recipe, split={"seed": 1})
    assert first.split.sha256 == again.split.sha256 != other.split.sha256
    assert first.table.sha256 == other.table.sha256
    assert first.record()["rows"] == {"train": 106, "validation": 22, "test": 22}


def test_the_hash_of_data_sees_every_part() -> None:
    base = table([0, 1, 0, 1], labels=2)
    changed = base.features.copy()
    changed[2, 0] += 1
    hashes = {
        base.sha256,
        table([0, 1, 1, 0], labels=2).sha256,
        table([0, 1, 0, 1], changed, labels=2).sha256,
        table([0, 1, 0, 1], base.features.reshape(2, 2).repeat(2, 0), labels=2).sha256,
        Table("x", base.features, base.target, ("other",), base.labels).sha256,
        Table("x", base.features, base.target, base.columns, ("a", "b")).sha256,
    }
    assert len(hashes) == 6
    assert Table("another name", base.features, base.target, base.columns, base.labels).sha256 == base.sha256


@given(
    spread=st.lists(st.floats(0.01, 1000), min_size=1, max_size=4),
    shift=st.floats(-1000, 1000),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_the_scaling_in_the_graph_is_scikit_learns(spread: list[float], shift: float, seed: int) -> None:
    features = np.random.default_rng(seed).normal(shift, spread, (40, len(spread))).astype(np.float32)
    train = np.arange(0, 40, 2)
    preprocessing = fit_scaling(table(np.zeros(40), features, labels=2), train, "feature")
    served = ServedModel(nn.Identity(), preprocessing, {INPUT: (len(spread),)})
    expected = StandardScaler().fit(features[train].astype(np.float64)).transform(features.astype(np.float64))
    # float32 cannot hold x - mean better than its own spacing at x
    tolerance = 4 * np.spacing(np.abs(features)).max() / features[train].std(axis=0).min() + 1e-5
    np.testing.assert_allclose(
        served(torch.from_numpy(features)).numpy(), expected, atol=tolerance, rtol=1e-5
    )


@pytest.mark.parametrize("scaling", ["feature", "global", "none"])
def test_training_sees_to_the_bit_what_the_graph_computes(recipe: dict[str, Any], scaling: str) -> None:
    got = dataset(recipe, data={"source": "digits", "scaling": scaling})
    served = ServedModel(nn.Identity(), got.preprocessing, {INPUT: (64,)})
    np.testing.assert_array_equal(served(torch.from_numpy(got.table.features)).numpy(), got.features)


def test_scaling_knows_the_training_rows_alone() -> None:
    features = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    train = np.arange(20)
    before = fit_scaling(table(np.arange(30), features), train, "feature")
    features[20:] = 1e6
    assert fit_scaling(table(np.arange(30), features), train, "feature").inputs == before.inputs


def test_a_constant_feature_becomes_zero_and_stays_finite() -> None:
    digits = load_digits()
    constant = np.flatnonzero(digits.data.std(axis=0) == 0)
    assert len(constant), "digits has pixels that are always white"
    rows = table(digits.target, digits.data, labels=10)
    scaling = fit_scaling(rows, np.arange(1000), "feature").inputs[INPUT]
    assert np.array(scaling.scale)[constant].tolist() == [1.0] * len(constant)


def test_one_scaling_for_all_pixels() -> None:
    features = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    scaling = fit_scaling(table(np.arange(50), features), np.arange(50), "global").inputs[INPUT]
    assert len(set(scaling.mean)) == len(set(scaling.scale)) == 1
    assert len(scaling.mean) == 4
    assert scaling.mean[0] == pytest.approx(features.mean(), rel=1e-6)
    assert scaling.scale[0] == pytest.approx(features.std(), rel=1e-6)


def test_a_regression_target_is_standardised_by_the_training_rows(recipe: dict[str, Any]) -> None:
    got = dataset(recipe, task="regression", data={"source": "diabetes"})
    train = got.target[got.split.train].astype(np.float64)
    assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std() == pytest.approx(1, abs=1e-6)
    served = ServedModel(nn.Identity(), got.preprocessing.model_copy(update={"inputs": {}}), {INPUT: (1,)})
    back = served(torch.from_numpy(got.target)[:, None]).numpy()[:, 0]
    np.testing.assert_allclose(back, got.table.target, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "labels", "expected"),
    [
        (range(9), 0, "9 rows; at least 10"),
        ([4.0] * 20, 0, "the target is 4 in every row"),
        ([0] * 20, 1, "every row is of class '0'; at least 2 classes"),
        (range(20), 20, "20 different values in 20 rows; that looks like a number"),
        ([0] * 28 + [1] * 2, 2, "too few rows of class '1' (2); each class needs at least 3"),
    ],
)
def test_what_cannot_be_learned_from(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], rows: Any, labels: int, expected: str
) -> None:
    made = table(list(rows), labels=labels)
    monkeypatch.setattr("dropserve.training.data.load_table", lambda *_: made)
    with pytest.raises(DataError) as caught:
        dataset(recipe)
    assert expected in str(caught.value)


def test_a_split_too_small_for_its_classes_says_which() -> None:
    rows = table(np.repeat(np.arange(5), 4), labels=5)
    with pytest.raises(
        DataError, match=r"made up: 2 of 20 rows would be for test, and at least 5 are needed"
    ):
        split_rows(rows, SplitTable(validation=0.3, test=0.1))


def test_values_too_far_apart_for_the_graph_are_refused(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    features = np.ones((30, 2), np.float32)
    features[:, 1] = 3e38
    features[::4, 1] = -3e38
    made = table(np.arange(30) % 2, features, labels=2)
    monkeypatch.setattr("dropserve.training.data.load_table", lambda *_: made)
    with pytest.raises(DataError, match="'x1': values too far apart"):
        dataset(recipe)


def test_features_that_never_change_are_refused_and_columns_named(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    def load(data: dict[str, str]) -> Any:
        checked = check_recipe(recipe | {"data": data}, tmp_path / "recipe.toml")
        return load_dataset(checked, tmp_path)

    target = np.tile([0, 1], 15)
    np.savez(tmp_path / "flat.npz", x=np.zeros((30, 4), np.float32), y=target)
    flat = {"source": "npz", "file": "flat.npz"}
    with pytest.raises(DataError, match=r"every value of every row is 0 \(\d+ training rows\), so nothing"):
        load(flat)
    varied = 2 * np.arange(30.0)  # no row numbers
    rows = [f"{value},7,{value**2},{label}" for value, label in zip(varied, target, strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,y", *rows]))
    found = load({"source": "csv", "file": "rows.csv", "target": "y"})
    assert found.constant_columns == ("b",)
    np.savez(tmp_path / "border.npz", x=np.c_[np.zeros(30), varied], y=target)
    assert load(flat | {"file": "border.npz"}).constant_columns == ()
