import csv
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.clients import TokenStore
from fl.near_ids import is_blank
from fl.sources import base, csv_rows, jsonl
from models.vocabulary import SMALLEST, learn

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20).filter(str.strip)
USER = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=6).filter(
    lambda user: not is_blank(user)
)


@pytest.fixture
def write(tmp_path):
    def write(content, name="data"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(module, path, **options):
    source = module.load(path, "user", "text", **options)
    return list(source), [(row.line, row.reason) for row in source.bad_rows]


@given(rows=st.lists(st.tuples(USER, TEXT), min_size=1, max_size=8))
def test_jsonl_and_csv_sources_read_rows_as_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    wanted = [(user, [text]) for user, text in rows]
    lines = [json.dumps({"text": text, "other": [1, {"user": "no"}], "user": user}) for user, text in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read(jsonl, folder / "rows.jsonl") == (wanted, [])
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "user"])
        writer.writerows([number, text, user] for number, (user, text) in enumerate(rows))
    assert read(csv_rows, folder / "rows.csv") == (wanted, [])


def test_jsonl_records_bad_rows_with_their_line(write):
    good = b'{"user": "a", "text": "fine"}\n'
    bad = {
        2: (b'{"user": "a", "text": "cut\n', "not JSON: Invalid control character at at character 27"),
        4: (b"\xff\n", "not UTF-8 at byte 0 of the line"),
        5: (b"[1]\n", "not a JSON object"),
        6: (b'{"text": "b"}\n', "no column 'user'"),
        7: (b'{"user": "b"}\n', "no column 'text'"),
        8: (b'{"user": "b", "text": 3}\n', "column 'text' is not a string"),
        9: (b'{"user": null, "text": "b"}\n', "column 'user' is null"),
        10: (
            b'{"user": true, "text": "b"}\n',
            "column 'user' is true, neither a string nor an integer: write ids as strings",
        ),
        11: (b'{"user": "", "text": "b"}\n', "column 'user' is empty"),
        12: (b'{"user": "b", "text": " "}\n', "column 'text' is empty"),
        13: (b'{"user": "b", "text": "\\ud800"}\n', "not UTF-8 (or a lone surrogate)"),
        14: (b"[" * 100_000 + b"\n", "JSON that cannot be read: it is nested too deeply or a number is too long"),
        15: (
            b'{"user": ' + b"9" * 5000 + b', "text": "b"}\n',
            "JSON that cannot be read: it is nested too deeply or a number is too long",
        ),
    }
    content = b"".join(bad[number][0] if number in bad else good for number in range(1, 17))
    path = write(b"\xef\xbb\xbf" + content.replace(good, b"\n" + good, 0))
    source = jsonl.load(path, "user", "text")
    assert list(source) == [("a", ["fine"])] * 3
    found = {row.line: row.reason for row in source.bad_rows}
    assert set(found) == set(bad)
    for line, (_, reason) in bad.items():
        assert found[line] == reason or reason.startswith("not JSON: ") and found[line].startswith("not JSON: ")
    assert {row.file for row in source.bad_rows} == {str(path)}


def test_jsonl_accepts_blank_lines_integer_ids_and_crlf(write):
    path = write('\n{"user": 12, "text": "a"}\r\n  \n{"user": "12", "text": "b\\nc"}')
    assert read(jsonl, path) == ([("12", ["a"]), ("12", ["b\nc"])], [])


def test_jsonl_accepts_only_numbers_with_integer_value_as_ids(write):
    users = ["7.0", "7", '"7"', "-3.0", "9007199254740991.0", "-0.0", "9007199254740993"]
    # The float 2^53 is also what 2^53 + 1 becomes.
    large = ["9007199254740992.0", "9007199254740993.0", "1e300", "-9007199254740992.0"]
    others = ["7.5", "NaN", "[1, 2]", "-Infinity", '["' + "x" * 50 + '"]']
    users += large + others
    path = write("".join(f'{{"user": {user}, "text": "t"}}\n' for user in users))
    rows, bad = read(jsonl, path)
    assert [user for user, _ in rows] == ["7", "7", "7", "-3", "9007199254740991", "0", "9007199254740993"]
    shown = ["9007199254740992.0", "9007199254740992.0", "1e+300", "-9007199254740992.0"]
    reasons = [f"{value}, a float so large that different integers become the same" for value in shown]
    shown = ["7.5", "NaN", "[1, 2]", "-Infinity", '["' + "x" * 38 + "…"]
    fixes = [": write ids as integers or strings"] * 4 + [": write ids as strings"] * 5
    reasons += [f"{value}, neither a string nor an integer" for value in shown]
    assert bad == [
        (line, f"column 'user' is {reason}{fix}")
        for line, (reason, fix) in enumerate(zip(reasons, fixes, strict=True), 8)
    ]


@pytest.mark.parametrize("user", [" ", "\t", "\u200b", "\u0007\u200d", "\u00a0"])
@pytest.mark.parametrize("module", [jsonl, csv_rows])
def test_table_records_blank_client_id_and_strict_refuses_it(write, module, user):
    content = json.dumps({"user": user, "text": "t"}) + "\n" if module is jsonl else f'user,text\n"{user}",t\n'
    path = write(content)
    rows, bad = read(module, path)
    assert rows == []
    assert [reason for _, reason in bad] == ["column 'user' is blank (white space or invisible characters)"]
    with pytest.raises(ValueError, match="column 'user' is blank"):
        read(module, path, strict=True)


@pytest.mark.parametrize(
    "content", ['[{"user": "a", "text": "b"}]', "\n [\n{}", '{\n  "user": "a",\n  "text": "b"\n}\n']
)
def test_jsonl_refuses_json_over_several_lines_with_fix(write, content):
    with pytest.raises(ValueError, match="not JSON Lines: write one object per line, for instance with jq") as caught:
        read(jsonl, write(content))
    assert "\n" not in str(caught.value)


RETURNS = r"the line holds bare carriage returns: convert them to newlines, for instance with tr '\r' '\n'"


def test_csv_counts_rows_lost_to_bare_carriage_returns_and_names_the_fix(write):
    source = csv_rows.load(write('user,text\nx,"y\rz"\na,b\rc,d\re,f\r\ng,h\n'), "user", "text")
    assert list(source) == [("x", ["y\rz"]), ("g", ["h"])]
    assert [(row.line, row.reason) for row in source.bad_rows] == [(3, f"not CSV: {RETURNS}")]
    assert source.bad_rows.total == 3


def test_jsonl_counts_rows_lost_to_bare_carriage_returns_and_names_the_fix(write):
    row = '{"user": "a", "text": "b"}'
    source = jsonl.load(write(f"{row}\r{row}\r{row}\r\n{row}\n"), "user", "text")
    assert list(source) == [("a", ["b"])]
    assert [(row.line, row.reason) for row in source.bad_rows] == [
        (1, f"not JSON: Extra data at character 28: {RETURNS}")
    ]
    assert source.bad_rows.total == 3


@pytest.mark.parametrize(
    ("end", "fix"),
    [
        (",", r"remove the comma at the end of the line, for instance with sed 's/,\[\[:space:\]\]\*\$//'"),
        (" , \r", "remove the comma at the end of the line"),
        (' {"user": "c"}', "write one object per line, for instance with jq -c ."),
    ],
)
def test_jsonl_names_the_fix_of_what_stands_after_an_object(write, end, fix):
    path = write('{"user": "a", "text": "b"}' + end + '\n{"user": "a", "text": "b"}\n')
    rows, [(line, reason)] = read(jsonl, path)
    assert len(rows) == 1 and line == 1
    assert re.fullmatch(rf"not JSON: Extra data at character 2[78]: {fix}.*", reason)


def test_jsonl_refuses_repeated_keys_of_the_two_columns_only(write):
    path = write(
        '{"user": "a", "text": "b", "user": "c"}\n'
        '{"text": "b", "user": "a", "te\\u0078t": "c"}\n'
        '{"user": "a", "text": "b", "other": 1, "other": {"user": 1, "user": 2}}\n'
    )
    rows, bad = read(jsonl, path)
    assert rows == [("a", ["b"])]
    assert bad == [
        (line, f"column '{column}' stands more than once in the object: keep one of them")
        for line, column in ((1, "user"), (2, "text"))
    ]


def test_csv_records_bad_rows_with_their_first_line(write):
    path = write(
        b"user,text\n"
        b"a,fine\n"
        b'a,"two\nlines, ""quoted"""\n'
        b"a\n"
        b"a,too,many\n"
        b"\n"
        b"b,\xff\n"
        b",no user\n"
        b"b, \n"
        b'b,"x"y\n'
        b'"b","two\nli\xffnes"\n'
        b"b,last\n"
        b'b,"never closed\nand on\n'
    )
    rows, bad = read(csv_rows, path)
    assert rows == [("a", ["fine"]), ("a", ['two\nlines, "quoted"']), ("b", ["last"])]
    assert bad == [
        (5, "1 fields, but the header has 2"),
        (6, "3 fields, but the header has 2"),
        (8, "not UTF-8 (or a lone surrogate)"),
        (9, "column 'user' is empty"),
        (10, "column 'text' is empty"),
        (11, "not CSV: ',' expected after '\"'"),
        (12, "not UTF-8 (or a lone surrogate)"),
        (15, "not CSV: unexpected end of data; lines 15 to 16 are lost with it: look for a quote that is not closed"),
    ]


def test_csv_counts_all_rows_behind_unclosed_quote(write):
    source = csv_rows.load(write(b'user,text\na,"never closed\nb,hello\nc,there\n'), "user", "text")
    assert list(source) == [] and source.bad_rows.total == 3


@pytest.mark.parametrize(
    ("module", "content", "line"),
    [
        (jsonl, '{"user": "a", "text": "b"}\n{"user": 1.5, "text": "b"}\n', 2),
        (csv_rows, 'user,text\na,"b\nc"\n,d\n', 4),
    ],
)
def test_strict_table_refuses_first_bad_row_with_file_and_line(write, module, content, line):
    path = write(content)
    with pytest.raises(ValueError, match=f"^{path}:{line}: column 'user' is") as caught:
        read(module, path, strict=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [jsonl, csv_rows])
def test_missing_or_unusable_table_is_refused_in_one_line(write, tmp_path, module):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file$"):
        read(module, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="the file is empty$"):
        read(module, write(""))
    with pytest.raises(ValueError, match="not a regular file$"):
        read(module, tmp_path)
    with pytest.raises(ValueError, match="are the same, 'text'$"):
        module.load(write("user,text\n"), "text", "text")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("name,text\n", "no column 'user'; the header has 'name', 'text'"),
        ("user,text,user\n", "more than one column 'user'"),
        ("\n\n", "no column 'user'; the header has "),
        ('user,"text\n', "data:1: not CSV: unexpected end of data"),
    ],
)
def test_csv_header_without_one_of_each_column_is_refused(write, header, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        csv_rows.load(write(header), "user", "text")
    assert "\n" not in str(caught.value)


def test_store_of_csv_without_usable_rows_names_its_bad_rows(write, tmp_path):
    path = write("user,text\na,\n", "data.csv")
    with pytest.raises(
        ValueError,
        match=r"data\.csv, client ids in 'user', .*no client with text \(1 bad row, the first: .*data\.csv:2",
    ):
        TokenStore.build(tmp_path / "store", csv_rows.load(path, "user", "text"), learn([], SMALLEST))


@pytest.mark.parametrize("module", [jsonl, csv_rows])
def test_table_reads_line_of_maximum_length_and_records_longer_one(write, monkeypatch, module):
    huge = "x" * 1_000_000
    rows = ["a", huge], ["b", "after"]
    if module is jsonl:
        content = "".join(json.dumps({"user": user, "text": text}) + "\n" for user, text in rows)
        wanted_line = 1
    else:
        content = "user,text\n" + "".join(f"{user},{text}\n" for user, text in rows)
        wanted_line = 2
    path = write(content)
    assert read(module, path)[0] == [("a", [huge]), ("b", ["after"])]
    monkeypatch.setattr(base, "LONGEST_LINE", 999)
    found, bad = read(module, path)
    assert found == [("b", ["after"])]
    assert bad == [(wanted_line, "line is longer than 999 bytes")]


@pytest.mark.parametrize("size", [997, 998, 999, 1000, 1001])
def test_maximum_line_length_excludes_line_end(write, monkeypatch, size):
    monkeypatch.setattr(base, "LONGEST_LINE", 999)
    path = write(b"y" * size + b"\n" + b"z" * size)
    found = [len(line) for _, line in base.text_lines(path, base.BadRows(strict=False))]
    assert found == ([size, size] if size <= 999 else [])


def test_bad_rows_keep_first_thousand_and_count_all(write):
    source = jsonl.load(write("broken\n" * 2500 + '{"user": "a", "text": "b"}\n'), "user", "text")
    assert len(list(source)) == 1
    assert (len(source.bad_rows), source.bad_rows.total) == (1000, 2500)
    assert source.bad_rows[-1].line == 1000


def test_store_joins_scattered_rows_of_one_client(write, tmp_path):
    rows = [(f"u{number % 7}", f"text {number}") for number in range(100)]
    random.Random(0).shuffle(rows)
    path = write("".join(json.dumps({"user": user, "text": text}) + "\n" for user, text in rows))
    words = learn([], SMALLEST)
    store = TokenStore.build(tmp_path / "store", jsonl.load(path, "user", "text"), words)
    for client, name in enumerate(store.clients):
        assert words.decode(store.tokens(client).tolist()) == "".join(text for user, text in rows if user == name)


@pytest.mark.parametrize("module", [jsonl, csv_rows])
def test_table_fingerprint_changes_with_content_and_columns(write, module):
    path = write('user,text,other\n"a","b","c"\n')
    first = module.load(path, "user", "text").fingerprint()
    assert module.load(path, "user", "text").fingerprint() == first
    assert module.load(path, "user", "other").fingerprint() != first
    path.write_text('user,text,other\n"a","d","c"\n')
    assert module.load(path, "user", "text").fingerprint() != first
