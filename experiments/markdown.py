"""Writes tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Returns the lines of a table.

    Args:
      header: titles of the columns; "" for a column without one.
      rows: cells of each row, as many as there are titles. Each is written as `str` writes it, so that a "|" must be
        escaped.
    """
    titles = "|".join(f" {title} " if title else " " for title in header)
    return [f"|{titles}|", "|---" * len(header) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]
