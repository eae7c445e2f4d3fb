"""CSV files: what pandas reads, we read; what cannot be learned from is named by line and column."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.errors import DataError
from dropserve.training.csv_table import read_csv
from dropserve.training.recipe import CsvData


def read(path: Path, text: str, *, task: str = "classification", **keys: object) -> object:
    file = path / "rows.csv"
    file.write_text(text, encoding="utf-8")
    data = CsvData.model_validate({"source": "csv", "file": "rows.csv", "target": "y", **keys})
    return read_csv(data, path, task=task)


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
    lines = [[str(10 * i + j) for j in range(3)] + [f"note {i}\nover two lines"] for i in range(6)]
    lines[row][column] = junk
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["a", "b", "y", "note"])
    for number, line in enumerate(lines):
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


def test_many_bad_cells_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    message = refused(tmp_path, "a,y\n0,1\n" + "x,1\n" * 25)
    assert "25 values cannot be learned from" in message
    assert "line 12, column 'a'" in message
    assert "line 13" not in message
    assert "and 15 more" in message


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,y\n\xff\xfe,1\n")
    data = CsvData.model_validate({"source": "csv", "file": "rows.csv", "target": "y"})
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_csv(data, tmp_path, task="classification")
