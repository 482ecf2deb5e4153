"""Tables with a user column and a text column: what JSON Lines and CSV have in common."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
        return fingerprint(options, [self.path])

    def usable(self, line: int, user: str, text: str) -> bool:
        """Whether a row has a user and a text; if not, it is recorded."""
        if not (is_unicode(user) and is_unicode(text)):
            reason = "not UTF-8 (or a lone surrogate)"
        elif not user:
            reason = f"column {self.user_column!r} is empty"
        elif not text.strip():
            reason = f"column {self.text_column!r} is empty"
        else:
            return True
        self.bad_rows.add(self.path, line, reason)
        return False


def check(path: Path, user_column: str, text_column: str) -> None:
    """Checks what can be checked before reading.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, it is empty, or the two columns are one.
    """
    require_file(path)
    if user_column == text_column:
        raise ValueError(f"{path}: the user column and the text column are the same, {user_column!r}")
