"""Tables with a user column and a text column: what JSON Lines, CSV and Parquet have in common."""

from __future__ import annotations

import json
import numbers
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fl.near_ids import is_blank
from fl.sources import file_format
from fl.sources.base import BadRows, fingerprint, is_unicode, require_file


@dataclass(frozen=True)
class Table:
    """A file with a user and a text in every row; a row's text is one sentence.

    Rows are read one at a time and a user's rows may stand anywhere: the token store gathers them on disk. So
    a file may be larger than memory, as long as a row fits (a line has at most 64 MiB). Blank lines are
    passed over.

    Attributes:
      path: the file, in UTF-8.
      user_column: name of the column of client ids.
      text_column: name of the column of texts.
      strict: whether the first bad row raises ValueError.
    """

    path: Path
    user_column: str
    text_column: str
    strict: bool = False

    @property
    def description(self) -> str:
        """The file's name and the columns."""
        return f"{self.path.name}, users in {self.user_column!r}, text in {self.text_column!r}"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Rows of the last iteration that could not be used."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file's name and content, and of the columns."""
        options = json.dumps([type(self).__name__, self.user_column, self.text_column])
        return fingerprint(options, self.files)

    @property
    def files(self) -> list[Path]:
        """The files of the table, in the order in which they are read."""
        return [self.path]

    def usable(self, file: Path, line: int, user: str, text: str) -> bool:
        """Whether a row has a user and a text; if not, it is recorded."""
        if not (is_unicode(user) and is_unicode(text)):
            reason = "not UTF-8 (or a lone surrogate)"
        elif not user:
            reason = f"column {self.user_column!r} is empty"
        elif is_blank(user):
            reason = f"column {self.user_column!r} is blank (white space, control or zero-width characters)"
        elif not text.strip():
            reason = f"column {self.text_column!r} is empty"
        else:
            return True
        self.bad_rows.add(file, line, reason)
        return False


def id_text(value: object) -> str | None:
    """Writes a client id as text; None if it is neither a string nor a number with an integer value.

    7, 7.0 and "7" are one id: programs that know missing values write a column of integers as floats. Beyond 2^53,
    where different integers are one float, a float is no id.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return str(int(value))
    if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
        return None
    return str(value)


def check_columns(path: Path, user_column: str, text_column: str) -> None:
    """Raises ValueError if the two columns are one."""
    if user_column == text_column:
        raise ValueError(f"{path}: the user column and the text column are the same, {user_column!r}")


def check_text(path: Path, user_column: str, text_column: str) -> None:
    """Checks what can be checked of a table in a text file before reading.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, it is empty or no UTF-8 text in lines, or the two columns are one.
    """
    require_file(path)
    if reason := file_format.why_no_text(file_format.head(path)):
        raise ValueError(f"{path}: {reason}")
    check_columns(path, user_column, text_column)
