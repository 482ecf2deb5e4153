"""Tests that lost or changed rows of metrics stop a run, and that the files of a run are private."""

import os
import re
from collections.abc import Callable

import pytest

from fl import checkpoints
from fl.round_metrics import read_metrics
from fl.rounds import RoundLog, checked_metrics, run_rounds, set_aside_metrics
from tests.fl.test_rounds import Kill, evaluate, federation, outcome, run

LOST = "rows are lost, restore the file from a copy; if there is none, fedspeak train --resume with --set-aside-metrics"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder)
    return outcome(folder)


def stop_after(folder, rounds: int) -> None:
    """Runs a number of rounds, as if killed after them."""
    for row in run_rounds(federation(), RoundLog(folder, keep_checkpoints=2), evaluate):
        if row["round"] == rounds:
            return


def cut(content: bytes) -> bytes:
    return b"".join(content.splitlines(keepends=True)[:1])


def take_out(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join([lines[0], *lines[2:]])


def flip_digit(content: bytes) -> bytes:
    """Changes a digit in the loss of the first row."""
    match = re.search(rb'"loss": 0\.\d*(\d)', content)
    assert match
    place = match.start(1)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def flip_newest(content: bytes) -> bytes:
    start = content.rstrip().rfind(b"\n")
    return content[:start] + flip_digit(content[start:])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (cut, f"metrics.jsonl ends with round 1 and the checkpoint is of round 3: {LOST}"),
    "emptied": (lambda _: b"", f"metrics.jsonl ends with round 0 and the checkpoint is of round 3: {LOST}"),
    "row taken out": (take_out, f"metrics.jsonl line 2 holds round 3 instead of round 2: {LOST}"),
    "digit": (flip_digit, "metrics.jsonl was changed in lines 1 to 2: restore the file from a copy"),
    "newest digit": (
        flip_newest,
        "metrics.jsonl line 3 differs from the row in the checkpoint: restore the file from a copy",
    ),
    "space": (lambda content: content.replace(b": ", b":", 1), "metrics.jsonl was changed in lines 1 to 2"),
    "nonsense": (lambda content: b"x" + content, "metrics.jsonl line 1 is damaged: restore the file from a copy"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_run_rounds_refuses_damaged_metrics_and_resumes_once_restored(tmp_path, undisturbed, damage):
    change, message = DAMAGES[damage]
    stop_after(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    path.write_bytes(change(before))
    damaged = path.read_bytes()
    assert damaged != before
    for look in (lambda: run(tmp_path), lambda: checked_metrics(RoundLog(tmp_path))):
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            look()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == damaged
    path.write_bytes(before)
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", ["cut", "digit", "gone"])
def test_set_aside_metrics_lets_run_resume_to_same_weights(tmp_path, undisturbed, damage, caplog):
    stop_after(tmp_path, 3)
    path, log = tmp_path / "metrics.jsonl", RoundLog(tmp_path)
    whole = read_metrics(path)
    if damage == "gone":
        path.unlink()
        damaged = None
    else:
        path.write_bytes(damaged := DAMAGES[damage][0](path.read_bytes()))
    assert set_aside_metrics(log)
    aside = tmp_path / "metrics-until-round-000003.jsonl"
    if damaged is None:
        assert not aside.exists()
    else:
        assert aside.read_bytes() == damaged and aside.stat().st_mode & 0o777 == 0o600
    assert checked_metrics(log) == read_metrics(path) == whole[2:]
    run(tmp_path)
    ledger, _, weights = undisturbed
    assert (outcome(tmp_path)[0], outcome(tmp_path)[2]) == (ledger, weights)
    caplog.clear()
    assert [row["round"] for row in checked_metrics(log)] == [3, 4]
    assert "begins with round 3: older rows were lost and set aside" in caplog.text
    assert not set_aside_metrics(log) and len(read_metrics(path)) == 2  # the file is in order now and stays


def test_set_aside_metrics_killed_midway_leaves_file_refused(tmp_path):
    stop_after(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(cut(path.read_bytes()))

    replace = checkpoints.replace_document

    def replace_and_kill(*arguments):
        replace(*arguments)
        raise Kill

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "replace_document", replace_and_kill)
        with pytest.raises(Kill):
            set_aside_metrics(RoundLog(tmp_path))
    with pytest.raises(ValueError, match="rows are lost"):
        run(tmp_path)
    assert set_aside_metrics(RoundLog(tmp_path))
    run(tmp_path)


def test_run_rounds_rewrites_rows_after_deleted_checkpoint(tmp_path, undisturbed):
    stop_after(tmp_path, 3)
    checkpoints.list_files(tmp_path / "checkpoints")[-1].unlink()
    assert len(checked_metrics(RoundLog(tmp_path))) == 3
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed


def test_run_rounds_syncs_row_before_next_checkpoint(tmp_path, monkeypatch):
    """Otherwise a power cut could leave a checkpoint whose older rows are lost."""
    synced, real = set(), os.fsync

    def fsync(descriptor):
        real(descriptor)
        place = os.readlink(f"/proc/self/fd/{descriptor}")
        if place.endswith("metrics.jsonl"):
            synced.add(len(read_metrics(tmp_path / "metrics.jsonl")))

    monkeypatch.setattr(os, "fsync", fsync)
    for row in run_rounds(federation(), RoundLog(tmp_path), evaluate):
        assert row["round"] in synced


def test_run_files_are_private_in_world_readable_folder(tmp_path):
    before = os.umask(0o022)
    try:
        tmp_path.chmod(0o755)
        stop_after(tmp_path, 2)
        paths = list(tmp_path.rglob("*"))
        assert len(paths) == 5 and not [path for path in paths if path.stat().st_mode & 0o077]
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)  # as an earlier version left them
        run(tmp_path)
        assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077]
        assert tmp_path.stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(before)
