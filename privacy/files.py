"""Writes files that only the operator can read (mode 0600), and files for publication.

A run's files tell who took part, how large the cohorts were, and losses on the clients' text that were computed
without noise. Use `write_private` and `append_private` by default. The mode of their files depends neither on the umask
nor on who made the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat
import tempfile

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_private(path: str | pathlib.Path, content: bytes) -> None:
    """Replaces the file at `path` by `content`, with mode 0600. After a crash it holds the old content or the new.

    Raises:
      OSError: the file could not be written; one line names the file, the reason and a fix.
    """
    _write(pathlib.Path(path), content, 0o600)


def write_public(path: str | pathlib.Path, content: bytes) -> None:
    """Replaces the file at `path` by `content`, which is for publication: the file's mode follows the umask.

    After a crash the file holds the old content or the new.

    Raises:
      OSError: as for `write_private`.
    """
    _write(pathlib.Path(path), content, 0o666)


def append_private(path: str | pathlib.Path, content: bytes) -> None:
    """Appends `content` to the file at `path`, closes the file to others, and returns once `content` is on the disk.

    Raises:
      OSError: as for `write_private`; the file may then end with a part of `content`.
    """
    try:
        with open(path, "ab", opener=private_opener) as file:
            close_to_others(file.fileno(), path)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise not_written(path, error) from None


def private_opener(path: str, flags: int) -> int:
    """Opens `path` so that a new file has mode 0600. Use it as the `opener` of the built-in `open`."""
    return os.open(path, flags, 0o600)


def make_private_folder(path: str | pathlib.Path) -> None:
    """Makes a folder with mode 0700, and its parents. The mode of an existing folder is not changed.

    A folder that others can read is safe, because the files in it have modes of their own.
    """
    folder = pathlib.Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def close_to_others(file: int | str | pathlib.Path, name: str | pathlib.Path) -> None:
    """Removes all permissions of group and others from a file.

    Args:
      file: path or descriptor of an open file.
      name: name of the file in the error message.

    Raises:
      PermissionError: the file is open to others and belongs to another user.
    """
    mode = stat.S_IMODE(os.stat(file).st_mode)
    if not mode & _OTHERS:
        return
    try:
        os.chmod(file, mode & ~_OTHERS)
    except OSError as error:
        raise PermissionError(
            error.errno, f"{name} is open to other users (mode {mode:04o}) and is not yours: chmod go= it, or copy it"
        ) from None


def close_all_to_others(path: str | pathlib.Path) -> None:
    """Calls `close_to_others` for `path` and, if it is a folder, for everything below it.

    Symbolic links and a path that does not exist are skipped.
    """
    top = pathlib.Path(path)
    if top.is_symlink() or not top.exists():
        return
    for one in (top, *top.rglob("*")):
        if not one.is_symlink():
            close_to_others(one, one)


def require_writable(folder: str | pathlib.Path) -> None:
    """Raises OSError, as `write_private` does, unless a file can be made in `folder`.

    Call it before long work whose result would be lost.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise not_written(folder, error) from None


def require_writable_file(path: str | pathlib.Path) -> None:
    """Raises OSError, as `write_private` does, unless a file can be written at `path`.

    Call it before long work whose result would be lost.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise OSError(errno.EISDIR, f"{path} is a folder: give the name of a file")
    try:
        require_writable(path.parent)
    except OSError as error:
        raise not_written(path, OSError(error.errno, os.strerror(error.errno or 0))) from None


def not_written(path: str | pathlib.Path, error: OSError) -> OSError:
    """Returns an OSError for a failed write, in one line that names the file, the reason and a fix."""
    return OSError(
        error.errno, f"{path} could not be written ({error.strerror}): {fix_of(error)}, then run again or resume"
    )


def fix_of(error: OSError) -> str:
    """Returns a phrase that says what to do about a file that could not be written."""
    if error.errno in FULL:
        return "make room on its disk"
    if error.errno in DENIED:
        return "give yourself the right to write there"
    if error.errno == errno.ENOENT:
        return "make its folder"
    return "make room on its disk or give yourself the right to write there"


def _write(path: pathlib.Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    try:
        # A killed process may have left a draft that is open to others: never write into it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise not_written(path, error) from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        os.close(folder)
