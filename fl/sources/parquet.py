"""Reads clients' text from Parquet: one file, or a folder of files that together form one table.

Every row has a client id and a text. The module reads what Hugging Face `datasets` exports and what pandas writes:
string columns of every Arrow string type, including dictionary-encoded ones, and integer ids, even if pandas has
converted them to floats because some are missing.
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
from fl.sources.base import describe_empty, fingerprint, list_folder, require_file
from fl.sources.table import Table, id_text, why_no_id

_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Parquet(Table):
    """Reads Parquet files as a source, at most `_BATCH_ROWS` rows of one row group at a time.

    Only the two columns are read. Memory holds the rows of one batch and the pages that contain them, whatever the size
    of the row group. In a bad row, `line` is the number of the row in its file, from 1.

    Attributes:
      part_files: the files of the table, sorted by name.
      passed_over: note on the other entries of the folder; "" if there are none.
    """

    part_files: tuple[Path, ...] = ()
    passed_over: str = ""

    @property
    def files(self) -> list[Path]:
        """Returns the files of the table, in the order in which they are read."""
        return list(self.part_files)

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the files' names and contents, the columns and the note in `passed_over`."""
        options = json.dumps(["Parquet", self.user_column, self.text_column, self.passed_over])
        return fingerprint(options, self.files)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        if self.passed_over:
            self.bad_rows.notes.append(self.passed_over)
        for path in self.files:
            for number, (client_id, text) in enumerate(self._rows(path), 1):
                user = id_text(client_id)
                if user is None:
                    self.bad_rows.add(path, number, f"column {self.user_column!r} {why_no_id(client_id)}")
                elif not isinstance(text, str):  # a column of texts holds strings and nulls only
                    self.bad_rows.add(path, number, f"column {self.text_column!r} is null")
                elif self.usable(path, number, user, text):
                    yield user, [text]

    def _rows(self, path: Path) -> Iterator[tuple[Any, Any]]:
        with _open(path) as file:
            for row_group in range(file.num_row_groups):
                for batch in file.iter_batches(_BATCH_ROWS, [row_group], [self.user_column, self.text_column]):
                    yield from zip(
                        _values(batch.column(self.user_column)), _values(batch.column(self.text_column)), strict=True
                    )


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> Parquet:
    """Returns the source that reads a Parquet file, or all files `*.parquet` in a folder.

    The schema of every file is read and checked first.

    Args:
      path: the file or the folder.
      user_column: name of the column of client ids: strings or integers.
      text_column: name of the column of texts: strings.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: there is no such file, or no `*.parquet` in the folder.
      ModuleNotFoundError: the extra `parquet` is not installed.
      ValueError: a file is empty, damaged or not Parquet; the two columns are the same; a file lacks one of them, has
        it twice or with another type; or the files differ in a column's type.
    """
    if importlib.util.find_spec("pyarrow") is None:
        message = "pyarrow, of the extra 'parquet', is not installed: pip install 'fedspeak[parquet]'"
        raise ModuleNotFoundError(message, name="pyarrow")
    table.check_columns(path, user_column, text_column)
    files, passed_over = [path], ""
    if path.is_dir():
        files, passed_over = list_folder(path, ".parquet")
        if not files:
            raise FileNotFoundError(f"{path}: no file *.parquet in this folder{describe_empty(path, '.parquet')}")
    first_kinds: dict[str, tuple[str, Path]] = {}
    for file in files:
        for column, kind in _column_kinds(file, user_column, text_column).items():
            first, first_file = first_kinds.setdefault(column, (kind, file))
            if kind != first:
                raise ValueError(
                    f"{file}: column {column!r} holds {kind} here and {first} in {first_file.name}: write both files "
                    "with one schema"
                )
    return Parquet(path, user_column, text_column, strict, tuple(files), passed_over)


def _column_kinds(path: Path, user_column: str, text_column: str) -> dict[str, str]:
    """Returns "strings" or "numbers" for each of the two columns of a file, by name.

    A column that holds only nulls is left out, since it agrees with every other file.
    """
    require_file(path)
    if reason := file_format.why_compressed(file_format.head(path)):
        raise ValueError(f"{path}: {reason}")
    with _open(path) as file:
        schema = file.schema_arrow
    kinds = {}
    for column, allowed in ((user_column, ("strings", "numbers")), (text_column, ("strings",))):
        if schema.names.count(column) != 1:
            problem = "no column" if column not in schema.names else "more than one column"
            raise ValueError(f"{path}: {problem} {column!r}; the file has {', '.join(map(repr, schema.names))}")
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
    """Returns the values of a column; floats become NumPy scalars, whose type tells `id_text` the column's precision.

    Bytes that are not UTF-8 become lone surrogates, by which `Table.usable` recognises a bad row.
    """
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        scalar = table.FLOATS[column.type.bit_width]
        return [None if value is None else scalar(value) for value in column.to_pylist()]
    if _kind(column.type) != "strings":
        return list(column.to_pylist())
    raw = column.cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode(errors="surrogateescape") for value in raw]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Opens a `pyarrow.parquet.ParquetFile` and turns Arrow's errors into a ValueError of one line."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        # pre_buffer, True by default, would read both columns of a whole row group into memory at once. Without it and
        # with a buffer, memory holds the pages of one batch.
        with ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the operating system, such as a missing permission or a broken disk
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not a Parquet file, or a damaged one ({reason}): write or download it again"
        ) from None
