"""Holds what JSON Lines, CSV and Parquet have in common: tables with a user column and a text column."""

from __future__ import annotations

import json
import numbers
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

import numpy as np

from fl.near_ids import is_blank
from fl.sources import file_format
from fl.sources.base import BadRows, fingerprint, is_unicode, require_file

FLOATS: dict[int, type[np.floating]] = {16: np.float16, 32: np.float32, 64: np.float64}
"""Types of NumPy floats by their number of bits; `id_text` infers a float's precision from its type."""

_LONGEST_SHOWN = 40


@dataclass(frozen=True)
class Table:
    """Reads a table that has a client id and a text in every row; the text is one sentence.

    The rows of a client may stand anywhere in the table, because the token store gathers them on disk. Rows are read
    one or a few at a time, so that a table may be larger than memory. A line of a text file has at most 64 MiB; blank
    lines are skipped.

    Attributes:
      path: the file, or for Parquet also a folder; text files are in UTF-8.
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
        """Returns the file's name and the columns in one line."""
        return f"{self.path.name}, client ids in {self.user_column!r}, text in {self.text_column!r}"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Returns the rows of the last iteration that could not be used."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the file's name and content, and of the columns."""
        options = json.dumps([type(self).__name__, self.user_column, self.text_column])
        return fingerprint(options, self.files)

    @property
    def files(self) -> list[Path]:
        """Returns the files of the table, in the order in which they are read."""
        return [self.path]

    def usable(self, file: Path, line: int, user: str, text: str) -> bool:
        """Returns whether a row has a client id and a text; records it as a bad row if not.

        Args:
          file: the file of the row.
          line: number of the row or its first line, from 1.
          user: client id.
          text: text of the row.
        """
        if not (is_unicode(user) and is_unicode(text)):
            reason = "not UTF-8 (or a lone surrogate)"
        elif not user:
            reason = f"column {self.user_column!r} is empty"
        elif is_blank(user):
            reason = f"column {self.user_column!r} is blank (white space or invisible characters)"
        elif not text.strip():
            reason = f"column {self.text_column!r} is empty"
        else:
            return True
        self.bad_rows.add(file, line, reason)
        return False


def id_text(value: object) -> str | None:
    """Returns a client id as text, or None if it is neither a string nor a number with an integer value.

    7, 7.0 and "7" are the same id, because programs such as pandas write a column of integers as floats if some are
    missing. A float of 2^53 or more in magnitude is refused, and so is a NumPy float32 of 2^24 or more and a float16 of
    2^11 or more: different integers would become the same float, and their clients one client.
    """
    if _has_integer_value(value):
        bits = np.finfo(type(value)).nmant + 1
        return str(int(value)) if abs(value) < 2**bits else None
    if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
        return None
    return str(value)


def why_no_id(value: object) -> str:
    """Says in one phrase, with the fix, why `value` is no client id, for a value for which `id_text` returns None."""
    if value is None:
        return "is null"
    shown = json.dumps(value.item() if isinstance(value, np.generic) else value, default=repr)
    shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
    if _has_integer_value(value):
        return f"is {shown}, a float so large that different integers become the same: write ids as integers or strings"
    return f"is {shown}, neither a string nor an integer: write ids as strings"


def _has_integer_value(value: object) -> TypeGuard[float]:
    return isinstance(value, float | np.floating) and bool(np.isfinite(value)) and value == int(value)


def check_columns(path: Path, user_column: str, text_column: str) -> None:
    """Raises ValueError if the user column and the text column are the same."""
    if user_column == text_column:
        raise ValueError(f"{path}: the user column and the text column are the same, {user_column!r}")


def check_text(path: Path, user_column: str, text_column: str) -> None:
    """Checks a table in a text file as far as its names and its first 64 KiB allow.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the path is not a regular file, the file is empty or not lines of UTF-8 text, or the two columns are
        the same.
    """
    require_file(path)
    if reason := file_format.why_no_text(file_format.head(path)):
        raise ValueError(f"{path}: {reason}")
    check_columns(path, user_column, text_column)
