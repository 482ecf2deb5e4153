"""Appends hash-chained lines to a file that has one writer at a time, and syncs each line to the disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from privacy import files
from privacy.ledger import hash_chain as chain

_HEADER_START = b'{"format": '  # the first key of a header, so that even a torn one can be recognised


class ChainedFile:
    """Holds the file of a ledger: `open` it to append, or `read` it; then iterate over `lines` once.

    Attributes:
      path: path of the file.
      digests: the empty string, to which the first line is chained, followed by the chained SHA-256 digest of each
        line.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = pathlib.Path(path)
        self.digests = [""]
        self._content = b""
        self._size = 0
        self._descriptor: int | None = None
        self._process = os.getpid()
        self._turn = threading.Lock()

    @staticmethod
    def open(path: str | pathlib.Path) -> ChainedFile:
        """Opens `path` for writing, or begins it, and holds a lock on it until `close`.

        If a process was killed while it wrote the last line, that unfinished line is dropped. Its round or release was
        never published.

        Raises:
          ValueError: the file is not a ledger.
          BlockingIOError: another process is writing the file.
          OSError: the file cannot be opened or written.
        """
        file = ChainedFile(path)
        file._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"ledger {path} is being written by another process: wait until that ends"
                ) from None
            with os.fdopen(os.dup(file._descriptor), "rb") as handle:
                content = handle.read()
            files.close_to_others(file._descriptor, f"ledger {path}")
            file._keep_complete_lines(content)
            if not file._size and not _HEADER_START.startswith(content[: len(_HEADER_START)]):
                raise ValueError(f"ledger {path} line 1 is damaged or not a ledger: choose another file")
            if len(content) > file._size:
                os.ftruncate(file._descriptor, file._size)
                os.fsync(file._descriptor)
            elif len(content) < file._size:
                os.pwrite(file._descriptor, b"\n", len(content))
                os.fsync(file._descriptor)
        except BaseException:
            file.close()
            raise
        return file

    @staticmethod
    def read(path: str | pathlib.Path) -> ChainedFile:
        """Reads `path` without changing it.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file holds no complete line.
        """
        file = ChainedFile(path)
        try:
            file._keep_complete_lines(file.path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"ledger {path} is missing: give the folder of a run") from None
        if not file._size:
            raise ValueError(f"ledger {path} is empty: no round was recorded")
        return file

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (number from 1, content) of each line that was in the file when it was opened or read.

        Raises:
          ValueError: a line is damaged; the message names it.
        """
        content, self._content = self._content, b""
        for number, raw in enumerate(content[:-1].split(b"\n") if content else (), 1):
            line, digest = chain.parse(raw, self.digests[-1], number, self.path)
            self.digests.append(digest)
            yield number, line

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the file for one thread, from a check of its content to the `append` that relies on the check.

        Raises:
          ValueError: the file is closed, or was opened by another process, such as the parent of a forked child. The
            child shares its parent's lock, but does not know the lines that the parent has written since the fork.
        """
        if self._descriptor is None:
            raise ValueError(f"ledger {self.path} is closed: record inside its `with` block")
        if os.getpid() != self._process:
            raise ValueError(
                f"ledger {self.path} was opened by another process: record in that one, before it hands out work"
            )
        with self._turn:
            yield

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line, inside `writing`, and returns once it is on the disk.

        Raises:
          OSError: the disk did not take the line; the file is as before.
          ValueError: JSON cannot hold the line.
        """
        assert self._descriptor is not None
        digest = chain.digest(self.digests[-1], line)
        data = chain.encode(line, digest)
        is_new = not self._size
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._size + written)
            os.fsync(self._descriptor)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                pass  # the next opening of the ledger drops the unfinished line
            reason = f"ledger {self.path} could not be written ({error.strerror}): make room on its disk and resume"
            raise OSError(error.errno, reason) from error
        self._size += len(data)
        self.digests.append(digest)
        if is_new:
            _fsync_folder(self.path.parent)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"ledger {self.path} cannot be copied or sent to another process: record where it was opened")

    def close(self) -> None:
        """Closes the file and releases the lock on it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _keep_complete_lines(self, content: bytes) -> None:
        """Keeps `content` without an unfinished last line.

        A last line that lacks only its line end is kept, because its round may have been released.
        """
        if _is_complete(content[content.rfind(b"\n") + 1 :]):
            content += b"\n"
        self._size = content.rfind(b"\n") + 1
        self._content = content[: self._size]


def _is_complete(line: bytes) -> bool:
    """Returns whether `line` is a complete JSON object; a line that was cut short never is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _fsync_folder(folder: pathlib.Path) -> None:
    """Syncs a folder to the disk. Otherwise a new file in it may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
