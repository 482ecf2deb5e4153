import os

import pytest

from models.atomic_file import replace_file


def test_replace_file_writes_the_whole_content_with_mode_0644(tmp_path):
    with replace_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replace_file_keeps_the_old_file_and_no_other_if_the_block_fails(tmp_path, error):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error), replace_file(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_replace_file_names_the_file_that_it_cannot_write(tmp_path):
    with pytest.raises(OSError, match="none/file") as caught, replace_file(tmp_path / "none" / "file"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "file")
