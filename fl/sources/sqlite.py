"""Reads TFF's client data in SQLite, as `tff.simulation.datasets` downloads it for Stack Overflow and Shakespeare.

The schema is that of `tff.simulation.datasets.SqlClientData`: a table `examples` (client_id, split_name,
serialized_example_proto) and a table `client_metadata` (client_id, split_name, num_examples). The file is read in one
pass and without TensorFlow. The name of the split reaches SQL as a bound parameter, so it cannot change the query.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from fl.near_ids import is_blank
from fl.sources import file_format
from fl.sources.base import BadRows, fingerprint, require_file
from fl.sources.example_proto import bytes_feature
from fl.sources.table import id_text, why_no_id

_REQUIRED_COLUMNS = {
    "examples": ("client_id", "split_name", "serialized_example_proto"),
    "client_metadata": ("client_id", "split_name"),
}
_LISTED = "client_id IN (SELECT client_id FROM client_metadata WHERE ?1 IS NULL OR split_name = ?1)"
_ROWS = f"""
    SELECT client_id, serialized_example_proto FROM examples WHERE (?1 IS NULL OR split_name = ?1) AND {_LISTED}
"""
# `IS NOT 1` counts ids that are NULL too, for which IN is neither true nor false.
_IGNORED = f"""
    SELECT COUNT(*), COUNT(DISTINCT client_id), MIN(client_id) FROM examples
    WHERE (?1 IS NULL OR split_name = ?1) AND ({_LISTED}) IS NOT 1
"""


@dataclass(frozen=True)
class SqliteClients:
    """Reads an SQLite file of client data as a source; each value of the text feature is one sentence.

    As in TFF, a client id that is in `examples` but not in `client_metadata` is ignored, and a note in `bad_rows`
    counts such rows. In a bad row, `line` is the number of the row among those that are not ignored, from 1. A client
    id is text or an integer, as in tables (`fl.sources.table.id_text`).

    Attributes:
      path: the file; it is opened read-only.
      feature: the text feature of the examples: "tokens" for Stack Overflow, "snippets" for Shakespeare.
      split: "train", "test" or another split of the file; None reads all splits.
      strict: whether the first bad row raises ValueError.
    """

    path: Path
    feature: str
    split: str | None = None
    strict: bool = False

    @property
    def description(self) -> str:
        """Returns the file's name, the split and the feature in one line."""
        split = "all splits" if self.split is None else f"split {self.split!r}"
        return f"{self.path.name}, {split}, text in feature {self.feature!r}"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Returns the rows of the last iteration that could not be used."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the file's name and content, the split and the feature."""
        return fingerprint(json.dumps(["sqlite 1", self.split, self.feature]), [self.path])

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        try:
            with closing(_connect(self.path)) as connection:
                for number, (client, example) in enumerate(connection.execute(_ROWS, (self.split,)), 1):
                    try:
                        row = self._row(client, example)
                    except ValueError as error:
                        self.bad_rows.add(self.path, number, str(error))
                    else:
                        yield row
                rows, clients, example_id = connection.execute(_IGNORED, (self.split,)).fetchone()
        except sqlite3.Error as error:
            raise _unreadable_error(self.path, error) from None
        if rows:
            example = "" if example_id is None else f", for example {_decode(example_id)!r}"
            self.bad_rows.notes.append(
                f"ignored {rows} rows whose client_id is NULL or not in table client_metadata ({clients} ids{example}):"
                " add the ids there to read them"
            )

    def _row(self, client: object, example: object) -> tuple[str, list[str]]:
        if not isinstance(example, bytes):
            raise ValueError("serialized_example_proto is not a blob")
        try:
            name = id_text(client.decode() if isinstance(client, bytes) else client)
            sentences = [value.decode() for value in bytes_feature(example, self.feature)]
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None
        if name is None:
            raise ValueError(f"client_id {why_no_id(client)}")
        if not name:
            raise ValueError("client_id is empty")
        if is_blank(name):
            raise ValueError("client_id is blank (white space or invisible characters)")
        sentences = [sentence for sentence in sentences if sentence.strip()]
        if not sentences:
            raise ValueError(f"feature {self.feature!r} is empty")
        return name, sentences


def load(path: Path, feature: str, *, split: str | None = None, strict: bool = False) -> SqliteClients:
    """Returns the source that reads an SQLite file; the arguments are the attributes of `SqliteClients`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not an SQLite file of this schema, is compressed, or has no such split.
    """
    require_file(path)
    if reason := file_format.why_compressed(file_format.head(path)):
        raise ValueError(f"{path}: {reason}")
    try:
        with closing(_connect(path)) as connection:
            _check(path, split, connection)
    except sqlite3.Error as error:
        raise _unreadable_error(path, error) from None
    return SqliteClients(path, feature, split, strict)


def _decode(client: object) -> object:
    return client.decode(errors="replace") if isinstance(client, bytes) else client


def _unreadable_error(path: Path, error: sqlite3.Error) -> ValueError:
    return ValueError(f"{path}: {error}; give TFF's client data as an SQLite file, or download it again")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    # With text as bytes, an id that is not UTF-8 is one bad row and does not end the reading.
    connection.text_factory = bytes
    return connection


def _check(path: Path, split: str | None, connection: sqlite3.Connection) -> None:
    for table, required in _REQUIRED_COLUMNS.items():
        rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        columns = {row[0].decode() for row in rows}
        missing = [column for column in required if column not in columns]
        if missing:
            raise ValueError(f"{path}: not TFF client data: table {table!r} lacks {', '.join(missing)}")
    splits = [row[0] for row in connection.execute("SELECT DISTINCT split_name FROM client_metadata")]
    names = sorted(split.decode(errors="replace") for split in splits if isinstance(split, bytes))
    if split is not None and split not in names:
        raise ValueError(f"{path}: no split {split!r}; it has {', '.join(map(repr, names)) or 'none'}")
