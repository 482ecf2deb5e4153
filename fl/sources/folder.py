"""A folder with one text file a user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fl.sources.base import BadRows, fingerprint, is_special, is_unicode, text_lines


@dataclass(frozen=True)
class Folder:
    """Source of a folder: `anna.txt` is the text of client "anna", each line that is not blank a sentence.

    Attributes:
      path: the folder; its files `*.txt` are read, those of folders within are not.
      strict: whether the first bad row raises ValueError.
    """

    path: Path
    strict: bool = False

    @property
    def files(self) -> list[Path]:
        """The users' files, by name."""
        return sorted(path for path in self.path.glob("*.txt") if not path.is_dir())

    @property
    def description(self) -> str:
        """The folder's name."""
        return f"folder {self.path.resolve().name}, one text file a user"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Lines of the last iteration that could not be used, and files without text."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the names and contents of the files."""
        return fingerprint("folder 1", self.files)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        for path in self.files:
            if not is_unicode(path.stem):
                self.bad_rows.add(repr(str(path)), 0, "the name of the file is not UTF-8")
                continue
            if is_special(path):
                self.bad_rows.add(path, 0, "not a file")
                continue
            before = self.bad_rows.total
            sentences: list[str] = []
            try:
                for _, line in text_lines(path, self.bad_rows):
                    if sentence := line.strip():
                        sentences.append(sentence)
            except OSError as error:
                self.bad_rows.add(path, 0, f"cannot be read: {error.strerror}")
            if sentences:
                yield path.stem, sentences
            elif self.bad_rows.total == before:
                self.bad_rows.add(path, 0, "no text")


def load(path: Path, *, strict: bool = False) -> Folder:
    """Clients of a folder.

    Raises:
      FileNotFoundError: there is no such folder, or no `*.txt` in it.
      NotADirectoryError: `path` is no folder.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: not a folder (wanted one with a file <user>.txt for each user)")
    source = Folder(path, strict)
    if not source.files:
        raise FileNotFoundError(f"{path}: no file <user>.txt in this folder")
    return source
