"""The train command: undisturbed, and killed and resumed. Processes only where a signal or the screen is the point."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments import machine
from experiments.board import Board
from fl.runtime.kernels import describe_kernels
from tests.experiments.processes import call, ended, finish, start, wait_for_rounds


def worker_of(err: str) -> int:
    match = re.search(r"TFF worker: process (\d+)", err)
    assert match, err
    return int(match[1])


def outcome(run: Path) -> tuple:
    with np.load(run / "weights.npz") as arrays:
        weights = {name: arrays[name].tobytes() for name in arrays.files}
    return weights, (run / "ledger.jsonl").read_bytes(), (run / "metrics.jsonl").read_bytes()


def assert_run_wrote_all_documented_files_and_ended_its_worker(run: Path, out: str, err: str) -> None:
    for name in (
        "config.toml", "vocabulary.json", "keys.json", "ledger.jsonl", "metrics.jsonl", "weights.npz", "model.json",
        "evaluation.json", "report.html", "report.md", "report.json", "report-release.html",
    ):  # fmt: skip
        assert (run / name).exists() or name == "keys.json", name
    assert "| after federated training |" in out
    assert "left out*: 1 bad row:" in err and "users.jsonl:8" in err
    assert "operator only, outside ε" in err
    assert ended(worker_of(err))
    assert list((run / "tensorboard").iterdir())


def test_run_writes_all_documented_files_and_ends_its_worker(whole):
    assert_run_wrote_all_documented_files_and_ended_its_worker(*whole)


def test_facts_of_finished_run_name_the_kernels_of_its_rounds(whole):
    """The run was trained in this process, as `tests.experiments.processes.call` does."""
    assert json.loads((whole[0] / "facts.json").read_text())["kernels"] == [describe_kernels()]


@pytest.fixture(scope="module")
def disturbed(folder) -> tuple[Path, list[tuple[int, str, str]]]:
    """A run that was terminated, resumed, killed and resumed again: three processes, as from a user's shell."""
    run = folder / "disturbed"
    process = start("train", str(folder / "config.toml"), "--output", str(run), folder=folder)
    wait_for_rounds(run, process, 1)
    process.send_signal(signal.SIGTERM)
    terminated = finish(process)
    process = start("train", "--resume", str(run), folder=folder)
    wait_for_rounds(run, process, 3)
    process.send_signal(signal.SIGKILL)
    killed = finish(process)
    return run, [terminated, killed, finish(start("train", "--resume", str(run), folder=folder))]


def test_terminated_killed_and_resumed_equals_undisturbed(disturbed, whole):
    run, (terminated, killed, resumed) = disturbed
    code, _, err = terminated
    assert code == 130 and f"resume with: fedspeak train --resume {run}" in err
    assert ended(worker_of(err))
    code, _, err = killed
    assert code == -signal.SIGKILL
    assert ended(worker_of(err))
    code, out, err = resumed
    assert code == 0, err
    assert outcome(run) == outcome(whole[0])
    assert_run_wrote_all_documented_files_and_ended_its_worker(run, out, err)


@pytest.mark.slow
def test_killed_run_with_correlated_noise_equals_undisturbed_and_reports_and_exports(folder, tmp_path):
    settings = ["privacy.mechanism=blt", "privacy.clip_quantile=none", "privacy.clip_count_stddev=none"]
    settings += ["cohort.sampling_probability=none", "cohort.sampler=check-in", "cohort.size=4"]
    settings += ["cohort.min_separation=3", "cohort.max_participations=2", "server.cooldown=0.4"]
    options = [part for each in settings for part in ("--set", each)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train = ["train", str(folder / "config.toml"), *options, "--output"]
    code, _, err = call(*train, str(whole), folder=folder)
    assert code == 0, err
    process = start(*train, str(killed), folder=folder)
    wait_for_rounds(killed, process, 2)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    code, _, err = call("train", "--resume", str(killed), folder=folder)
    assert code == 0, err
    assert outcome(killed) == outcome(whole)
    noise = json.loads((killed / "report.json").read_text())["correlated_noise"]
    assert (noise["min_separation"], noise["max_participations"]) == (3, 2)
    code, _, err = call("export", str(killed), folder=folder)
    assert code == 0 and list(killed.glob("model*.tflite")), err


def test_run_prints_no_warning(disturbed):
    """The first process shows how a run begins, the last how it ends."""
    for _, _, err in disturbed[1]:
        assert not re.search(r"warning|deprecat|traceback|cuda|tensorrt", err, re.IGNORECASE)


def test_killed_worker_gives_one_line_and_run_can_be_resumed(folder, whole, monkeypatch):
    run, others, write = folder / "lost-worker", {worker.pid for worker in machine.workers()}, Board.write

    def write_and_kill(board: Board, *row) -> None:
        """Kills the worker after the first round."""
        write(board, *row)
        (mine,) = [each.pid for each in machine.workers() if each.parent_pid == os.getpid() and each.pid not in others]
        os.kill(mine, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(Board, "write", write_and_kill)
        code, _, err = call("train", str(folder / "config.toml"), "--output", str(run), folder=folder)
    assert code == 2 and "ended with code -9" in err and "Traceback" not in err, err
    code, _, err = call("train", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert outcome(run) == outcome(whole[0])


def test_evaluation_uses_the_test_clients(folder, whole, tmp_path, monkeypatch):
    from experiments import data
    from experiments.runs import RunFolder, load_trained
    from fl.evaluation import Evaluator

    monkeypatch.chdir(tmp_path)
    run = RunFolder(whole[0])
    prepared = data.prepare(run.read_config(), run.vocabulary)
    model, weights, _ = load_trained(run.path)
    evaluation = json.loads(run.evaluation.read_text())
    assert evaluation["clients"] == len(prepared.splits.test) != len(prepared.splits.validation)
    expected = Evaluator(model, [prepared.whole(client) for client in prepared.splits.test])(weights).loss_per_token
    rows = {row["name"]: row["nats"]["estimate"] for row in evaluation["rows"]}
    assert rows["after federated training"] == pytest.approx(expected, rel=1e-6)
    released = json.loads((run.path / "report-release.json").read_text())["evaluation"]["rows"]
    assert [row["name"] for row in released] == ["public model", "after federated training"]


def test_run_without_finite_updates_warns(folder):
    """One step overflows float32, so each update counts as zero; the loss is shown as NaN, not as 0."""
    settings = ["clients.learning_rate=1e38", "run.rounds=1", "pretraining.epochs=0"]
    options = [part for setting in settings for part in ("--set", setting)]
    code, _, err = call("train", str(folder / "config.toml"), "--output", str(folder / "lost"), *options, folder=folder)
    assert code == 0, err
    assert "warning: round 1: no client's update was finite" in err
    assert re.search(r"train loss\* nan .*updates zeroed\* [1-9]", err)


def test_full_disk_gives_one_line_and_run_can_be_resumed(folder, whole, tmp_path):
    """The run begins on a small file system, which its own files fill."""
    small = ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(small, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    run = tmp_path / "run"
    try:
        (tmp_path / "filler").write_bytes(bytes(1_380_000))
        code, _, err = call("train", str(folder / "config.toml"), "--output", str(run), folder=folder)
        assert code == 2 and "could not be written" in err and "make room" in err and "Traceback" not in err, err
        (tmp_path / "filler").unlink()
        code, _, err = call("train", "--resume", str(run), folder=folder)
        assert code == 0, err
        assert outcome(run) == outcome(whole[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_secret_key_appears_in_key_file_only(folder):
    run = folder / "secret"
    settings = ["--set", "run.rounds=1"]
    text = (folder / "config.toml").read_text().replace("fixed_key = 1\n", "")
    (folder / "own-key.toml").write_text(text)
    code, out, err = call("train", str(folder / "own-key.toml"), "--output", str(run), *settings, folder=folder)
    assert code == 0, err
    keys = run / "keys.json"
    assert keys.stat().st_mode & 0o777 == 0o600
    secret = max(re.findall(r"[0-9a-f]{32,}", keys.read_text()), key=len)
    everything = [path for path in run.rglob("*") if path.is_file() and path != keys]
    assert everything
    assert not any(secret.encode() in path.read_bytes() for path in everything) and secret not in out + err
