"""Rows of tables in the codec: by list and by name, V1 and V2, all give the same numbers or a precise 400."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.columns import Column, spellings
from dropserve.errors import RequestError
from dropserve.manifest import Preprocessing, SourceRecord, VersionManifest
from dropserve.serving.asgi import table_schemas
from dropserve.serving.loaded import Loaded
from dropserve.serving.metadata import describe_model
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.serving.tables import table_reader
from dropserve.signature import Signature, TensorSpec

AGE = Column(name="age", fill=41.5)
JOB = Column(name="job", categories=("clerk", "nurse", "teacher"))
GRADE = Column(name="grade", categories=("1", "2", "3"), other=True, fill=1)
PAY = Column(name="pay")
COLUMNS = (AGE, JOB, GRADE, PAY)
HEADER = "Inference-Header-Content-Length"
NAMES = '"age", "job", "grade", "pay"'


def manifest(*columns: Column) -> VersionManifest:
    spec = TensorSpec(name="input", shape=(len(columns),))
    return VersionManifest(
        name="staff",
        version=1,
        run="r",
        task="raw",
        signature=Signature(inputs=(spec,), outputs=(TensorSpec(name="output", shape=(2,)),)),
        source=SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py"),
        preprocessing=Preprocessing(columns={"input": columns}),
    )


def codec(*columns: Column) -> Codec:
    return Codec(manifest(*columns), monte_carlo=False)


STAFF = codec(*COLUMNS)
PLAIN = codec(Column(name="a"), Column(name="b"))


def ask(document: Any, binary: bytes = b"", to: Codec = STAFF) -> np.ndarray:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {HEADER: str(len(text))} if binary else {}
    return np.asarray(to.decode(text + binary, headers).query.inputs["input"])


def refused(document: Any, binary: bytes = b"", to: Codec = STAFF) -> str:
    with pytest.raises(RequestError) as caught:
        ask(document, binary, to)
    assert caught.value.status == 400
    return str(caught.value)


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


def tensors(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = {"age": "FP32", "job": "BYTES", "grade": "BYTES", "pay": "FP64"}
    return [
        {"name": name, "shape": [len(rows)], "datatype": kind, "data": [row[name] for row in rows]}
        for name, kind in kinds.items()
    ]


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
@settings(max_examples=40, deadline=None)
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
@settings(deadline=None)
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


GOOD = {"age": 3, "job": "clerk", "grade": "1", "pay": 5}
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(list(GOOD)), inner, max_size=5)
    ),
    max_leaves=15,
)


@given(
    JSON | st.lists(st.fixed_dictionaries(dict.fromkeys(GOOD, JSON)) | st.lists(JSON, min_size=4, max_size=4))
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_is_read_or_refused_in_words(instances: Any) -> None:
    try:
        rows = ask({"instances": instances})
    except RequestError:
        assert 10 < len(refused({"instances": instances})) < 2000
    else:
        assert rows.shape == (len(instances), 4)
        assert not np.isnan(rows[:, [1, 3]]).any()
        assert not np.isinf(rows).any()


_CELLS = JSON | st.sampled_from(["clerk", "nurse", "", "1", "seven", 1, 2.0, 4, None, True, 1e39, -5, {}])


@given(
    st.fixed_dictionaries(dict.fromkeys(GOOD, _CELLS))
    | st.lists(_CELLS, min_size=3, max_size=5)
    | st.fixed_dictionaries({"input": st.lists(_CELLS, min_size=4, max_size=4)})
    | st.fixed_dictionaries(
        {"age": st.just(3), "job": st.just("clerk")}, optional={"grade": _CELLS, "pay": _CELLS}
    )
)
@settings(max_examples=150, deadline=None)
def test_the_schema_takes_what_the_codec_takes(instance: Any) -> None:
    table = table_reader(manifest(*COLUMNS))
    assert table is not None
    allowed = jsonschema_rs.is_valid(table_schemas.instance(table), instance)
    try:
        ask({"instances": [instance]})
    except RequestError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("text", ["1", "1.0", "01", "1.5", "true", "True", "x", "1e3", "inf"])
@pytest.mark.parametrize("value", [1, 1.0, 1.5, True, False, "1", "1.0", "01", "true", "x", 1000, 1000.0])
def test_the_schema_takes_the_numbers_that_the_codec_takes(text: str, value: Any) -> None:
    column = Column(name="x", categories=(text,))
    table = table_reader(manifest(column))
    assert table is not None
    allowed = jsonschema_rs.is_valid(table_schemas.instance(table), [value])
    assert allowed == (table.cells["x"].read(value) is not None)


def test_metadata_names_an_input_for_each_column(staff_version: Any) -> None:
    predictor = Predictor(staff_version)
    loaded = Loaded(predictor, Codec(staff_version.manifest, monte_carlo=False), 10**6, "onnx")
    found = describe_model("staff", loaded)["inputs"]
    assert [(each["name"], each["datatype"], each["shape"]) for each in found] == [
        ("age", "FP32", [-1]),
        ("job", "BYTES", [-1]),
        ("grade", "BYTES", [-1]),
        ("pay", "FP32", [-1]),
    ]
    table = table_reader(staff_version.manifest)
    assert table is not None
    assert [each["properties"]["name"]["const"] for each in table_schemas.inputs(table)] == list(GOOD)


def test_many_categories_are_not_all_told_and_the_nearest_come_first() -> None:
    model = codec(Column(name="city", categories=tuple(f"city {n}" for n in range(500))))
    message = refused({"instances": [{"city": "city 432x"}]}, to=model)
    assert 'expected one of "city 432"' in message
    assert message.endswith("and 470 more")
