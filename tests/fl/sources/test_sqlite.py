import re
import sqlite3
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.sources import sqlite
from fl.sources.example_proto import bytes_feature


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def example(**features):
    """Writes a serialised tf.train.Example, byte by byte, with lists of bytes, of floats or of integers."""
    entries = b""
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values))
        elif isinstance(values[0], float):
            feature = field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = field(3, field(1, b"".join(map(varint, values))))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def write(path, rows, metadata=None, schema=""):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            schema or "CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)"
        )
        connection.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        if not schema:
            connection.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        known = {(client, split) for split, client, _ in rows} if metadata is None else metadata
        connection.executemany("INSERT INTO client_metadata VALUES (?, ?, 0)", sorted(known, key=repr))
    return path


ROWS = [
    ("train", "anna", example(tokens=[b"first"], score=[3], weight=[0.5])),
    ("train", "ben's", example(title=[b"no"], tokens=["größer".encode(), b"", b"two"])),
    ("test", "anna", example(tokens=[b"held out"])),
    ("train", "anna", example(tokens=[b"second"])),
]


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "clients.sqlite", ROWS)


def gathered(source):
    found: dict[str, list[str]] = {}
    for client, sentences in source:
        found.setdefault(client, []).extend(sentences)
    return found


def test_sqlite_reads_only_chosen_split(path):
    source = sqlite.load(path, "tokens", split="train")
    assert gathered(source) == {"anna": ["first", "second"], "ben's": ["größer", "two"]}
    assert not source.bad_rows
    assert gathered(sqlite.load(path, "tokens", split="test")) == {"anna": ["held out"]}
    assert gathered(sqlite.load(path, "tokens"))["anna"] == ["first", "held out", "second"]


@pytest.mark.parametrize("name", ["x' OR '1'='1", "train'; DROP TABLE examples; --", '"', "?1", "%"])
def test_sqlite_names_are_not_executed_as_sql(tmp_path, name):
    path = write(tmp_path / "c.sqlite", [*ROWS, (name, name, example(tokens=[b"mine"]))])
    assert gathered(sqlite.load(path, "tokens", split=name)) == {name: ["mine"]}
    assert len(gathered(sqlite.load(path, "tokens"))) == 3


def test_sqlite_ignores_client_without_metadata(tmp_path):
    path = write(tmp_path / "c.sqlite", ROWS, metadata={("anna", "train")})
    source = sqlite.load(path, "tokens", split="train")
    assert gathered(source) == {"anna": ["first", "second"]}
    assert source.bad_rows.notes == [
        'ignored 1 rows whose client_id is NULL or not in table client_metadata (1 ids, for example "ben\'s"): '
        "add the ids there to read them"
    ]


def test_sqlite_notes_all_rows_and_ids_that_it_ignores_in_the_chosen_split(tmp_path):
    rows = [*ROWS, ("train", None, ROWS[0][2]), ("test", "ben's", ROWS[0][2]), ("test", "carl", ROWS[0][2])]
    path = write(tmp_path / "c.sqlite", rows, metadata={("anna", "train"), (None, "train"), ("anna", "test")})

    def ignored(split):
        source = sqlite.load(path, "tokens", split=split)
        assert set(gathered(source)) == {"anna"} and source.bad_rows.total == 0
        [note] = source.bad_rows.notes
        return re.findall(r"(\d+) rows .*\((\d+) ids", note)

    assert ignored(None) == [("4", "2")] and ignored("train") == [("2", "1")] and ignored("test") == [("2", "2")]


@pytest.mark.parametrize("type_", ["INTEGER", "", "REAL"])
def test_sqlite_reads_integer_ids_as_other_sources_do(tmp_path, type_):
    schema = f"CREATE TABLE examples (split_name TEXT, client_id {type_}, serialized_example_proto BLOB)"
    path = write(tmp_path / "c.sqlite", [], schema=schema)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE client_metadata")
        connection.execute(f"CREATE TABLE client_metadata (client_id {type_}, split_name TEXT, num_examples INTEGER)")
        for client in (7, 12, 7.5):
            connection.execute("INSERT INTO client_metadata VALUES (?, 'train', 1)", (client,))
            connection.execute("INSERT INTO examples VALUES ('train', ?, ?)", (client, ROWS[0][2]))
    source = sqlite.load(path, "tokens", split="train")
    assert gathered(source) == {"7": ["first"], "12": ["first"]} and not source.bad_rows.notes
    reason = "client_id is 7.5, neither a string nor an integer: write ids as strings"
    assert [(row.line, row.reason) for row in source.bad_rows] == [(3, reason)]


def test_sqlite_records_bad_rows_and_strict_refuses_first(tmp_path):
    bad = [
        (ROWS[0], None),
        (("train", "anna", None), "serialized_example_proto is not a blob"),
        (("train", "anna", 7), "serialized_example_proto is not a blob"),
        (("train", None, ROWS[0][2]), None),  # NULL is in no set, so that this row has no client, as in TFF
        (("train", "", ROWS[0][2]), "client_id is empty"),
        (("train", " \u200b", ROWS[0][2]), "client_id is blank (white space or invisible characters)"),
        (("train", "anna", ROWS[0][2][:-1]), "not a tf.train.Example: it is cut short or damaged"),
        (("train", "anna", b"text"), "not a tf.train.Example: wire type 4"),
        (
            ("train", "anna", example(snippets=[b"a"], score=[1])),
            "no feature 'tokens'; the example has 'score', 'snippets'",
        ),
        (("train", "anna", b""), "no feature 'tokens'; the example has none"),
        (("train", "anna", example(tokens=[3])), "feature 'tokens' holds numbers, not text"),
        (("train", "anna", example(tokens=[b"a", b"\xff"])), "not UTF-8"),
        (("train", "anna", example(tokens=[b"", b" "])), "feature 'tokens' is empty"),
        (ROWS[3], None),
    ]
    path = write(tmp_path / "c.sqlite", [row for row, _ in bad])
    source = sqlite.load(path, "tokens", split="train")
    assert gathered(source) == {"anna": ["first", "second"]}
    seen = [row for row in bad if row[0][1] is not None]
    assert [(row.line, row.reason) for row in source.bad_rows] == [
        (line, reason) for line, (_, reason) in enumerate(seen, 1) if reason
    ]
    with pytest.raises(ValueError, match=r"c\.sqlite:2: serialized_example_proto is not a blob$"):
        list(sqlite.load(path, "tokens", split="train", strict=True))


def test_sqlite_client_id_that_is_not_utf8_is_one_bad_row(tmp_path):
    path = write(tmp_path / "c.sqlite", ROWS[:1])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO client_metadata VALUES (CAST(x'ff' AS TEXT), 'train', 1)")
        connection.execute("INSERT INTO examples VALUES ('train', CAST(x'ff' AS TEXT), ?)", (ROWS[0][2],))
    source = sqlite.load(path, "tokens", split="train")
    assert gathered(source) == {"anna": ["first"]}
    assert [row.reason for row in source.bad_rows] == ["not UTF-8"]


def test_sqlite_file_is_opened_read_only(path):
    before = path.read_bytes()
    with (
        closing(sqlite._connect(path)) as connection,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        connection.execute("DELETE FROM examples")
    list(sqlite.load(path, "tokens"))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_sqlite_path_with_uri_characters_is_opened(tmp_path):
    folder = tmp_path / "a?mode=rwc#b %41"
    folder.mkdir()
    assert gathered(sqlite.load(write(folder / "c.sqlite", ROWS), "tokens", split="test")) == {"anna": ["held out"]}


def test_missing_or_unusable_sqlite_file_is_refused_in_one_line(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file$"):
        sqlite.load(tmp_path / "nowhere", "tokens")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty: the file is empty$"):
        sqlite.load(tmp_path / "empty", "tokens")
    (tmp_path / "text").write_text("not a database, " * 100)
    with pytest.raises(ValueError, match="text: file is not a database; give TFF's client data as an SQLite file"):
        sqlite.load(tmp_path / "text", "tokens")
    with pytest.raises(ValueError, match="no split 'tran'; it has 'test', 'train'$"):
        sqlite.load(path, "tokens", split="tran")
    other = write(tmp_path / "other", [], schema="CREATE TABLE examples (client_id TEXT, text TEXT)")
    with pytest.raises(ValueError, match="table 'examples' lacks split_name, serialized_example_proto$"):
        sqlite.load(other, "tokens")


def test_truncated_sqlite_file_is_refused_in_one_line(tmp_path):
    path = write(tmp_path / "c.sqlite", [("train", f"user {n}", example(tokens=[b"x" * 500])) for n in range(300)])
    source = sqlite.load(path, "tokens", split="train")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"c\.sqlite: .*malformed") as caught:
        list(source)
    assert "\n" not in str(caught.value)


def test_sqlite_fingerprint_changes_with_content_split_and_feature(path):
    prints = {
        sqlite.load(path, "tokens", split="train").fingerprint(),
        sqlite.load(path, "tokens", split="test").fingerprint(),
        sqlite.load(path, "tokens").fingerprint(),
        sqlite.load(path, "title").fingerprint(),
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM examples WHERE split_name = 'test'")
    prints.add(sqlite.load(path, "tokens").fingerprint())
    assert len(prints) == 5


def test_bytes_feature_reads_example_written_by_hand():
    # The bytes mean {1: {1: {1: "t", 2: {1: {1: "hi", 1: "é"}}}}}.
    message = bytes.fromhex("0a 11 0a 0f 0a 01 74 12 0a 0a 08 0a 02 68 69 0a 02 c3 a9".replace(" ", ""))
    assert bytes_feature(message, "t") == [b"hi", "é".encode()]


def test_bytes_feature_takes_last_of_two_features_of_one_name():
    twice = example(t=[b"one"]) + example(t=[b"two"])
    assert bytes_feature(twice, "t") == [b"two"]


def test_bytes_feature_skips_unknown_fields():
    noise = varint(9 << 3) + varint(300) + varint(10 << 3 | 1) + b"8 bytes." + varint(11 << 3 | 5) + b"four"
    assert bytes_feature(noise + example(t=[b"one"]) + noise, "t") == [b"one"]


@given(message=st.binary(max_size=60))
def test_bytes_feature_of_arbitrary_bytes_returns_or_raises_value_error(message):
    try:
        bytes_feature(message, "t")
    except ValueError as error:
        assert "\n" not in str(error)


@given(
    values=st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    cut=st.integers(min_value=1, max_value=40),
)
def test_bytes_feature_returns_values_and_refuses_truncated_example(values, cut):
    message = example(other=[b"before"], t=values, zeta=[1, 2])
    assert bytes_feature(message, "t") == values
    with pytest.raises(ValueError, match=r"cut short|no feature"):
        bytes_feature(message[: -min(cut, len(message) - 1)], "t")
