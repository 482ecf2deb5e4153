"""Parquet with a user and a text in every row: one file, or a folder of files that together are one table.

Files as a Hugging Face `datasets` export and as pandas write them are read: strings of any width, dictionary-encoded
ones among them, and integer ids, also as the floats that pandas makes of integers beside missing values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.sources import file_format, table
from fl.sources.base import fingerprint, list_folder, require_file
from fl.sources.table import Table, id_text

_BATCH = 4096  # rows
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class Parquet(Table):
    """Source of Parquet files, read a row group at a time and, within it, `_BATCH` rows at a time.

    Only the two columns are read. The line of a bad row is its row in the file, from 1.

    Attributes:
      part_files: the files of the table by name.
      passed_over: note on the other entries of the folder; "" if there is none.
    """

    part_files: tuple[Path, ...] = ()
    passed_over: str = ""

    @property
    def files(self) -> list[Path]:
        """The files of the table, in the order in which they are read."""
        return list(self.part_files)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' names and contents, the columns, and the note on what is passed over."""
        options = json.dumps(["Parquet", self.user_column, self.text_column, self.passed_over])
        return fingerprint(options, self.files)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        if self.passed_over:
            self.bad_rows.notes.append(self.passed_over)
        for path in self.files:
            for number, (client_id, text) in enumerate(self._rows(path), 1):
                user = id_text(client_id)
                if user is None or not isinstance(text, str):
                    column, value = (self.user_column, client_id) if user is None else (self.text_column, text)
                    reason = "is null" if value is None else f"is {value!r}, neither text nor an integer"
                    self.bad_rows.add(path, number, f"column {column!r} {reason}")
                elif self.usable(path, number, user, text):
                    yield user, [text]

    def _rows(self, path: Path) -> Iterator[tuple[Any, Any]]:
        with _opened(path) as file:
            for row_group in range(file.num_row_groups):
                for batch in file.iter_batches(_BATCH, [row_group], [self.user_column, self.text_column]):
                    yield from zip(
                        _values(batch.column(self.user_column)), _values(batch.column(self.text_column)), strict=True
                    )


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> Parquet:
    """Clients of a Parquet file, or of all files `*.parquet` in a folder.

    Args:
      path: the file or the folder.
      user_column: name of the column of client ids: strings or integers.
      text_column: name of the column of texts: strings.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: there is no such file, or no `*.parquet` in the folder.
      ModuleNotFoundError: the extra `parquet` is not installed.
      ValueError: a file is empty, damaged or no Parquet, the two columns are one, a file does not have each of them
        once or has another type in them, or the files differ in a column's type.
    """
    if importlib.util.find_spec("pyarrow") is None:
        message = "pyarrow is not installed, it is of the extra 'parquet': pip install 'fedspeak[parquet]'"
        raise ModuleNotFoundError(message, name="pyarrow")
    table.check_columns(path, user_column, text_column)
    files, passed_over = [path], ""
    if path.is_dir():
        files, passed_over = list_folder(path, ".parquet")
        if not files:
            raise FileNotFoundError(f"{path}: no file *.parquet in this folder{passed_over and f' ({passed_over})'}")
    known: dict[str, tuple[str, Path]] = {}
    for file in files:
        for column, kind in _kinds(file, user_column, text_column).items():
            first, where = known.setdefault(column, (kind, file))
            if kind != first:
                raise ValueError(
                    f"{file}: column {column!r} holds {kind} here and {first} in {where.name}: write both files with "
                    "one schema"
                )
    return Parquet(path, user_column, text_column, strict, tuple(files), passed_over)


def _kinds(path: Path, user_column: str, text_column: str) -> dict[str, str]:
    """What each of the two columns of a file holds; one of nulls alone is left out: it fits any other file."""
    require_file(path)
    if reason := file_format.why_compressed(file_format.head(path)):
        raise ValueError(f"{path}: {reason}")
    with _opened(path) as file:
        schema = file.schema_arrow
    kinds = {}
    for column, allowed in ((user_column, ("strings", "numbers")), (text_column, ("strings",))):
        if schema.names.count(column) != 1:
            found = "no column" if column not in schema.names else "more than one column"
            raise ValueError(f"{path}: {found} {column!r}; the file has {', '.join(map(repr, schema.names))}")
        kind = _kind(schema.field(column).type)
        if kind not in (*allowed, "nulls"):
            raise ValueError(f"{path}: column {column!r} holds {kind}: {' or '.join(allowed)} are needed")
        if kind != "nulls":
            kinds[column] = kind
    return kinds


def _kind(type_: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "strings"
    if types.is_integer(type_) or types.is_floating(type_):
        return "numbers"
    return "nulls" if types.is_null(type_) else str(type_)


def _values(column: Any) -> list[Any]:
    """A column's values; strings that are not UTF-8 come with lone surrogates, as other sources' do."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _kind(column.type) != "strings":
        return list(column.to_pylist())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode(errors="surrogateescape") for value in raw]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`; what goes wrong with it is a ValueError in one line."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        # In pieces and not a column of a row group at once: memory holds the pages of one batch.
        with ParquetFile(path, buffer_size=_PIECE) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: no such right, a broken disk
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: no Parquet file, or damaged ({reason}): write or download it again") from None
