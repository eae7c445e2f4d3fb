"""What is no row of a table gets a precise 400."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staff import GOOD, JSON, NAMES, ask, codec, refused, tensors

from dropserve.columns import Column
from dropserve.errors import RequestError
from dropserve.serving.protocol import Codec

FORM = "a list of 4 values (age, job, grade, pay) or an object with these names"


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([], f'"instances" is empty; expected a list of instances, each {FORM}'),
        (GOOD, f'"instances" is an object; expected a list of instances, each {FORM}'),
        ([GOOD, 5], f"instance 1 is a number (5); expected {FORM}"),
        ([[3, "clerk", "1"]], f"instance 0 has 3 values; expected {FORM}"),
        ([{"input": [3, "clerk", "1"]}], f"instance 0 has 3 values; expected {FORM}"),
        (
            [GOOD, {"agee": 3, "job": "clerk", "x": 1, "pay": 5}],
            f'instance 1: names missing: "age", "grade"; unknown: "agee", "x". Expected each once: {NAMES}',
        ),
        ([{}], f"instance 0: names missing: {NAMES}. Expected each once: {NAMES}"),
        ([GOOD | {"pay": None}], 'instance 0, "pay" is null; expected a number'),
        ([GOOD | {"pay": "5"}], 'instance 0, "pay" is a string ("5"); expected a number'),
        ([GOOD | {"age": True}], 'instance 0, "age" is a boolean (true); expected a number or null'),
        ([GOOD | {"age": [3]}], 'instance 0, "age" is a list; expected a number or null'),
        (
            [GOOD | {"pay": 1e39}],
            'instance 0, "pay" is a number (1e+39); expected a number within the range of',
        ),
        ([GOOD | {"job": None}], 'instance 0, "job" is null; expected one of "clerk", "nurse", "teacher"'),
        ([GOOD | {"job": ""}], 'instance 0, "job" is a string (""); expected one of "clerk", "nurse"'),
        (
            [GOOD | {"job": "Clerk"}],
            '"job" is a string ("Clerk"); expected one of "clerk", "nurse", "teacher"',
        ),
        (
            [GOOD | {"job": 1}],
            'instance 0, "job" is a number (1); expected one of "clerk", "nurse", "teacher"',
        ),
        ([GOOD | {"grade": {}}], 'instance 0, "grade" is an object; expected a category (a text) or null'),
        (
            [[3, "clerk", "1", 5], [3, "smith", "1", 5]],
            'instance 1, element [1] ("job") is a string ("smith"); expected one of "clerk", "nurse"',
        ),
        ([[3, "clerk", "1", None]], 'instance 0, element [3] ("pay") is null; expected a number'),
    ],
)
def test_what_is_no_row_is_refused_by_name(instances: Any, message: str) -> None:
    assert message in refused({"instances": instances})


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ('{"age": 3, "job": "clerk", "grade": "1", "pay": 5, "age": 4}', 'names twice: "age". Expected'),
        (
            '{"age": 3, "job": "a:b", "job": "clerk", "x": 1, "age": 4, "pay": 5}',
            'names missing: "grade"; unknown: "x"; twice: "age", "job". Expected',
        ),
        (
            '{"a\\u0067e": 3, "age": 3, "job": "clerk", "grade": "1", "pay": 5}',
            'names twice: "age". Expected',
        ),
    ],
)
def test_names_that_stand_twice_are_refused_too(instance: str, message: str) -> None:
    good = json.dumps(GOOD)
    text = f'{{"instances": [{good}, {instance}], "parameters": {{}}}}'.encode()
    assert f"instance 1: {message}" in refused(text)
    fine = json.dumps({"instances": [GOOD | {"grade": "x:y"}, GOOD], "parameters": {}}).encode()
    assert ask(fine).shape == (2, 4), "a colon in a text is none between a name and its value"


def test_names_that_stand_twice_are_refused_for_other_models(mlp_version: Any) -> None:
    body = b'{"instances": [{"input": [1, 2, 3, 4, 5, 6], "input": [0, 0, 0, 0, 0, 0]}]}'
    with pytest.raises(RequestError, match='instance 0 has "input" twice'):
        Codec(mlp_version.manifest, monte_carlo=False).decode(body)


@pytest.mark.timeout(20)
def test_hostile_names_cost_little() -> None:
    many = ", ".join(f'"n{i}": 1' for i in range(60_000))
    assert len(refused(f'{{"instances": [{{{many}, "n1": 2, "n1": 3}}]}}'.encode())) < 3000
    deep = b'{"instances": [{"age": ' + b"[" * 900 + b"]" * 900 + b', "job": "a:", "grade": 1, "pay": 2}]}'
    assert "is a list" in refused(deep)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job": ...}, f'inputs missing: "job". Expected one for each column: {NAMES}'),
        ({"jobb": {"shape": [1]}}, f'inputs unknown: "jobb". Expected one for each column: {NAMES}'),
        (
            {"age": {"datatype": "BYTES"}},
            'input age: datatype is a string ("BYTES"); expected FP32, or another',
        ),
        (
            {"age": {"datatype": "BOOL"}},
            'input age: datatype is a string ("BOOL"); expected FP32, or another',
        ),
        (
            {"job": {"datatype": "FP32"}},
            'input job: datatype is a string ("FP32"); expected BYTES: categories',
        ),
        ({"job": {"shape": [2]}}, "input job: 1 texts; expected 2, as in shape"),
        ({"job": {"shape": [1, 2]}}, "input job: shape is [1, 2]; expected [rows], at least one row"),
        ({"job": {"shape": [-1]}}, "input job: shape is [-1]; expected [rows], at least one row"),
        (
            {"job": {"shape": [2], "data": ["clerk"] * 2}},
            "rows of the inputs differ (age: 1, job: 2, grade: 1",
        ),
        (
            {"job": {"data": ["smith"]}},
            'input job, row 0 is a string ("smith"); expected one of "clerk"',
        ),
        ({"job": {"data": [None]}}, 'input job, row 0 is null; expected one of "clerk"'),
        ({"job": {"data": "clerk"}}, 'input job: data is a string ("clerk"); expected a list of texts'),
        ({"pay": {"data": [None]}}, "instance 0 of input pay is null; expected a number"),
        (
            {"pay": {"datatype": "FP64", "data": [1e60]}},
            "input pay, row 0 is 1e+60; expected a number with",
        ),
        ({"pay": {"data": ...}}, "input pay has neither data nor binary_data_size"),
    ],
)
def test_what_is_no_tensor_of_a_column_is_refused(change: dict[str, Any], message: str) -> None:
    entries = {entry["name"]: entry for entry in tensors([GOOD])}
    for name, keys in change.items():
        entry = {"name": name, **entries.pop(name, {}), **({} if keys is ... else keys)}
        if keys is not ...:
            entries[name] = {key: value for key, value in entry.items() if value is not ...}
    assert message in refused({"inputs": list(entries.values())})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x05\0\0\0clerk\x05\0\0\0clerk", "input job: more than 1 texts; expected 1, as in shape"),
        (b"", "input job: 0 texts; expected 1, as in shape"),
        (b"\x06\0\0\0clerk", "input job, row 0: 6 bytes are announced, 5 are left"),
        (b"\x05\0", "input job, row 0: 5 bytes are announced, 0 are left"),
        (b"\x02\0\0\0\xff\xfe", "not UTF-8; expected a text"),
        (b"\0\0\0\0", 'input job, row 0 is a string (""); expected one of'),
    ],
)
def test_damaged_texts_are_refused(raw: bytes, message: str) -> None:
    entries = {entry["name"]: entry for entry in tensors([GOOD])}
    head = {key: value for key, value in entries.pop("job").items() if key != "data"}
    document = {"inputs": [*entries.values(), head | {"parameters": {"binary_data_size": len(raw)}}]}
    if raw:
        assert message in refused(document, raw)
    else:
        assert message in refused(document, b"")


@given(
    JSON | st.lists(st.fixed_dictionaries(dict.fromkeys(GOOD, JSON)) | st.lists(JSON, min_size=4, max_size=4))
)
@settings(max_examples=60)
def test_whatever_comes_is_read_or_refused_in_words(instances: Any) -> None:
    try:
        rows = ask({"instances": instances})
    except RequestError:
        assert 10 < len(refused({"instances": instances})) < 2000
    else:
        assert rows.shape == (len(instances), 4)
        assert not np.isnan(rows[:, [1, 3]]).any()
        assert not np.isinf(rows).any()


def test_many_categories_are_not_all_told_and_the_nearest_come_first() -> None:
    model = codec(Column(name="city", categories=tuple(f"city {n}" for n in range(500))))
    message = refused({"instances": [{"city": "city 432x"}]}, to=model)
    assert 'expected one of "city 432"' in message
    assert message.endswith("and 470 more")
