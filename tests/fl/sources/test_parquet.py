"""Tests the Parquet source on files like those of Hugging Face `datasets` and pandas, written with pyarrow alone."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet as pq  # noqa: E402

from fl.clients import TokenStore  # noqa: E402
from fl.sources import parquet  # noqa: E402
from models.vocabulary import SMALLEST, learn  # noqa: E402


def write(
    path: Path, user: Any, text: Any, rows_a_group: int = 1000, metadata: dict | None = None, others: dict | None = None
) -> Path:
    table = pa.table({"user": user, "text": text, **(others or {})})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows_a_group)
    return path


def read(path: Path, **options: Any) -> tuple[list[Any], list[Any]]:
    source = parquet.load(path, "user", "text", **options)
    return list(source), [(Path(row.file).name, row.line, row.reason) for row in source.bad_rows]


STRINGS = {
    "string": lambda values: pa.array(values, pa.string()),
    "large_string": lambda values: pa.array(values, pa.large_string()),
    "string_view": lambda values: pa.array(values, pa.string_view()),
    "dictionary": lambda values: pa.array(values, pa.string()).dictionary_encode(),
    "dictionary of large strings": lambda values: pa.array(values, pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", STRINGS)
def test_parquet_folder_from_datasets_is_read_in_order_of_file_names(tmp_path, kind):
    features = {"info": {"features": {name: {"dtype": "string", "_type": "Value"} for name in ("user", "text")}}}
    metadata = {"huggingface": json.dumps(features)}
    parts = [(["anna", "ben", "anna"], ["one", "größer", "two"]), (["carl", "anna"], ["three", "four"])]
    for number, (user, text) in reversed(list(enumerate(parts))):
        users, texts = STRINGS[kind](user), STRINGS[kind](text)
        path = tmp_path / f"train-{number:05d}-of-00002.parquet"
        write(path, users, texts, rows_a_group=2, metadata=metadata, others={"label": pa.array([0] * len(user))})
    rows, bad = read(tmp_path)
    wanted = [("anna", "one"), ("ben", "größer"), ("anna", "two"), ("carl", "three"), ("anna", "four")]
    assert rows == [(user, [text]) for user, text in wanted] and bad == []


PANDAS = {"pandas": json.dumps({"index_columns": ["__index_level_0__"], "columns": [], "pandas_version": "2.2.3"})}


def test_parquet_from_pandas_with_integer_ids_nulls_and_index_is_read(tmp_path):
    index = {"__index_level_0__": pa.array([10, 11, 12], pa.int64())}
    path = write(tmp_path / "p.parquet", pa.array([7, 8, 7]), pa.array(["a", None, "b"]), metadata=PANDAS, others=index)
    assert read(path) == ([("7", ["a"]), ("7", ["b"])], [("p.parquet", 2, "column 'text' is null")])
    by_index = parquet.load(path, "__index_level_0__", "text")
    assert list(by_index) == [("10", ["a"]), ("12", ["b"])]


def test_parquet_float_ids_of_pandas_equal_integer_ids(tmp_path):
    users = pa.array([7.0, None, 7.5, float("nan"), 2.0**53 + 2, -1.0])
    rows, bad = read(write(tmp_path / "p.parquet", users, pa.array(["t"] * 6)))
    assert [user for user, _ in rows] == ["7", "-1"]
    assert [line for _, line, _ in bad] == [2, 3, 4, 5]
    assert [reason for *_, reason in bad[:2]] == [
        "column 'user' is null",
        "column 'user' is 7.5, neither a string nor an integer: write ids as strings",
    ]


@pytest.mark.parametrize(("scalar", "bits"), [(np.float16, 11), (np.float32, 24), (np.float64, 53)])
def test_parquet_float_ids_end_where_two_integers_become_one_float(tmp_path, scalar, bits):
    integers = [2**bits - 1, 2**bits, 2**bits + 1, 7, -(2**bits)]
    users = pa.array(np.array(integers, scalar))
    assert users[1] == users[2]  # 2^bits + 1 is not a float of this type
    rows, bad = read(write(tmp_path / "p.parquet", users, pa.array(["t"] * 5)))
    assert [user for user, _ in rows] == [str(2**bits - 1), "7"]
    assert [line for _, line, _ in bad] == [2, 3, 5]
    assert bad[0][2] == (
        f"column 'user' is {float(2**bits)}, a float so large that different integers become the same: write ids as "
        "integers or strings"
    )


def test_parquet_column_of_nulls_agrees_with_every_other_file(tmp_path):
    write(tmp_path / "0.parquet", pa.array(["a"]), pa.nulls(1))
    write(tmp_path / "1.parquet", pa.array(["a"]), pa.array(["t"]))
    assert read(tmp_path) == ([("a", ["t"])], [("0.parquet", 1, "column 'text' is null")])


def not_utf8() -> Any:
    return pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))


def test_parquet_records_bad_rows_with_file_and_row_and_strict_refuses_first(tmp_path):
    users = pa.array(["a", "", " \u200b", None, "b", "a"])
    write(tmp_path / "0.parquet", users, pa.array(["fine", "t", "t", "t", " ", "last"]), rows_a_group=2)
    write(tmp_path / "1.parquet", pa.array(["a"]), not_utf8())
    assert read(tmp_path) == (
        [("a", ["fine"]), ("a", ["last"])],
        [
            ("0.parquet", 2, "column 'user' is empty"),
            ("0.parquet", 3, "column 'user' is blank (white space or invisible characters)"),
            ("0.parquet", 4, "column 'user' is null"),
            ("0.parquet", 5, "column 'text' is empty"),
            ("1.parquet", 1, "not UTF-8 (or a lone surrogate)"),
        ],
    )
    with pytest.raises(ValueError, match=r"0\.parquet:2: column 'user' is empty$"):
        read(tmp_path, strict=True)


def test_parquet_reads_one_batch_of_one_row_group_at_a_time(tmp_path, monkeypatch):
    users, size = [f"u{number}" for number in range(100)], 10
    path = write(tmp_path / "p.parquet", pa.array(users), pa.array(["t"] * 100), rows_a_group=2 * size)
    monkeypatch.setattr(parquet, "_BATCH_ROWS", size)
    batches: list[tuple[list[int], int, list[str]]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(file: Any, batch_size: int, row_groups: list[int], columns: list[str]) -> Any:
        for batch in iter_batches(file, batch_size, row_groups, columns):
            batches.append((row_groups, batch.num_rows, batch.schema.names))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    source = iter(parquet.load(path, "user", "text"))
    assert batches == []
    for number in range(25):
        assert next(source) == (f"u{number}", ["t"])
        assert len(batches) == number // size + 1
    assert [row_groups for row_groups, *_ in batches] == [[0], [0], [1]]
    assert {(rows, tuple(names)) for _, rows, names in batches} == {(size, ("user", "text"))}
    assert len(list(source)) == 75


def test_parquet_file_with_one_row_group_is_not_held_in_memory(tmp_path):
    """Reads 24 MB of one row group, in a process of its own whose memory pool counts nothing else.

    The two columns have pages of 1 MB; a batch of 4,096 rows has 1.5 MB, and Arrow's buffer 1 MB for each column.
    """
    rows, size = 1 << 16, 360
    content = random.Random(0).randbytes(rows * size // 2).hex()
    texts = [content[start : start + size] for start in range(0, len(content), size)]
    path = write(tmp_path / "p.parquet", pa.array(map(str, range(rows))), pa.array(texts), rows_a_group=rows)
    assert pq.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 23 << 20
    code = (
        "import sys, pyarrow; from pathlib import Path; from fl.sources import parquet\n"
        "rows = sum(1 for _ in parquet.load(Path(sys.argv[1]), 'user', 'text'))\n"
        "print(rows, pyarrow.default_memory_pool().max_memory())"
    )
    command, root = [sys.executable, "-c", code, str(path)], Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    read_rows, peak = map(int, done.stdout.split())
    assert read_rows == rows
    assert peak < path.stat().st_size / 2, f"{peak / 2**20:.1f} MB"


def message(path: Path, columns: Sequence[str] = ("user", "text")) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        list(parquet.load(path, *columns))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_files_with_different_column_types_are_refused_in_one_line(tmp_path):
    write(tmp_path / "0.parquet", pa.array(["a"]), pa.array(["t"]))
    write(tmp_path / "1.parquet", pa.array([1]), pa.array(["t"]))
    said = message(tmp_path)
    assert "1.parquet: column 'user' holds numbers here and strings in 0.parquet: write both files with one" in said
    write(tmp_path / "1.parquet", pa.array(["b"]), pa.array(["t"]))
    write(tmp_path / "2.parquet", pa.array([1]), pa.array(["t"]))
    assert "2.parquet: column 'user' holds numbers here and strings in 0.parquet" in message(tmp_path)
    write(tmp_path / "0.parquet", pa.nulls(1), pa.array(["t"]))
    assert "2.parquet: column 'user' holds numbers here and strings in 1.parquet" in message(tmp_path)
    pq.write_table(pa.table({"user": ["a"]}), tmp_path / "1.parquet")
    assert message(tmp_path).endswith("1.parquet: no column 'text'; the file has 'user'")


@pytest.mark.parametrize(
    ("user", "text", "said"),
    [
        (pa.array([True]), pa.array(["t"]), "column 'user' holds bool: strings or numbers are needed"),
        (pa.array([b"a"]), pa.array(["t"]), "column 'user' holds binary: strings or numbers are needed"),
        (pa.array(["a"]), pa.array([["t"]]), "column 'text' holds list<"),
        (pa.array(["a"]), pa.array([3]), "column 'text' holds numbers: strings are needed"),
    ],
)
def test_parquet_column_of_unusable_type_is_refused_in_one_line(tmp_path, user, text, said):
    assert said in message(write(tmp_path / "p.parquet", user, text))


def test_missing_or_unusable_parquet_file_is_refused_in_one_line(tmp_path):
    assert message(tmp_path / "nowhere.parquet").endswith("nowhere.parquet: no such file")
    assert message(tmp_path).endswith("no file *.parquet in this folder")
    path = write(tmp_path / "p.parquet", pa.array(["a"]), pa.array(["t"]))
    assert message(path, ("id", "text")).endswith("no column 'id'; the file has 'user', 'text'")
    assert message(path, ("text", "text")).endswith("are the same, 'text'")
    whole = path.read_bytes()
    for content, said in (
        (b"", "the file is empty"),
        (whole[:-9], "p.parquet: not a Parquet file, or a damaged one (Parquet magic bytes not found"),
        (b"user,text\n", "p.parquet: not a Parquet file, or a damaged one"),
        (b"\x1f\x8b" + whole, "the file is compressed (gzip): decompress it first"),
        (whole[:4] + bytes(40) + whole[44:], "p.parquet: not a Parquet file, or a damaged one"),
    ):
        path.write_bytes(content)
        assert said in message(path)


def test_parquet_folder_passes_over_other_files_with_a_note(tmp_path):
    write(tmp_path / "p.parquet", pa.array(["a"]), pa.array(["t"]))
    (tmp_path / "._p.parquet").write_bytes(b"\0\5\x16\7")
    (tmp_path / "_SUCCESS").touch()
    source = parquet.load(tmp_path, "user", "text")
    assert list(source) == [("a", ["t"])]
    assert source.bad_rows.notes == [
        "passed over in the folder: 1 hidden ('._p.parquet'), 1 file not named *.parquet ('_SUCCESS')"
    ]


def test_parquet_fingerprint_changes_with_every_file_and_the_columns(tmp_path):
    def fingerprint(user: str = "user", text: str = "text") -> str:
        return parquet.load(tmp_path, user, text).fingerprint()

    write(tmp_path / "0.parquet", pa.array(["a"]), pa.array(["t"]))
    prints = {fingerprint(), fingerprint("text", "user")}
    write(tmp_path / "1.parquet", pa.array(["a"]), pa.array(["t"]))
    prints.add(fingerprint())
    write(tmp_path / "1.parquet", pa.array(["a"]), pa.array(["u"]))
    prints.add(fingerprint())
    # A store that was built before must not be used again: its notes lack the files that are passed over.
    for name in ("2.PARQUET", ".3.parquet"):
        (tmp_path / name).touch()
        prints.add(fingerprint())
    assert len(prints) == 6


def test_parquet_files_in_folder_within_are_named_with_the_fix(tmp_path):
    def put(folder: str) -> None:
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "part-0.parquet", pa.array(["a"]), pa.array(["t"]))

    put(".cache")
    assert message(tmp_path).endswith(
        "no file *.parquet in this folder (passed over in the folder: 1 hidden ('.cache'))"
    )
    put("data/year=2019")
    assert message(tmp_path).endswith(f"files *.parquet are in {tmp_path}/data/year=2019: give that folder")
    put("data/year=2020")
    assert message(tmp_path).endswith(
        "1 folder within ('data')): files *.parquet are in 2 folders within ('data/year=2019', 'data/year=2020'): "
        "write them all into one folder, and give that folder"
    )


def test_store_joins_text_of_all_parquet_files_by_client(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.parquet", pa.array(["a", "b"]), pa.array([f"a{number}", f"b{number}"]))
    words = learn([], SMALLEST)
    store = TokenStore.build(tmp_path / "store", parquet.load(tmp_path, "user", "text"), words)
    assert store.clients == ("a", "b")
    assert [words.decode(store.tokens(client).tolist()) for client in (0, 1)] == ["a0a1a2", "b0b1b2"]


def test_missing_pyarrow_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"pyarrow, of the extra 'parquet', is not installed: pip install 'fedspeak\[parquet\]'$",
    ):
        parquet.load(tmp_path, "user", "text")


def test_importing_parquet_source_loads_no_pyarrow():
    code = "import sys, fl.sources.parquet; print('pyarrow' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
