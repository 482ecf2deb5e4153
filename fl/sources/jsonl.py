"""JSON Lines with a user and a text in every line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fl.sources import file_format, table
from fl.sources.base import text_lines
from fl.sources.table import Table, id_text


class JsonLines(Table):
    """Source of a JSON Lines file: one object a line; a client id may be an integer, also written as 7.0."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        for number, line in text_lines(self.path, self.bad_rows):
            if not line.strip():
                continue
            try:
                user, text = self._fields(line)
            except ValueError as error:
                self.bad_rows.add(self.path, number, str(error))
                continue
            if self.usable(self.path, number, user, text):
                yield user, [text]

    def _fields(self, line: str) -> tuple[str, str]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
        except (ValueError, RecursionError):
            raise ValueError("not JSON that can be read (nested too deep, or a number too long)") from None
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        for column in (self.user_column, self.text_column):
            if column not in row:
                raise ValueError(f"no column {column!r}")
        user, text = id_text(row[self.user_column]), row[self.text_column]
        if user is None:
            raise ValueError(f"column {self.user_column!r} is not a string")
        if not isinstance(text, str):
            raise ValueError(f"column {self.text_column!r} is not a string")
        return user, text


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> JsonLines:
    """Clients of a JSON Lines file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, it is empty, no UTF-8 text, or JSON over several lines, or the two columns
        are one.
    """
    table.check_text(path, user_column, text_column)
    first = file_format.head(path).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].rstrip()
    if first.startswith(b"[") or first == b"{":
        raise ValueError(
            f"{path}: one JSON document over several lines, not JSON Lines: write one object a line, for instance with "
            "jq -c '.[]'"
        )
    return JsonLines(path, user_column, text_column, strict)
