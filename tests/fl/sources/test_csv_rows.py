"""Tests what the CSV source says of rows that stray quotes may have joined; test_tables.py tests what it reads."""

import pytest

from fl.clients import TokenStore
from fl.sources import csv_rows
from models.vocabulary import SMALLEST, learn


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "data"
        path.write_bytes(content.encode())
        return path

    return write


def joined_by_stray_quotes(rows: int) -> str:
    lines = [f"u{number},text {number}" for number in range(rows + 2)]
    lines[1] = 'u1,"text 1'
    lines[rows] = f'u{rows},text {rows}"'
    return "user,text\n" + "\n".join(lines) + "\n"


def test_csv_notes_row_with_many_line_breaks_and_strict_refuses_it(write):
    path = write(joined_by_stray_quotes(90))
    source = csv_rows.load(path, "user", "text")
    assert [user for user, _ in source] == ["u0", "u1", "u91"]
    assert source.bad_rows.notes == [
        f"1 suspicious rows were read, the first: {path}:3: a row with 89 line breaks: look for a stray quote that "
        "joins rows"
    ]
    with pytest.raises(ValueError, match=r"data:3: a row with 89 line breaks: .* or set strict = false$"):
        list(csv_rows.load(path, "user", "text", strict=True))


def test_store_with_suspicious_rows_is_not_reused_for_strict_source(write, tmp_path):
    path, words = write(joined_by_stray_quotes(90)), learn([], SMALLEST)
    store = TokenStore.build(tmp_path / "store", csv_rows.load(path, "user", "text"), words)
    assert (store.statistics.bad_rows, store.statistics.suspicious_rows, len(store.statistics.notes)) == (0, 1, 1)
    with pytest.raises(ValueError, match="a row with 89 line breaks"):
        TokenStore.build(tmp_path / "store", csv_rows.load(path, "user", "text", strict=True), words)


REAL_TEXTS = {
    "no commas": "\n".join(f"line {number}" for number in range(csv_rows.MANY_LINE_BREAKS + 1)),
    "Windows": "\r\n".join(f"line {number}" for number in range(csv_rows.MANY_LINE_BREAKS + 1)),
    "letter": "Dear Anna,\n\nthank you, and see you soon.\nWell, take care, and write.\nYours,\nBen\n",
    "two lines": "Hello, you\nWell, bye",
    "decimal comma": "Zwei Sachen:\nDas kostet 3,50 Euro\nDas andere 4,20 Euro",
    "more commas": "1,2,3\n4,5,6",
}


@pytest.mark.parametrize("name", REAL_TEXTS)
def test_csv_text_of_few_lines_is_not_suspicious(write, name):
    path = write("user,text\n" + "".join(f'{user},"{REAL_TEXTS[name]}"\n' for user in ("a", "b", "c")))
    source = csv_rows.load(path, "user", "text", strict=True)
    assert len(list(source)) == 3 and not source.bad_rows.notes


@pytest.mark.parametrize("rows", [2, 3, 20])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_notes_few_rows_that_stray_quotes_joined_and_strict_refuses_them(write, rows, end):
    path = write(joined_by_stray_quotes(rows).replace("\n", end))
    source = csv_rows.load(path, "user", "text")
    assert [user for user, _ in source] == ["u0", "u1", f"u{rows + 1}"]
    assert source.bad_rows.suspicious == 1
    reason = (
        f"data:3: a row with {rows - 1} line breaks, in which {rows - 1} lines look like rows: look for a stray quote"
    )
    assert reason in source.bad_rows.notes[0]
    with pytest.raises(ValueError, match=reason):
        list(csv_rows.load(path, "user", "text", strict=True))


def test_csv_notes_each_of_many_pairs_of_stray_quotes(write):
    pairs = [joined_by_stray_quotes(10).split("\n", 1)[1] for _ in range(20)]
    source = csv_rows.load(write("user,text\n" + "".join(pairs)), "user", "text")
    assert len(list(source)) == 60 and source.bad_rows.suspicious == 20
    assert source.bad_rows.notes[0].startswith("20 suspicious rows were read, the first: ")


@pytest.mark.parametrize(("rows", "reason"), [(3, "a client id with a line break"), (90, "a row with 89 line breaks")])
def test_csv_notes_rows_that_stray_quotes_in_the_user_column_joined(write, rows, reason):
    lines = [f"u{number},text {number}" for number in range(rows)]
    joined = "\n".join(['"u0,text 0', *lines[1:-1], f'u{rows - 1}",text {rows - 1}'])
    source = csv_rows.load(write(f"user,text\n{joined}\na,b\n"), "user", "text")
    assert [text for _, text in source] == [[f"text {rows - 1}"], ["b"]]
    assert source.bad_rows.suspicious == 1
    assert f"data:2: {reason}: look for a stray quote" in source.bad_rows.notes[0]


def test_csv_counts_carriage_returns_in_quotes_as_line_breaks(write):
    text = "\r".join(f"line {number}" for number in range(50))
    source = csv_rows.load(write(f'user,text\na,"{text}"\n'), "user", "text")
    assert len(list(source)) == 1
    assert "a row with 49 line breaks" in source.bad_rows.notes[0]


def test_csv_row_with_missing_fields_and_line_breaks_names_stray_quotes(write):
    source = csv_rows.load(write('user,text\na,"b\nc",d\n'), "user", "text")
    assert list(source) == []
    assert [(row.line, row.reason) for row in source.bad_rows] == [
        (2, "3 fields, but the header has 2 (and the row has 1 line breaks: look for a stray quote that joins rows)")
    ]
