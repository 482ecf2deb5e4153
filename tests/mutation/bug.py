"""Defines a planted bug."""

from typing import NamedTuple


class Bug(NamedTuple):
    """Holds one planted bug.

    Attributes:
      name: what is wrong.
      file: the source file.
      old: text that occurs once in the file.
      new: the text with the bug.
      test: the test that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
