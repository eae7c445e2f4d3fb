"""Inputs as the command line writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropserve.errors import UsageError
from dropserve.signature import Axis, Site, TensorSpec, parse_input

sizes = st.lists(
    st.integers(1, 9999) | st.builds(Axis, name=st.sampled_from("LS"), maximum=st.integers(1, 99)), max_size=4
)


@given(shape=sizes, dtype=st.sampled_from(["float32", "int64", "bool", "uint8"]))
def test_what_is_written_is_what_is_read(shape: list[int | Axis], dtype: str) -> None:
    text = ",".join(map(str, shape)) + f":{dtype}"
    assert parse_input(text, name="x") == TensorSpec(name="x", dtype=dtype, shape=tuple(shape))


@pytest.mark.parametrize(
    ("text", "lesson"),
    [
        ("16,", "'' is not a size"),
        ("-1,28", "'-1' is not a size"),
        ("0", "'0' is not a size"),
        ("1x28", "without the batch axis"),
        ("7:int65", "'int65' is not one of"),
        ("L<64", "L<=64,16 for a variable length"),
    ],
)
def test_what_cannot_be_read_is_a_lesson(text: str, lesson: str) -> None:
    with pytest.raises(UsageError, match=lesson.replace("<", "<")):
        parse_input(text)


def test_a_variable_axis_is_sized_by_its_name_or_its_maximum() -> None:
    spec = parse_input("L<=64,16")
    assert spec.sized() == (64, 16)
    assert spec.sized({"L": 5}) == (5, 16)
    assert str(spec) == "input: float32[L<=64,16]"


def test_a_site_counts_the_random_numbers_of_one_sample() -> None:
    site = Site(name="a", kind="dropout", p=0.1, shape=(Axis(name="L", maximum=12), 3), scale="mask_0")
    assert site.units == 36
    assert Site(name="a", kind="dropout", p=0.1, shape=(), scale="mask_0").units == 1
