"""What a source of clients' text is, and how it records the rows that it cannot use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

LONGEST_LINE = 1 << 26
"""Longest line, in bytes, that a source reads; a longer one is a bad row."""

_KEPT = 1000


class BadRow(NamedTuple):
    """A row that could not be used. `line` counts from 1; 0 stands for the file as a whole."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


class BadRows(list[BadRow]):
    """The first thousand bad rows, the count of all, and notes.

    A note is one line on something else that the reader must know: files that were passed over, rows that were read
    and look wrong.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.total = 0
        self.suspicious = 0
        self.notes: list[str] = []

    def restart(self) -> None:
        """Forgets all rows and notes: a new iteration begins."""
        self.clear()
        self.total = self.suspicious = 0
        self.notes.clear()

    def add(self, file: Path | str, line: int, reason: str) -> None:
        """Records a bad row.

        Raises:
          ValueError: the source is strict; the message names file and line.
        """
        row = BadRow(str(file), line, reason)
        if self.strict:
            raise ValueError(str(row))
        self.total += 1
        if len(self) < _KEPT:
            self.append(row)

    def suspect(self, file: Path | str, line: int, reason: str) -> None:
        """Counts a row that is read and looks wrong; the source says so in a note.

        Raises:
          ValueError: the source is strict; the message names file and line.
        """
        if self.strict:
            raise ValueError(f"{BadRow(str(file), line, reason)}, or read without strict")
        self.suspicious += 1


class Source(Protocol):
    """Clients' text: pairs of a client id and some sentences of it.

    A client may come in several pieces, not next to one another: its sentences are those of all pieces in
    order. An iteration begins with an empty `bad_rows` and fills it; a row whose client id is blank
    (`fl.near_ids.is_blank`) is a bad row.
    """

    @property
    def description(self) -> str:
        """One line for people: what this is and with which options it was read. Names no absolute path."""

    @property
    def bad_rows(self) -> BadRows:
        """Rows of the last iteration that could not be used."""

    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes whenever the clients or their sentences may have changed."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]: ...


def fingerprint(options: str, files: Iterable[Path]) -> str:
    """SHA-256 (hex) of the options, and of the name and content of every file in order.

    A file that cannot be read counts as such: to say so is for the reading itself.
    """
    total = hashlib.sha256(options.encode())
    for path in files:
        try:
            if is_special(path):
                raise OSError
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError:
            content = b"unreadable"
        name = os.fsencode(path.name)
        total.update(len(name).to_bytes(4, "big") + name + content)
    return total.hexdigest()


def require_file(path: Path) -> None:
    """Checks that `path` is a file with something in it.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no regular file, or it is empty.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")


class Listing(NamedTuple):
    """The files of a folder that a source reads, by name, and a note on its other entries ("" if there is none)."""

    files: list[Path]
    passed_over: str


def list_folder(folder: Path, suffix: str) -> Listing:
    """Lists the files of `folder` whose names end in `suffix`; hidden files and folders within are passed over.

    Hidden files, whose names begin with a dot, are other programs' own: macOS leaves a `._anna.txt` beside `anna.txt`.
    """
    files: list[Path] = []
    kinds: dict[str, list[str]] = {"hidden": [], "folders within": [], f"files not named *{suffix}": []}
    hidden, folders, others = kinds.values()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            hidden.append(path.name)
        elif path.is_dir():
            folders.append(path.name)
        elif path.suffix != suffix:
            others.append(path.name)
        else:
            files.append(path)
    parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    return Listing(files, f"passed over in the folder: {', '.join(parts)}" if parts else "")


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a socket or a device: to read it may take for ever."""
    return path.exists() and not (path.is_file() or path.is_dir())


def byte_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file with their ends, without a byte-order mark; a line too long is a bad row.

    Memory is bounded by `LONGEST_LINE`.
    """
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                bad_rows.add(path, number, f"line is longer than {LONGEST_LINE} bytes")
                continue
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def text_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without their ends; a line too long or not UTF-8 is a bad row."""
    for number, line in byte_lines(path, bad_rows):
        try:
            yield number, line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            bad_rows.add(path, number, f"not UTF-8 at byte {error.start} of the line")


def is_unicode(text: str) -> bool:
    """Whether `text` has a UTF-8 form, that is, holds no lone surrogate (what undecodable bytes become)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
