"""A cell means the same in a file to train on and in a request: the same number in the graph's input."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staff import ask, codec, refused
from test_rows import packed

from dropserve.columns import Column
from dropserve.training.fit_columns import fit_columns
from dropserve.training.recipe import CsvData, ParquetData
from dropserve.training.tabular import read_tabular

TEXTS = [
    "EU",
    "NA",
    " A",
    "A",
    "A ",
    "a",
    "n/a",
    "None",
    "-",
    "?",
    "",
    " ",
    "nan",
    "b c",
    "Null ",
    "x,y",
    '"',
]
ROWS = st.lists(
    st.tuples(
        st.none() | st.floats(-1e6, 1e6, width=32) | st.integers(-99, 99),
        st.none() | st.sampled_from(TEXTS),
        st.none() | st.booleans(),
        st.none() | st.integers(0, 3),
    ),
    max_size=12,
)
NAMES = ["size", "zone", "open", "grade"]
FIRST = (1.5, "EU", True, 1)  # no column is empty


def write(folder: Path, source: str, frame: pd.DataFrame) -> None:
    if source == "parquet":
        frame.astype({"grade": "Int64", "open": "boolean"}).to_parquet(folder / "rows.parquet")
        return
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(frame.columns)
        writer.writerows(["" if each is None else each for each in row] for row in frame.to_numpy(object))


@pytest.mark.parametrize("source", ["csv", "parquet"])
@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_file_and_request_agree(
    tmp_path_factory: pytest.TempPathFactory, source: str, rows: list[Any]
) -> None:
    rows = [FIRST, *rows]
    folder = tmp_path_factory.getbasetemp()
    frame = pd.DataFrame(
        {name: pd.Series([row[n] for row in rows], dtype=object) for n, name in enumerate(NAMES)}
    )
    frame["size"] = frame["size"].astype(float if source == "parquet" else object)
    write(folder, source, frame.assign(y=np.arange(len(rows)) / 4))
    model = CsvData if source == "csv" else ParquetData
    keys = model.model_validate(
        {
            "source": source,
            "file": f"rows.{source}",
            "target": "y",
            "features": NAMES,
            "categorical": ["grade"],
            "impute": "median",
            "impute_categories": "missing",
        }
    )
    table = read_tabular(keys, folder, task="regression")
    fitted, columns = fit_columns(table, np.arange(len(rows)), keys)
    served = codec(*columns)
    instances = [dict(zip(NAMES, row, strict=True)) for row in rows]
    if not columns[2].categories:  # booleans without gaps are numbers in Parquet
        instances = [row | {"open": int(row["open"])} for row in instances]
    for column in columns:  # null where nothing was missing is refused
        assert column.fill is not None or all(row[column.name] is not None for row in instances)
    expected = fitted.features
    assert expected.dtype == np.float32
    np.testing.assert_array_equal(ask({"instances": instances}, to=served), expected)
    np.testing.assert_array_equal(
        ask({"instances": [list(row.values()) for row in instances]}, to=served), expected
    )
    spelled: dict[str, Callable[[Any], Any]] = {"open": lambda v: None if v is None else str(v).lower()}
    spelled["grade"] = lambda v: None if v is None else str(v)
    entries = [
        {
            "name": column.name,
            "shape": [len(rows)],
            "datatype": "BYTES" if column.categories else "FP64",
            "data": [
                spelled.get(column.name, lambda v: v)(row[column.name])
                if column.categories
                else row[column.name]
                for row in instances
            ],
        }
        for column in columns
    ]
    if source == "csv":  # which spells booleans as Python does
        entries[2]["data"] = [None if row["open"] is None else str(row["open"]) for row in instances]
    np.testing.assert_array_equal(ask({"inputs": entries}, to=served), expected)
    document, binary = packed(entries)
    np.testing.assert_array_equal(ask(document, binary, to=served), expected)


def test_a_vocabulary_that_holds_such_a_text_keeps_it() -> None:
    """Older versions, and imported ones, may have learned ``NA`` or `` A`` as categories."""
    older = codec(Column(name="x", categories=("A", " A", "NA"), other=True, fill=0))
    texts = ["A", " A", "NA", " NA", "na", "B", ""]
    found = ask({"instances": [[text] for text in texts]}, to=older)[:, 0]
    np.testing.assert_array_equal(found, [0, 1, 2, 2, np.nan, 3, np.nan])


def test_a_text_for_a_missing_value_is_refused_where_none_may_be_missing() -> None:
    model = codec(Column(name="x", categories=("A",), other=True))
    assert "not a text that stands for a missing value" in refused({"instances": [["n/a"]]}, to=model)
