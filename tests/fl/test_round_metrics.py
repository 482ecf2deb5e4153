"""Tests that lost or changed rows of metrics stop a run, and that the files of a run are private."""

import os
import re
from collections.abc import Callable

import numpy as np
import pytest

from fl import checkpoints, rounds
from fl.round_metrics import read_metrics
from fl.rounds import RoundLog, checked_metrics, run_rounds, set_aside_metrics
from privacy.json_values import plain
from tests.fl.test_rounds import FakeProcess, Kill, evaluate, federation, outcome, run

LOST = "rows are lost, restore the file from a copy; if there is none, fl.rounds.set_aside_metrics lets"


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
    assert "older rows are set aside" in caplog.text and "fl.rounds.set_aside_metrics" not in caplog.text
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


def evaluate_nan(done, weights):
    return {"loss": float("nan")}, {}


def as_python(next_round):
    """The process with measurements as Python numbers, which `fl.rounds` needs where it makes none."""

    def wrapped(*arguments):
        state, measured = next_round(*arguments)
        return state, plain(measured)

    return wrapped


def evaluate_diverged(done, weights):
    return {"loss": float("nan")}, {"held_out_loss": np.float32("inf")}


def diverged(folder) -> list:
    return list(run_rounds(federation(), RoundLog(folder, keep_checkpoints=2), evaluate_diverged))


def test_what_is_not_finite_is_null_in_the_file_the_row_and_the_checkpoint(tmp_path):
    rows = diverged(tmp_path)
    assert all(row["evaluation"] == {"loss": None} and row["operator"]["held_out_loss"] is None for row in rows)
    content = (tmp_path / "metrics.jsonl").read_text()
    assert content.count('"loss": null') == 4 and not re.search("NaN|Infinity", content)
    newest = checkpoints.latest_document(tmp_path / "checkpoints")
    assert newest is not None and newest[1]["metrics"] == rows[-1]
    assert checked_metrics(RoundLog(tmp_path)) == rows


def test_rows_in_which_an_earlier_version_wrote_nan_are_read_and_gone_on_from(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "plain", lambda values: values)
        patch.setattr(FakeProcess, "next", as_python(FakeProcess.next))
        for row in run_rounds(federation(), RoundLog(tmp_path, keep_checkpoints=2), evaluate_nan):
            if row["round"] == 3:
                break
    path = tmp_path / "metrics.jsonl"
    assert path.read_text().count("NaN") == 3
    for rows in (read_metrics(path), checked_metrics(RoundLog(tmp_path))):
        assert [row["evaluation"] for row in rows] == [{"loss": None}] * 3
    assert len(diverged(tmp_path)) == 1
    assert [row["evaluation"] for row in checked_metrics(RoundLog(tmp_path))] == [{"loss": None}] * 4


def test_rows_of_an_earlier_version_that_are_set_aside_are_json_then(tmp_path, monkeypatch):
    stop_after(tmp_path, 3)
    found = checkpoints.latest_document(tmp_path / "checkpoints")
    assert found is not None
    document = {**found[1], "metrics": {**found[1]["metrics"], "evaluation": {"loss": float("nan")}}}
    checkpoints.replace_document(tmp_path / "checkpoints", document)
    assert set_aside_metrics(RoundLog(tmp_path))
    assert [row["evaluation"] for row in checked_metrics(RoundLog(tmp_path))] == [{"loss": None}]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


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
