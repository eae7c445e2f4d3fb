"""What the server's own description of a table allows is what the codec takes."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staff import COLUMNS, GOOD, JSON, ask, manifest

from dropserve.columns import Column
from dropserve.errors import RequestError
from dropserve.serving.http import schemas
from dropserve.serving.loaded import Loaded
from dropserve.serving.metadata import describe_model
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.serving.tables import table_reader

_CELLS = JSON | st.sampled_from(["clerk", "nurse", "", "1", "seven", 1, 2.0, 4, None, True, 1e39, -5, {}])


@given(
    st.fixed_dictionaries(dict.fromkeys(GOOD, _CELLS))
    | st.lists(_CELLS, min_size=3, max_size=5)
    | st.fixed_dictionaries({"input": st.lists(_CELLS, min_size=4, max_size=4)})
    | st.fixed_dictionaries(
        {"age": st.just(3), "job": st.just("clerk")}, optional={"grade": _CELLS, "pay": _CELLS}
    )
)
@settings(max_examples=150)
def test_the_schema_takes_what_the_codec_takes(instance: Any) -> None:
    table = table_reader(manifest(*COLUMNS))
    assert table is not None
    allowed = jsonschema_rs.is_valid(schemas.table_instance(table), instance)
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
    allowed = jsonschema_rs.is_valid(schemas.table_instance(table), [value])
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
    assert [each["properties"]["name"]["const"] for each in schemas.table_inputs(table)] == list(GOOD)
