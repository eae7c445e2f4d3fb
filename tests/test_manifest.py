"""Manifests of earlier formats, as they were stored, become today's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dropserve.manifest import FORMAT, RunManifest, VersionManifest, read_manifest

STORED = Path(__file__).parent / "manifests"
NAMES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]


def stored(kind: str) -> dict[str, Any]:
    return json.loads((STORED / f"format_1_{kind}.json").read_text("utf-8"))


@pytest.mark.parametrize(("kind", "model"), [("run", RunManifest), ("version", VersionManifest)])
def test_format_1_had_no_columns_and_named_its_features_beside_the_data(kind: str, model: type) -> None:
    old = stored(kind)
    assert (old["format"], "columns" in old["preprocessing"]) == (1, False)
    new = read_manifest(old)
    assert isinstance(new, model)
    assert new.format == FORMAT
    columns = new.preprocessing.columns["input"]
    assert [column.name for column in columns] == NAMES
    assert not any(column.categories or column.other or column.fill is not None for column in columns)
    assert new.preprocessing.inputs["input"].mean == tuple(old["preprocessing"]["inputs"]["input"]["mean"])
    again = json.loads(new.model_dump_json())
    assert read_manifest(again) == new
    for key in old.keys() - {"format", "preprocessing"}:
        assert again[key] == old[key]


def test_format_1_without_names_has_no_columns() -> None:
    old = stored("run")
    old["data"]["columns"] = []
    assert read_manifest(old).preprocessing.columns == {}


def test_a_fill_is_a_number() -> None:
    new = json.loads(read_manifest(stored("run")).model_dump_json())
    new["preprocessing"]["columns"]["input"][0]["fill"] = float("nan")
    with pytest.raises(ValidationError):
        read_manifest(new)
