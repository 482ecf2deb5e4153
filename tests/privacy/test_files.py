"""Tests of writing files: their permissions at every moment, and the errors of writes that fail."""

import errno
import os
import stat

import pytest

from privacy import files
from privacy.keys import RunKeys
from tests.disks import read_only


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_permissions(tmp_path):
    """Sets the usual umask, and lets everybody enter the folder."""
    before = os.umask(0o022)
    tmp_path.chmod(0o755)
    yield
    os.umask(before)


def test_write_private_never_opens_its_file_to_others(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    path.write_text("of an earlier version")
    draft = tmp_path / ".file.tmp"
    draft.write_text("left by a kill")
    assert mode_of(path) == mode_of(draft) == 0o644
    with draft.open() as held:  # a process that holds the old draft open does not see the new content
        real = os.fsync

        def look(descriptor):
            seen.append(os.fstat(descriptor).st_mode & 0o777)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", look)
        files.write_private(path, b"new")
        assert held.read() == "left by a kill"
    assert seen[0] == 0o600 == mode_of(path) and path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_public_follows_the_umask(tmp_path):
    files.write_public(tmp_path / "file", b"new")
    assert mode_of(tmp_path / "file") == 0o644
    os.umask(0o027)
    files.write_public(tmp_path / "file", b"newer")
    assert mode_of(tmp_path / "file") == 0o640


def test_append_private_closes_file_that_was_open_to_others(tmp_path):
    path = tmp_path / "rows"
    files.append_private(path, b"one\n")
    assert mode_of(path) == 0o600
    path.chmod(0o664)
    files.append_private(path, b"two\n")
    assert mode_of(path) == 0o600 and path.read_bytes() == b"one\ntwo\n"


def test_close_all_to_others_closes_folder_and_all_below_but_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.touch()
    below = tmp_path / "folder" / "sub"
    below.mkdir(parents=True)
    (below / "file").touch()
    (below / "link").symlink_to(outside)
    files.close_all_to_others(tmp_path / "folder")
    files.close_all_to_others(tmp_path / "missing")
    assert [mode_of(path) for path in (below.parent, below, below / "file", outside)] == [0o700, 0o700, 0o600, 0o644]


def test_close_all_to_others_names_file_of_another_user(tmp_path, monkeypatch):
    (tmp_path / "rows").touch()

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(PermissionError, match=r"rows is open to other users \(mode 0644\) and is not yours: chmod go="):
        files.close_all_to_others(tmp_path / "rows")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "make room on its disk"),
        (errno.EROFS, "give yourself the right"),
        (errno.EIO, "make room on its disk or"),
    ],
)
@pytest.mark.parametrize("write", [files.write_private, files.append_private, RunKeys.create])
def test_failed_write_names_file_reason_and_fix(tmp_path, monkeypatch, write, number, fix):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    arguments = [] if write == RunKeys.create else [b"new"]
    with pytest.raises(OSError, match=fix) as caught:
        write(tmp_path / "file", *arguments)
    assert f"{tmp_path / 'file'} could not be written ({os.strerror(number)}): " in str(caught.value)
    assert caught.value.errno == number and "\n" not in str(caught.value)


def test_require_writable_file_refuses_folders_and_names_a_file_whose_folder_is_missing(tmp_path):
    files.require_writable_file(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=f"^\\[Errno .*{tmp_path} is a folder: give the name of a file$"):
        files.require_writable_file(tmp_path)
    with pytest.raises(OSError, match="missing/new could not be written .*: make its folder"):
        files.require_writable_file(tmp_path / "missing" / "new")


def test_require_writable_leaves_no_file_and_refuses_unwritable_folder(tmp_path):
    files.require_writable(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="missing could not be written .*: make its folder"):
        files.require_writable(tmp_path / "missing")
    with read_only(tmp_path), pytest.raises(OSError, match=r"could not be written \(.*\): give yourself the right"):
        files.require_writable(tmp_path)
