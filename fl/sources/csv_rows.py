"""Reads clients' text from a CSV file that has a client id and a text in every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fl.sources import table
from fl.sources.base import LONGEST_LINE, BadRows, byte_lines
from fl.sources.table import Table

MANY_LINE_BREAKS = 20
"""Maximum number of line breaks in a row that is not suspicious.

Two stray quotes join all rows between them into one text, which would then belong to one client.
"""


class Csv(Table):
    """A source that reads a CSV file: comma-separated, quoted with ", with the names of the columns in the first row.

    A row with more than `MANY_LINE_BREAKS` line breaks is suspicious: it is read, and a note says so; a strict source
    raises ValueError.
    """

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        rows = self.rows(self.bad_rows)
        _, header = next(rows)
        user_index, text_index = header.index(self.user_column), header.index(self.text_column)
        first_suspicious = ""
        for number, row in rows:
            breaks = sum(field.count("\n") for field in row)
            if breaks > MANY_LINE_BREAKS:
                reason = f"a row with {breaks} line breaks: look for a stray quote that joins rows"
                self.bad_rows.suspect(self.path, number, reason)
                first_suspicious = first_suspicious or f"{self.path}:{number}: {reason}"
            if len(row) != len(header):
                self.bad_rows.add(self.path, number, f"{len(row)} fields, but the header has {len(header)}")
            elif self.usable(self.path, number, row[user_index], row[text_index]):
                yield row[user_index], [row[text_index]]
        if first_suspicious:
            count = self.bad_rows.suspicious
            self.bad_rows.notes.append(f"{count} suspicious rows were read, the first: {first_suspicious}")

    def rows(self, bad_rows: BadRows) -> Iterator[tuple[int, list[str]]]:
        """Yields each row with the number of its first line, and skips blank lines.

        What is not CSV is recorded in `bad_rows`, and every line that is lost with it counts as a bad row.
        """
        last_line = 0

        def lines() -> Iterator[str]:
            nonlocal last_line
            for number, line in byte_lines(self.path, bad_rows):
                last_line = number
                yield line.decode(errors="surrogateescape")

        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(lines(), strict=True)
        while True:
            first = last_line + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                lost = (
                    f"; lines {first} to {last_line} are lost with it: look for a quote that is not closed"
                    if last_line > first
                    else ""
                )
                bad_rows.add(self.path, first, f"not CSV: {error}{lost}")
                bad_rows.total += max(last_line - first, 0)
                continue
            if row:
                yield first, row


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
