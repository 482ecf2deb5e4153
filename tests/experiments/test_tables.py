"""Tests of reading columns of CSV and Parquet files."""

import numpy as np
import pytest

from experiments.tables import read_columns


def test_columns_of_csv_are_numbers_if_every_value_is(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('\ufeffsex,score,age,"a, b"\nf,0.5,30,x\nm,,41,7\n\n')
    table = read_columns(path, ["sex", "score", "age", "a, b", "age"])
    assert {name: column.dtype.kind for name, column in table.items()} == {
        "sex": "O",
        "score": "f",
        "age": "i",
        "a, b": "O",
    }
    assert table["age"].tolist() == [30, 41] and table["a, b"].tolist() == ["x", "7"]
    assert table["score"][0] == 0.5 and np.isnan(table["score"][1])


def test_empty_text_is_none(tmp_path):
    (tmp_path / "table.csv").write_text("sex\nf\n''\n\"\"\n")
    assert read_columns(tmp_path / "table.csv", ["sex"])["sex"].tolist() == ["f", "''", None]


def test_columns_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"sex": ["f", None], "band": pa.array([1, None]), "loss": [0, 1], "other": [1, 2]})
    parquet.write_table(table, tmp_path / "table.parquet")
    columns = read_columns(tmp_path / "table.parquet", ["loss", "sex", "band"])
    assert {name: column.tolist() for name, column in columns.items()} == {
        "loss": [0, 1],
        "sex": ["f", None],
        "band": [1, None],
    }
    with pytest.raises(ValueError, match="table.parquet has no column 'x'; it has 'sex', 'band', 'loss', 'other'"):
        read_columns(tmp_path / "table.parquet", ["x"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="broken.parquet: not a Parquet file, or a damaged one"):
        read_columns(tmp_path / "broken.parquet", ["x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a table with the names of its columns in the first row"),
        (b"a,b\n", "has no row: give a table with at least two rows of each group"),
        (b"b,c\n1,2\n", "has no column 'a'; it has 'b', 'c'"),
        (b"a,a\n1,2\n", "has more than one column 'a'; it has 'a', 'a'"),
        (b"a,b\n1\n", r":2: 1 fields, but the header has 2: repair it"),
        (b'a,b\n"1,2\n', r":2: not CSV \(unexpected end of data\): repair the line"),
        (b"a\n\xff\n", "is not text in UTF-8: write it as CSV in UTF-8, or as .parquet"),
    ],
)
def test_bad_file_is_refused(tmp_path, content, message):
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"table.csv ?{message}"):
        read_columns(tmp_path / "table.csv", ["a"])


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.csv: no such file"):
        read_columns(tmp_path / "no.csv", ["a"])
    with pytest.raises(ValueError, match="is not a file: give a CSV or Parquet file"):
        read_columns(tmp_path, ["a"])
