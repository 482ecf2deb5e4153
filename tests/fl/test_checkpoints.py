import errno
import os
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest

from fl import checkpoints
from fl.checkpoints import Checkpoint
from privacy import files


def state(value: float = 1.0) -> OrderedDict:
    return OrderedDict(
        weights=OrderedDict(b=np.full((2, 3), value, np.float32), a=np.arange(3, dtype=np.float32)),
        optimizer=OrderedDict(learning_rate=np.float32(0.5), accumulator=OrderedDict(a=np.zeros(3, np.float32))),
        aggregator=OrderedDict(),
    )


def same(one, other) -> bool:
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return np.asarray(one).dtype == other.dtype and np.array_equal(one, other)


def test_load_latest_returns_saved_checkpoint(tmp_path):
    checkpoints.save(tmp_path, Checkpoint(7, state(), {"metrics": {"loss": 0.1}}), keep=2)
    checkpoint = checkpoints.load_latest(tmp_path, state(0.0))
    assert checkpoint is not None and checkpoint.round == 7 and checkpoint.document == {"metrics": {"loss": 0.1}}
    assert same(state(), checkpoint.state)


def test_save_keeps_only_newest_checkpoints(tmp_path):
    for number in range(1, 12):
        checkpoints.save(tmp_path, Checkpoint(number, state(number), {}), keep=3)
    assert [path.name for path in checkpoints.list_files(tmp_path)] == [f"round-{n:06d}.ckpt" for n in (9, 10, 11)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_list_files_sorts_beyond_six_digits_and_ignores_other_files(tmp_path):
    (tmp_path / "round-copy.ckpt").touch()
    for number in range(999_998, 1_000_003):
        checkpoints.save(tmp_path, Checkpoint(number, state(number), {}), keep=3)
    checkpoint = checkpoints.load_latest(tmp_path, state())
    assert checkpoint is not None and checkpoint.round == 1_000_002
    assert len(checkpoints.list_files(tmp_path)) == 3 and (tmp_path / "round-copy.ckpt").exists()


def test_load_latest_returns_none_without_checkpoint(tmp_path):
    assert checkpoints.load_latest(tmp_path / "nothing", state()) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_load_latest_refuses_damaged_file(tmp_path, damage):
    path = checkpoints.save(tmp_path, Checkpoint(1, state(), {}), keep=3)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-1]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"checkpoint {path} is truncated or damaged: delete it"):
        checkpoints.load_latest(tmp_path, state())


def test_load_latest_refuses_checkpoint_of_other_model(tmp_path):
    checkpoints.save(tmp_path, Checkpoint(1, state(), {}), keep=3)
    other = state()
    other["weights"]["b"] = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"weights/b is float32 \(2, 3\), expected float32 \(2, 4\)"):
        checkpoints.load_latest(tmp_path, other)


def test_write_private_keeps_old_file_on_full_disk(tmp_path):
    path = tmp_path / "file"
    files.write_private(path, b"old")
    with mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(OSError, match="No space left"):
            files.write_private(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
