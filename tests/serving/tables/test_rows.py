"""Rows of tables in the codec: by list and by name, V1 and V2, all give the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staff import GOOD, JOB, PLAIN, ask, codec, refused, tensors

from dropserve.cell_parsing import spellings
from dropserve.columns import Column

_FLOATS = st.floats(-1e6, 1e6, width=32)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "age": st.none() | _FLOATS,
            "job": st.sampled_from(JOB.categories),
            "grade": st.none() | st.sampled_from(["1", "2", "3", "seven", "a:b"]),
            "pay": _FLOATS,
        }
    ),
    min_size=1,
    max_size=5,
)


def expected(rows: list[dict[str, Any]]) -> np.ndarray:
    codes = {"1": 0, "2": 1, "3": 2, None: np.nan}
    return np.array(
        [
            [
                np.nan if row["age"] is None else row["age"],
                JOB.categories.index(row["job"]),
                codes.get(row["grade"], 3),
                row["pay"],
            ]
            for row in rows
        ],
        np.float32,
    )


def packed(entries: list[dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
    """As tritonclient sends them: little-endian, a text led by its length, no text for what is missing."""
    binary, heads = b"", []
    for entry in entries:
        if entry["datatype"] == "BYTES":
            texts = [(text or "").encode() for text in entry["data"]]
            raw = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
        else:
            kind = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}[entry["datatype"]]
            raw = np.array([np.nan if v is None else v for v in entry["data"]], kind).tobytes()
        head = {key: value for key, value in entry.items() if key != "data"}
        heads.append(head | {"parameters": {"binary_data_size": len(raw)}})
        binary += raw
    return {"inputs": heads}, binary


@given(ROWS, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_every_way_to_send_a_row_gives_the_same_numbers(rows: list[dict[str, Any]], random: Any) -> None:
    wanted = expected(rows)
    shuffled = [dict(random.sample(list(row.items()), 4)) for row in rows]
    entries = random.sample(tensors(rows), 4)
    column = [entry | {"shape": [len(rows), 1], "data": [[v] for v in entry["data"]]} for entry in entries]
    ways: list[tuple[Any, bytes]] = [
        ({"instances": [[row[n] for n in GOOD] for row in rows]}, b""),
        ({"instances": shuffled}, b""),
        ({"instances": [{"input": [row[n] for n in GOOD]} for row in rows]}, b""),
        ({"inputs": entries}, b""),
        ({"inputs": column}, b""),
        packed(entries),
    ]
    for document, binary in ways:
        got = ask(document, binary)
        assert got.dtype == np.float32
        assert got.tobytes() == wanted.tobytes(), "NaN too has one form, so that equal rows have equal bytes"


@given(st.lists(st.tuples(_FLOATS, _FLOATS), min_size=1, max_size=5))
def test_a_table_of_numbers_takes_names_too(rows: list[tuple[float, float]]) -> None:
    wanted = np.array(rows, np.float32)
    tensor = {"name": "input", "shape": [len(rows), 2], "datatype": "FP32", "data": wanted.ravel().tolist()}
    for document in (
        {"instances": [list(row) for row in rows]},
        {"instances": [{"b": b, "a": a} for a, b in rows]},
        {"inputs": [tensor]},
    ):
        np.testing.assert_array_equal(ask(document, to=PLAIN), wanted)


def test_a_tensor_of_numbers_may_hold_gaps_where_the_recipe_imputes() -> None:
    model = codec(Column(name="a", fill=1.0), Column(name="b"))
    tensor = {"name": "input", "shape": [2, 2], "datatype": "FP32"}
    wanted = np.array([[np.nan, 2], [3, 4]], np.float32)
    odd = wanted.copy()
    odd.view(np.uint32)[0, 0] = 0xFFC12345  # another of the many NaNs
    head = {"inputs": [tensor | {"parameters": {"binary_data_size": 16}}]}
    for document, binary in (
        ({"inputs": [tensor | {"data": [None, 2, 3, 4]}]}, b""),
        ({"inputs": [tensor | {"data": [[None, 2], [3, 4]]}]}, b""),
        (head, odd.tobytes()),
    ):
        assert ask(document, binary, model).tobytes() == wanted.tobytes()
    message = "input input, element [3] is null; expected a number"
    assert message.replace("element [3]", "element [1]") in refused(
        {"inputs": [tensor | {"data": [[1, 2], [3, None]]}]}, to=model
    )
    odd[:, 1] = np.nan
    assert "element [0, 1] is nan; expected a finite number" in refused(head, odd.tobytes(), model)


@pytest.mark.parametrize(
    ("value", "labels", "found"),
    [
        (1, ("0", "1"), "1"),
        (1.0, ("1",), "1"),
        (1, ("1.0",), "1.0"),
        (1, ("1", "1.0"), "1"),
        (1.0, ("1", "1.0"), "1.0"),
        (1.5, ("1.5",), "1.5"),
        (True, ("false", "true"), "true"),
        (False, ("False", "True"), "False"),
        (1, ("01", "true"), None),
        (True, ("1",), None),
    ],
)
def test_a_number_stands_for_the_category_that_is_written_so(
    value: Any, labels: tuple[str, ...], found: str | None
) -> None:
    assert next((text for text in spellings(value) if text in labels), None) == found
    model = codec(Column(name="x", categories=labels))
    if found is None:
        assert "expected one of" in refused({"instances": [[value]]}, to=model)
    else:
        assert ask({"instances": [{"x": value}]}, to=model)[0, 0] == labels.index(found)
