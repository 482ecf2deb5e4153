"""JSON Lines with a user and a text in every line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fl.sources import table
from fl.sources.base import text_lines
from fl.sources.table import Table


class JsonLines(Table):
    """Source of a JSON Lines file: one object a line; a client id may be an integer."""

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
            if self.usable(number, user, text):
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
        user, text = row[self.user_column], row[self.text_column]
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)
        for column, value in ((self.user_column, user), (self.text_column, text)):
            if not isinstance(value, str):
                raise ValueError(f"column {column!r} is not a string")
        return user, text


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> JsonLines:
    """Clients of a JSON Lines file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, it is empty, or the two columns are one.
    """
    table.check(path, user_column, text_column)
    return JsonLines(path, user_column, text_column, strict)
