"""Reads clients' text from a CSV file that has a client id and a text in every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fl.sources import table
from fl.sources.base import BARE_RETURNS, LONGEST_LINE, BadRows, byte_lines
from fl.sources.table import Table

MANY_LINE_BREAKS = 20
"""Maximum number of line breaks in a row that is not suspicious."""

_LOOK_FOR_QUOTE = "look for a stray quote that joins rows"


class Csv(Table):
    """Reads a CSV file as a source: comma-separated, quoted with ", with the names of the columns in the first row.

    Two stray quotes join all rows between them into one, whose text would then belong to one client. A row is therefore
    suspicious if it has more than `MANY_LINE_BREAKS` line breaks, a line break in its client id, or a field in which at
    least two lines, or one line of two, look like rows. A line looks like a row if it has as many fields as the header,
    has a client id, and has no field after the first that begins with white space, as text after a comma does. The
    line's client id must not contain white space unless the row's own client id does. A suspicious row is read, and a
    note says so; a strict source raises ValueError.
    """

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        rows = self.rows(self.bad_rows)
        _, header = next(rows)
        user_index, text_index = header.index(self.user_column), header.index(self.text_column)
        first_suspicious = ""
        for number, row in rows:
            breaks = sum(map(_count_line_breaks, row))
            if len(row) != len(header):
                joined = f" (and the row has {breaks} line breaks: {_LOOK_FOR_QUOTE})" if breaks else ""
                self.bad_rows.add(self.path, number, f"{len(row)} fields, but the header has {len(header)}{joined}")
                continue
            if breaks and (reason := _why_suspicious(row, user_index, breaks)):
                self.bad_rows.suspect(self.path, number, reason)
                first_suspicious = first_suspicious or f"{self.path}:{number}: {reason}"
            if self.usable(self.path, number, row[user_index], row[text_index]):
                yield row[user_index], [row[text_index]]
        if first_suspicious:
            count = self.bad_rows.suspicious
            self.bad_rows.notes.append(f"{count} suspicious rows were read, the first: {first_suspicious}")

    def rows(self, bad_rows: BadRows) -> Iterator[tuple[int, list[str]]]:
        """Yields each row with the number of its first line, and skips blank lines.

        Text that is not CSV is recorded in `bad_rows`, and every line that is lost with it counts as a bad row.
        """
        last_line = returns = 0

        def lines() -> Iterator[str]:
            nonlocal last_line, returns
            for number, line in byte_lines(self.path, bad_rows):
                last_line = number
                returns += line.rstrip(b"\r\n").count(b"\r")
                yield line.decode(errors="surrogateescape")

        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(lines(), strict=True)
        while True:
            first, returns = last_line + 1, 0
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"not CSV: {error}"
                if str(error).startswith("new-line character"):
                    reason = f"not CSV: the line holds {BARE_RETURNS}"
                if last_line > first:
                    reason += f"; lines {first} to {last_line} are lost with it: look for a quote that is not closed"
                bad_rows.add(self.path, first, reason, rows=max(last_line - first, 0) + returns + 1)
                continue
            if row:
                yield first, row


def _count_line_breaks(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _why_suspicious(row: list[str], user_index: int, breaks: int) -> str:
    """Says why a row with line breaks looks like several rows that stray quotes joined; "" if it does not."""
    if breaks > MANY_LINE_BREAKS:
        return f"a row with {breaks} line breaks: {_LOOK_FOR_QUOTE}"
    if _count_line_breaks(row[user_index]):
        return f"a client id with a line break: {_LOOK_FOR_QUOTE}"
    spaced_ids = _has_space(row[user_index])

    def looks_like_row(line: str) -> bool:
        fields = line.split(",")
        return (
            len(fields) == len(row)
            and bool(fields[user_index])
            and not any(field[:1].isspace() for field in fields[1:])
            and (spaced_ids or not _has_space(fields[user_index]))
        )

    for field in row:
        lines = field.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        alike = sum(map(looks_like_row, lines))
        if alike >= 2 or 0 < alike == len(lines) - 1:
            return f"a row with {breaks} line breaks, in which {alike} lines look like rows: {_LOOK_FOR_QUOTE}"
    return ""


def _has_space(text: str) -> bool:
    return any(map(str.isspace, text.strip()))


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> Csv:
    """Returns the source that reads a CSV file; reads and checks its header first.

    Args:
      path: the file, in UTF-8.
      user_column: name of the column of client ids.
      text_column: name of the column of texts.
      strict: whether the first bad or suspicious row raises ValueError.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the path is not a regular file, the file is empty or not UTF-8 text, the two columns are the same,
        or the header does not name each of them exactly once.
    """
    table.check_text(path, user_column, text_column)
    source = Csv(path, user_column, text_column, strict)
    _, header = next(source.rows(BadRows(strict=True)), (0, []))
    for column in (user_column, text_column):
        if header.count(column) != 1:
            problem = "no column" if column not in header else "more than one column"
            raise ValueError(f"{path}: {problem} {column!r}; the header has {', '.join(map(repr, header))}")
    return source
