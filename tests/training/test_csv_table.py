"""CSV files: what pandas reads, we read; what cannot be learned from is named by line and column."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.errors import DataError
from dropserve.training.recipe import CsvData
from dropserve.training.tabular import read_tabular


def read(path: Path, text: str, *, task: str = "classification", **keys: object) -> object:
    file = path / "rows.csv"
    file.write_text(text, encoding="utf-8")
    data = CsvData.model_validate({"source": "csv", "file": "rows.csv", "target": "y", **keys})
    return read_tabular(data, path, task=task)


def refused(path: Path, text: str, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        read(path, text, **keys)
    return str(caught.value)


_NAMES = st.lists(
    st.text("abcdefg h", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=4, unique=True
)
_NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(data=st.data(), names=_NAMES, rows=st.integers(1, 8), delimiter=st.sampled_from(",;\t|"))
@settings(max_examples=80)
def test_reads_what_pandas_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str], rows: int, delimiter: str
) -> None:
    table = data.draw(
        st.lists(st.lists(_NUMBERS, min_size=len(names), max_size=len(names)), min_size=rows, max_size=rows)
    )
    text = io.StringIO()
    writer = csv.writer(
        text, delimiter=delimiter, quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    )
    writer.writerows([names, *table])
    folder = tmp_path_factory.getbasetemp()
    got = read(folder, text.getvalue(), task="regression", target=names[-1], delimiter=delimiter)
    frame = pd.read_csv(folder / "rows.csv", sep=delimiter)
    np.testing.assert_allclose(got.features, frame[names[:-1]].to_numpy(np.float32), rtol=1e-6)
    np.testing.assert_allclose(got.target, frame[names[-1]].to_numpy(np.float32), rtol=1e-6)
    assert got.columns == tuple(names[:-1])


@given(
    row=st.integers(0, 5),
    column=st.integers(0, 2),
    junk=st.sampled_from(["", "NA", "nan", " ? ", "abc", "1,5", "1_000", "inf", "1e60", "--3"]),
    blank=st.integers(0, 5),
)
@settings(max_examples=80)
def test_a_bad_cell_is_named_by_the_line_an_editor_shows(
    tmp_path_factory: pytest.TempPathFactory, row: int, column: int, junk: str, blank: int
) -> None:
    cells = [[str(10 * i + j) for j in range(3)] + [f"note {i}\nover two lines"] for i in range(6)]
    cells[row][column] = junk
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["a", "b", "y", "note"])
    for number, line in enumerate(cells):
        if number == blank:
            text.write("\n")
        writer.writerow(line)
    line = 1 + text.getvalue()[: text.getvalue().index(f"note {row}")].count("\n")
    folder = tmp_path_factory.getbasetemp()
    message = refused(folder, text.getvalue(), task="regression", features=["a", "b"])
    assert "rows.csv: 1 values cannot be learned from" in message
    assert f"line {line}, column {'aby'[column]!r}: " in message
    assert ("missing" in message) == (junk.strip().lower() in {"", "na", "nan", "?"})


def test_classes_are_texts_or_numbers_in_order(tmp_path: Path) -> None:
    words = read(tmp_path, "a,y\n1,dog\n2,cat\n3, dog \n")
    assert (words.labels, words.target.tolist()) == (("cat", "dog"), [1, 0, 1])
    numbers = read(tmp_path, "a,y\n1,10\n2,9\n3,-1\n")
    assert (numbers.labels, numbers.target.tolist()) == (("-1", "9", "10"), [2, 1, 0])


def test_features_come_in_the_order_asked_for(tmp_path: Path) -> None:
    table = read(tmp_path, "a,y,b,c\n1,x,2,3\n", features=["c", "a"])
    assert table.columns == ("c", "a")
    assert table.features.tolist() == [[3, 1]]


def test_the_mark_that_windows_puts_at_the_start_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa,y\r\n1,x\r\n").columns == ("a",)


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        ("", {}, "rows.csv: empty; expected a header line"),
        ("a,y\n", {}, "rows.csv: a header line and no rows"),
        ("a,b\n1,2\n", {}, "no column 'y' (data.target); its columns: a, b"),
        ("a,yy\n1,2\n", {}, "no column 'y' (data.target) (did you mean 'yy'?)"),
        ("a;y\n1;2\n", {}, "separated by ';': set data.delimiter"),
        ("a,y\n1,2\n", {"features": ["b"]}, "no column 'b' (data.features)"),
        ("a,a,y\n1,2,3\n", {}, "line 1: column 'a' stands twice"),
        ("1,2,3\n4,5,6\n", {}, "line 1: 1, 2, 3... are numbers; expected a header line"),
        ("a,y\n1,2\n1,2,3\n", {}, "line 3: 3 values, but the header names 2 columns (a, y)"),
        ("a,y\n1,2\n1\n", {}, "line 3: 1 values, but the header names 2 columns"),
        ("y\n1\n", {}, "no column is left beside the target 'y'"),
        ("a,y\n1,\n2,x\n", {}, "line 2, column 'y': the class is missing"),
        ('a,y\n"1,2\n', {}, "not a CSV file: unexpected end of data"),
    ],
)
def test_what_is_no_table_says_so(tmp_path: Path, text: str, keys: dict[str, object], expected: str) -> None:
    assert expected in refused(tmp_path, text, **keys)


def test_bad_cells_are_counted_one_line_a_column(tmp_path: Path) -> None:
    text = "a,b,y\n0,1,1\n" + "x,1,1\n" * 25 + "2,,1\n" * 3
    message = refused(tmp_path, text, features=["a", "b"])
    assert "28 values cannot be learned from" in message
    assert "line 3, column 'a': 'x' is not a number" in message
    assert "(25 such values in the column)" in message
    assert "line 28, column 'b': the value is missing" in message
    assert len(message.splitlines()) == 3


ROWS = 12
TRAPS: list[tuple[list[str], str]] = [
    ([f"{n},{n}5" for n in range(ROWS)], 'a decimal comma; set data.decimal = ","'),
    ([*[f"{n},5" for n in range(ROWS - 1)], "7"], 'a decimal comma; set data.decimal = ","'),
    ([f"{n}%" for n in range(ROWS)], "percentages"),
    ([f"{n} 234" for n in range(1, ROWS + 1)], "thousands separators"),
    ([f"{n},234,567" for n in range(1, ROWS + 1)], "thousands separators"),
    ([f"1.{n}34,5" for n in range(1, 10)] * 2, "thousands separators and a decimal comma"),
    ([f"${n}" for n in range(ROWS)], "amounts of money"),
    ([f"{n} €" for n in range(ROWS)], "amounts of money"),
    ([f"{n} km" for n in range(ROWS)], "the unit 'km'"),
    ([f"2024-01-{n:02}" for n in range(1, ROWS + 1)], "dates"),
    ([f"{n}/3/2024 10:00" for n in range(1, ROWS + 1)], "dates"),
    ([f"{n}:30" for n in range(ROWS)], "times of day"),
]


def lines(cells: list[str], labels: list[str] | None = None) -> str:
    r = np.random.default_rng(0)
    body = zip(cells, labels or ["x", "z"] * (len(cells) // 2), strict=True)
    return "a;b;y\n" + "".join(f"{a};{r.normal()};{y}\n" for a, y in body)


@pytest.mark.parametrize(("cells", "expected"), TRAPS)
def test_numbers_written_otherwise_are_no_names(tmp_path: Path, cells: list[str], expected: str) -> None:
    message = refused(tmp_path, lines(cells), delimiter=";")
    assert "line " in message
    assert "column 'a'" in message
    assert expected in message
    taken: Any = read(tmp_path, lines(cells), delimiter=";", categorical=["a"])
    assert len(taken.categories[0]) == len(set(cells))


def test_a_decimal_comma_is_read_where_the_recipe_says_so(tmp_path: Path) -> None:
    table: Any = read(tmp_path, "a;y\n1,5;2\n-,25;1\n3;1\n", delimiter=";", decimal=",")
    assert table.features[:, 0].tolist() == [1.5, -0.25, 3]
    with_points = refused(tmp_path, "a;y\n1.5;2\n2.5;1\n", delimiter=";", decimal=",")
    assert "numbers with a decimal point" in with_points
    with pytest.raises(ValueError, match=r"is data\.delimiter too"):
        read(tmp_path, "", decimal=",")


@pytest.mark.parametrize(
    ("header", "cell", "expected"),
    [
        ("", lambda n: n, "column 1 has no name (a data frame's index?)"),
        ("Unnamed: 0", lambda n: 3 * n * n, "column 'Unnamed: 0' had no name"),
        ("id", lambda n: n + 1, "column 'id' numbers the rows"),
        ("kind", lambda n: "xz"[n % 2], "column 'kind' equals the target in every row"),
    ],
)
def test_a_column_that_nobody_asked_for_and_that_tells_too_much(
    tmp_path: Path, header: str, cell: Callable[[int], object], expected: str
) -> None:
    r = np.random.default_rng(1)
    body = "".join(f"{cell(n)},{r.normal()},{'xz'[n % 2]}\n" for n in range(ROWS))
    message = refused(tmp_path, f"{header},b,y\n{body}")
    assert expected in message
    assert 'features = ["b"]' in message
    if header:
        asked: Any = read(tmp_path, f"{header},b,y\n{body}", features=[header, "b"])
        assert asked.columns == (header, "b")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_column_of_numbers_that_equals_the_target(tmp_path: Path, task: str) -> None:
    text = "a,b,y\n" + "".join(f"{n % 2}.0,{n * n},{n % 2}\n" for n in range(ROWS))
    assert "column 'a' equals the target in every row" in refused(tmp_path, text, task=task)


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["0", "0.0", "1"] * 4, "'0' and '0.0'"),
        (["1", "01", "2"] * 4, "'01' and '1'"),
        (["yes", "Yes", " yes"] * 4, "'Yes' and 'yes'"),
        (["not  so", "not so"] * 6, "'not  so' and 'not so'"),
    ],
)
def test_classes_that_differ_only_in_spelling(tmp_path: Path, labels: list[str], alike: str) -> None:
    cells = [str(n * n) for n in range(ROWS)]
    message = refused(tmp_path, lines(cells, labels), delimiter=";")
    assert f"column 'y' holds classes that differ only in how they are written: {alike}" in message


def test_letters_are_classes_in_either_case(tmp_path: Path) -> None:
    table: Any = read(tmp_path, lines([str(n * n) for n in range(ROWS)], ["a", "A"] * 6), delimiter=";")
    assert table.labels == ("A", "a")


@pytest.mark.parametrize("column", ["t", "y"])
@pytest.mark.parametrize(("start", "step"), [(1_700_000_000_000, 1000), (1_700_000_000, 1), (52.52, 1e-5)])
def test_numbers_that_32_bits_cannot_tell_apart(
    tmp_path: Path, column: str, start: float, step: float
) -> None:
    exact = [start + step * (n * 7 % 300) for n in range(300)]
    other = np.random.default_rng(0).normal(size=300)
    t, y = (exact, other) if column == "t" else (other, exact)
    text = "t,y\n" + "".join(f"{a},{b}\n" for a, b in zip(t, y, strict=True))
    message = refused(tmp_path, text, task="regression")
    after = len(set(np.float32(exact).tolist()))
    assert f"column {column!r}: 300 different values become {after} in 32 bits" in message
    assert f"subtract an offset, such as {math.floor(start)}, here and in requests" in message
    shifted = "t,y\n" + "".join(
        f"{a - start * (column == 't')},{b - start * (column == 'y')}\n" for a, b in zip(t, y, strict=True)
    )
    read(tmp_path, shifted, task="regression")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    data = CsvData.model_validate({"source": "csv", "file": "rows.csv", "target": "y"})
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_tabular(data, tmp_path, task="classification")
