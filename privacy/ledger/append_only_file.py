"""An append-only file of chained lines: one writer at a time, and each line is on the disk before it counts."""

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

_HEADER_START = b'{"format": '  # sorted first: a header torn by a kill still shows what it was to be


class ChainedFile:
    """A ledger's file. `open` to append, `read` to look; then `lines` once, for what is there.

    Attributes:
      path: the file.
      digests: "" for the nothing before the first line, then each line's SHA-256.
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

        A last line that was never finished (a kill in the middle of a write) is dropped: nothing of it was released.

        Raises:
          ValueError: it is no ledger.
          BlockingIOError: another process is writing it.
          OSError: it cannot be opened or written.
        """
        file = ChainedFile(path)
        file._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(file._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"ledger {path} is being written by another process: let it end first") from None
            with os.fdopen(os.dup(file._descriptor), "rb") as handle:
                content = handle.read()
            files.close_to_others(file._descriptor, f"ledger {path}")
            file._keep_whole_lines(content)
            if not file._size and not _HEADER_START.startswith(content[: len(_HEADER_START)]):
                raise ValueError(f"ledger {path} line 1 is damaged or no ledger: choose another file")
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
        """Reads `path` without touching it. Raises FileNotFoundError, or ValueError if it holds no whole line."""
        file = ChainedFile(path)
        try:
            file._keep_whole_lines(file.path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(f"ledger {path} is missing: give the folder of a run") from None
        if not file._size:
            raise ValueError(f"ledger {path} is empty: no round was recorded")
        return file

    def lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number from 1, content) of each line that was there; raises ValueError naming a damaged one."""
        content, self._content = self._content, b""
        for number, raw in enumerate(content[:-1].split(b"\n") if content else (), 1):
            line, digest = chain.parse(raw, self.digests[-1], number, self.path)
            self.digests.append(digest)
            yield number, line

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around a look at what is there and the `append` that follows from it: one thread at a time.

        Raises:
          ValueError: the file is closed, or another process opened it: a fork shares the lock on it, but not what the
            other has written since.
        """
        if self._descriptor is None:
            raise ValueError(f"ledger {self.path} is closed: record inside its `with` block")
        if os.getpid() != self._process:
            raise ValueError(
                f"ledger {self.path} was opened by another process: record there, before work is handed out"
            )
        with self._turn:
            yield

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line, within `writing`, and returns once it is on the disk.

        Raises:
          OSError: the disk would not take it; the file is as before.
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
                pass  # an unfinished line is dropped when the ledger is opened next
            reason = f"ledger {self.path} could not be written ({error.strerror}): make room and resume"
            raise OSError(error.errno, reason) from error
        self._size += len(data)
        self.digests.append(digest)
        if is_new:
            _fsync_folder(self.path.parent)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"ledger {self.path} cannot be copied or sent to another process: record where it was opened")

    def close(self) -> None:
        """Gives up the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _keep_whole_lines(self, content: bytes) -> None:
        """Drops a last line that was never finished. One that lacks nothing but its end may have been released."""
        if _is_whole(content[content.rfind(b"\n") + 1 :]):
            content += b"\n"
        self._size = content.rfind(b"\n") + 1
        self._content = content[: self._size]


def _is_whole(line: bytes) -> bool:
    """Whether `line` is a whole object of JSON: the beginning of one never is."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _fsync_folder(folder: pathlib.Path) -> None:
    """A new file survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
