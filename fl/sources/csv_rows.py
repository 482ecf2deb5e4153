"""CSV with a user and a text in every row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fl.sources import table
from fl.sources.base import LONGEST_LINE, BadRows, byte_lines
from fl.sources.table import Table

MANY_LINE_BREAKS = 20
"""A row with more line breaks than this is suspicious: two stray quotes make all rows between them one text."""


class Csv(Table):
    """Source of a CSV file: comma-separated, quoted with ", its first row names the columns.

    A suspicious row (`MANY_LINE_BREAKS`) is read and noted; a strict source refuses it.
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
        """Rows with the number of their first line; blank lines are passed over."""
        read = 0

        def lines() -> Iterator[str]:
            nonlocal read
            for number, line in byte_lines(self.path, bad_rows):
                read = number
                yield line.decode(errors="surrogateescape")

        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader(lines(), strict=True)
        while True:
            first = read + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                until = (
                    "" if read <= first else f"; lines {first} to {read} are lost with it, look for a quote not closed"
                )
                bad_rows.add(self.path, first, f"not CSV: {error}{until}")
                bad_rows.total += max(read - first, 0)
                continue
            if row:
                yield first, row


def load(path: Path, user_column: str, text_column: str, *, strict: bool = False) -> Csv:
    """Clients of a CSV file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, it is empty or no UTF-8 text, the two columns are one, or the header does
        not have each of them once.
    """
    table.check_text(path, user_column, text_column)
    source = Csv(path, user_column, text_column, strict)
    _, header = next(source.rows(BadRows(strict=True)), (0, []))
    for column in (user_column, text_column):
        if header.count(column) != 1:
            found = "no column" if column not in header else "more than one column"
            raise ValueError(f"{path}: {found} {column!r}; the header has {', '.join(map(repr, header))}")
    return source
