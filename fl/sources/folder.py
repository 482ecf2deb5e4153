"""Reads clients' text from a folder that has one text file per client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fl.near_ids import is_blank
from fl.sources import file_format
from fl.sources.base import (
    BadRows,
    Listing,
    describe_empty,
    fingerprint,
    is_special,
    is_unicode,
    list_folder,
    text_lines,
)


@dataclass(frozen=True)
class Folder:
    """Reads a folder as a source: `anna.txt` holds the text of client "anna", one sentence per line.

    Blank lines are skipped, and so is white space around a sentence.

    Attributes:
      path: the folder; its files `*.txt` are read. Hidden files, files with another suffix, sub-folders, and further
        links to a file that is read already are passed over, and a note in `bad_rows` names them.
      strict: whether the first bad row raises ValueError.
    """

    path: Path
    strict: bool = False

    @property
    def files(self) -> list[Path]:
        """Returns the clients' files, sorted by name."""
        return self._list_files().files

    def _list_files(self) -> Listing:
        return list_folder(self.path, ".txt")

    @property
    def description(self) -> str:
        """Describes the folder by its name, in one line."""
        return f"folder {self.path.resolve().name}, one text file per client"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Returns the lines of the last iteration that could not be used, and the files without text."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the names and contents of the files, and of the note on what is passed over."""
        files, passed_over = self._list_files()
        return fingerprint(f"folder 2 {passed_over}", files)

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        files, passed_over = self._list_files()
        if passed_over:
            self.bad_rows.notes.append(passed_over)
        for path in files:
            if not is_unicode(path.stem):
                self.bad_rows.add(repr(str(path)), 0, "the name of the file is not UTF-8")
                continue
            if is_blank(path.stem):
                self.bad_rows.add(repr(str(path)), 0, "the name of the file, the client's id, is blank")
                continue
            if is_special(path):
                self.bad_rows.add(path, 0, "not a regular file")
                continue
            before = self.bad_rows.total
            sentences: list[str] = []
            try:
                if reason := file_format.why_no_text(file_format.head(path)):
                    self.bad_rows.add(path, 0, reason)
                    continue
                for _, line in text_lines(path, self.bad_rows):
                    if sentence := line.strip():
                        sentences.append(sentence)
            except OSError as error:
                self.bad_rows.add(path, 0, f"cannot be read: {error.strerror}")
            if sentences:
                yield path.stem, sentences
            elif self.bad_rows.total == before:
                self.bad_rows.add(path, 0, "the file has no text")


def load(path: Path, *, strict: bool = False) -> Folder:
    """Returns the source that reads a folder.

    Args:
      path: the folder.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: there is no such folder, or no file `*.txt` in it.
      NotADirectoryError: `path` is not a folder.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder")
    if not path.is_dir():
        raise NotADirectoryError(f"{path}: not a folder: give a folder with one file <client>.txt per client")
    source = Folder(path, strict)
    if not source.files:
        raise FileNotFoundError(f"{path}: no file <client>.txt in this folder{describe_empty(path, '.txt')}")
    return source
