"""Reads clients' text from a JSON Lines file that has a client id and a text in every line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fl.sources import file_format, table
from fl.sources.base import BARE_RETURNS, text_lines
from fl.sources.table import Table, id_text, why_no_id


class JsonLines(Table):
    """Reads a JSON Lines file, which has one object per line, as a source.

    A client id is a string or an integer; 7, 7.0 and "7" are the same id (`fl.sources.table.id_text`). A line in which
    one of the two columns stands twice is a bad row.
    """

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        for number, line in text_lines(self.path, self.bad_rows):
            if not line.strip():
                continue
            try:
                user, text = self._fields(line)
            except json.JSONDecodeError as error:
                self.bad_rows.add(self.path, number, f"not JSON: {_describe(error)}", rows=line.count("\r") + 1)
                continue
            except ValueError as error:
                self.bad_rows.add(self.path, number, str(error))
                continue
            if self.usable(self.path, number, user, text):
                yield user, [text]

    def _fields(self, line: str) -> tuple[str, str]:
        try:
            row = json.loads(line, object_pairs_hook=_Row)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError):
            raise ValueError("JSON that cannot be read: it is nested too deeply or a number is too long") from None
        if not isinstance(row, _Row):
            raise ValueError("not a JSON object")
        for column in (self.user_column, self.text_column):
            if column not in row:
                raise ValueError(f"no column {column!r}")
            if column in row.repeated:
                raise ValueError(f"column {column!r} stands more than once in the object: keep one of them")
        user, text = id_text(row[self.user_column]), row[self.text_column]
        if user is None:
            raise ValueError(f"column {self.user_column!r} {why_no_id(row[self.user_column])}")
        if not isinstance(text, str):
            raise ValueError(f"column {self.text_column!r} is not a string")
        return user, text


class _Row(dict[str, Any]):
    """Holds a JSON object and the set of its keys that were written more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs] if len(self) < len(pairs) else []
        self.repeated = {key for key in keys if keys.count(key) > 1}


def _describe(error: json.JSONDecodeError) -> str:
    """Says where a line stops being JSON, with the fix if the cause is a usual one."""
    place = f"{error.msg} at character {error.pos + 1}"
    if "\r" in error.doc:
        return f"{place}: the line holds {BARE_RETURNS}"
    if error.msg != "Extra data":
        return place
    if error.doc[error.pos :].strip() == ",":
        return f"{place}: remove the comma at the end of the line, for instance with sed 's/,[[:space:]]*$//'"
    return f"{place}: write one object per line, for instance with jq -c ."


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> JsonLines:
    """Returns the source that reads a JSON Lines file.

    Args:
      path: the file, in UTF-8.
      user_column: name of the field that holds the client id.
      text_column: name of the field that holds the text.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the path is not a regular file, the file is empty, not UTF-8 text or one JSON document over several
        lines, or the two columns are the same.
    """
    table.check_text(path, user_column, text_column)
    first = file_format.head(path).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].rstrip()
    if first.startswith(b"[") or first == b"{":
        raise ValueError(
            f"{path}: one JSON document over several lines, not JSON Lines: write one object per line, for instance "
            "with jq -c '.[]'"
        )
    return JsonLines(path, user_column, text_column, strict)
