"""Defines what a source of clients' text must provide, and how it records the rows that it cannot use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

LONGEST_LINE = 1 << 26
"""Maximum length of a line in bytes, without its newline; a longer line is a bad row."""

BARE_RETURNS = "bare carriage returns: convert them to newlines, for instance with tr '\\r' '\\n'"
"""Message, with the fix, on carriage returns that end rows in a file whose lines end with newlines."""

_MAX_LISTED_ROWS = 1000


class BadRow(NamedTuple):
    """Describes a row of a source that could not be used.

    Attributes:
      file: path of the file; some sources name the client here instead.
      line: number of the line or row, from 1; 0 stands for the file (or client) as a whole.
      reason: what is wrong, in one line.
    """

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


class BadRows(list[BadRow]):
    """Lists the first thousand bad rows of one iteration over a source, with the counts of all of them and notes.

    Attributes:
      strict: whether the first bad or suspicious row raises ValueError.
      total: number of bad rows, including those beyond the first thousand.
      suspicious: number of rows that were read although they look wrong.
      notes: lines on what else the operator must know: files that were passed over, suspicious rows.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.total = 0
        self.suspicious = 0
        self.notes: list[str] = []

    def restart(self) -> None:
        """Forgets all rows, counts and notes. A source calls this when an iteration begins."""
        self.clear()
        self.total = self.suspicious = 0
        self.notes.clear()

    def add(self, file: Path | str, line: int, reason: str, *, rows: int = 1) -> None:
        """Records a bad row.

        Args:
          file: path of the file.
          line: number of the line or row, from 1; 0 stands for the file as a whole.
          reason: what is wrong, in one line.
          rows: number of rows that are lost with it, itself included.

        Raises:
          ValueError: the source is strict; the message names file and line.
        """
        row = BadRow(str(file), line, reason)
        if self.strict:
            raise ValueError(str(row))
        self.total += rows
        if len(self) < _MAX_LISTED_ROWS:
            self.append(row)

    def suspect(self, file: Path | str, line: int, reason: str) -> None:
        """Counts a row that is read although it looks wrong. The source itself adds the note on such rows.

        Raises:
          ValueError: the source is strict; the message names file and line.
        """
        if self.strict:
            raise ValueError(f"{BadRow(str(file), line, reason)}, or set strict = false")
        self.suspicious += 1


class Source(Protocol):
    """Provides clients' text: iterating over it yields pairs of a client id and some of that client's sentences.

    A client's text may come in several pieces, which need not be adjacent. The client's sentences are those of all
    pieces, in the order in which they are yielded. Each iteration empties `bad_rows` and fills it again. A row whose
    client id is blank (`fl.near_ids.is_blank`) is a bad row.
    """

    @property
    def description(self) -> str:
        """Describes the source and its options in one line for people, without absolute paths."""

    @property
    def bad_rows(self) -> BadRows:
        """Returns the rows of the last iteration that could not be used."""

    def fingerprint(self) -> str:
        """Returns a SHA-256 (hex) that changes whenever the clients or their sentences may have changed."""

    def __iter__(self) -> Iterator[tuple[str, list[str]]]: ...


def fingerprint(options: str, files: Iterable[Path]) -> str:
    """Returns the SHA-256 (hex) of the options, and of the name and content of every file, in order.

    A file that cannot be read raises no error here and counts as if it had one fixed content: reading the source
    reports it.
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
    """Checks that `path` is a regular file and not empty.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a regular file, or it is empty.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")


class Listing(NamedTuple):
    """Divides the entries of a folder into those that a source reads and those that it passes over.

    Attributes:
      files: the files that the source reads, sorted by name.
      passed_over: one line on all other entries; "" if there are none.
    """

    files: list[Path]
    passed_over: str


def list_folder(folder: Path, suffix: str) -> Listing:
    """Lists the files of `folder` whose names end in `suffix`; hidden files, sub-folders and repeats are passed over.

    A file that has several names in the folder (symbolic or hard links) is listed only once, so that one person is not
    several clients. It is listed under its first name that is not a symbolic link, if there is one.

    Hidden files have names that begin with a dot and belong to other programs: macOS, for example, leaves a
    `._anna.txt` beside `anna.txt`. Read as text, such a file would be a client of its own.
    """
    files: list[Path] = []
    hidden: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    links: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Symbolic links come last, so that a file is read under its own name.
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.name.startswith("."):
            hidden.append(path.name)
        elif path.is_dir():
            folders.append(path.name)
        elif path.suffix != suffix:
            others.append(path.name)
        elif (identity := _identify(path)) in seen:
            links.append(path.name)
        else:
            files.append(path)
            seen.update({identity} if identity else ())
    files.sort()
    kinds = [
        ("hidden", hidden),
        (f"folder{_plural(folders)} within", folders),
        (f"file{_plural(others)} not named *{suffix}", others),
        (f"link{_plural(links)} to files that are read under another name", links),
    ]
    parts = [f"{len(names)} {kind} ({_list_examples(names)})" for kind, names in kinds if names]
    return Listing(files, f"passed over in the folder: {', '.join(parts)}" if parts else "")


def describe_empty(folder: Path, suffix: str) -> str:
    """Describes what a folder holds instead of files whose names end in `suffix`, and names the fix if there is one.

    Such files may be one or two levels further down: Hugging Face `datasets` puts them into a folder `data`, and tables
    that are partitioned by a column have a folder for each of its values.

    Returns:
      The end of an error message; "" if the folder is empty.
    """
    passed_over = list_folder(folder, suffix).passed_over
    note = f" ({passed_over})" if passed_over else ""
    found = (path for pattern in (f"*/*{suffix}", f"*/*/*{suffix}") for path in folder.glob(pattern))
    names = {path.relative_to(folder) for path in found if path.is_file()}
    holders = sorted({str(name.parent) for name in names if not any(part.startswith(".") for part in name.parts)})
    if len(holders) > 1:
        return (
            f"{note}: files *{suffix} are in {len(holders)} folders within ({_list_examples(holders)}): write them all "
            "into one folder, and give that folder"
        )
    return f"{note}: files *{suffix} are in {folder / holders[0]}: give that folder" if holders else note


def _plural(names: list[str]) -> str:
    return "" if len(names) == 1 else "s"


def _identify(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of the file that `path` leads to, or None if it leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _list_examples(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def is_special(path: Path) -> bool:
    """Returns whether `path` is a pipe, a socket or a device, from which reading may never end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def byte_lines(path: Path, bad_rows: BadRows) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file, numbered from 1, with their line ends and without a byte-order mark.

    A line longer than `LONGEST_LINE` is recorded in `bad_rows` and not yielded, so that memory stays bounded.
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
    """Yields the lines of a UTF-8 file, numbered from 1, without their line ends.

    A line that is too long or not UTF-8 is recorded in `bad_rows` and not yielded.
    """
    for number, line in byte_lines(path, bad_rows):
        try:
            yield number, line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            bad_rows.add(path, number, f"not UTF-8 at byte {error.start} of the line")


def is_unicode(text: str) -> bool:
    """Returns whether `text` can be encoded in UTF-8.

    It cannot if it holds a lone surrogate, which is what undecodable bytes become under `surrogateescape`.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
