"""The files of a run: their modes, the operator's marks, and the errors where a file cannot be written."""

import errno
import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from experiments import results, training
from experiments.board import Board
from experiments.config import Config
from experiments.runs import RunFolder
from fl import checkpoints
from fl.rounds import RoundLog
from models import tflite_file
from models.vocabulary import Vocabulary
from privacy.ledger import Ledger
from tests.disks import read_only

PUBLISHED = ("report-release.", "model", "samples.txt", "vocabulary.json")


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


def open_to_others(run: Path) -> list[str]:
    """Returns the names of the operator's files that other accounts can open."""
    return sorted(
        path.name
        for path in run.rglob("*")
        if path.stat().st_mode & 0o077 and not (path.name.startswith(PUBLISHED) and path.name != "model.json")
    )


def test_files_not_for_publication_are_closed_to_other_accounts(whole):
    run = whole[0]
    assert {"config.toml", "metrics.jsonl", "report.html", "evaluation.md"} <= {path.name for path in run.iterdir()}
    assert not open_to_others(run)


def test_write_reports_notes_fixed_key_and_closes_files_of_earlier_versions(run):
    for path in run.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (run / "mine.txt").touch(0o644)
    notes: list[str] = []
    results.write_reports(RunFolder(run), notes.append)
    assert open_to_others(run) == ["mine.txt"]
    assert (run / "report-release.html").stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert len(notes) == 1 and "BUT ε DOES NOT HOLD: run.fixed_key is set" in notes[0]


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_values_computed_without_noise_are_marked_for_operator_only(whole):
    _, out, err = whole
    assert "tokens per client*: median" in err and "left out*: 1 bad row:" in err
    assert "* computed from clients' text without noise: operator only, outside ε" in err
    lines = out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if "clients*" in line] == [
        "unigram of the training clients*",
        "Kneser-Ney bigram of the training clients*",
    ]
    assert "With *: fitted to the training clients' text without noise, operator only, outside ε." in lines
    # The mark is explained before the first value that has it.
    assert err.index("operator only, outside ε; val loss") < err.index("train loss*")


def test_n_grams_are_marked_in_operator_report_and_absent_from_release_report(whole):
    note = "N-gram models are fitted to the training clients' text without noise: their rows are for the operator only."
    for form in ("html", "md"):
        assert note in (whole[0] / f"report.{form}").read_text().replace("&#39;", "'")
        released = (whole[0] / f"report-release.{form}").read_text().partition("What the model is worth")[2]
        assert "public model" in released and "gram" not in re.split("</section>|##", released)[0]


def test_every_epsilon_of_run_with_fixed_key_is_marked_as_not_holding(whole, run, capsys):
    _, _, err = whole
    shown = [line for line in err.splitlines() if "ε " in line or "epsilon" in line]
    guarantee, progress, summary = shown[0], [line for line in shown if line.startswith("rounds ")], shown[-1]
    assert guarantee.startswith("privacy: epsilon ") and "BUT ε DOES NOT HOLD: run.fixed_key is set" in guarantee
    assert len(progress) == 5 and all("ε that does not hold (fixed key) " in line for line in progress)
    assert summary.startswith("privacy: the reports state an epsilon, BUT ε DOES NOT HOLD: run.fixed_key is set")
    for name in ("report.md", "report-release.md"):
        table = [line for line in (run / name).read_text().splitlines() if line.startswith("| ε")]
        assert len(table) >= 3 and all("(with a secret key)" in line for line in table)


def test_ledger_records_number_of_clients_trained_at_once(whole):
    inputs = {entry.facts["inputs"] for entry in Ledger.read(whole[0] / "ledger.jsonl").rounds}
    assert [text.split()[1:] for text in inputs] == [["clients_at_once=2"]]


@pytest.mark.parametrize("begun", [True, False])
def test_resume_that_computes_no_round_records_no_kernels(run, refuse, monkeypatch, begun):
    """Such as one beside a running training, which ends where it would take the ledger's lock."""

    def stop(*_):
        raise BlockingIOError("another process trains this run")

    path, before = run / "facts.json", json.loads((run / "facts.json").read_text())
    (run / "weights.npz").unlink()
    if not begun:
        path.unlink()
        del before["kernels"], before["command"]
    monkeypatch.setattr(training, "describe_kernels", lambda: "other kernels")
    monkeypatch.setattr(training, "_train_rounds", stop)
    assert "another process trains this run" in refuse("train", "--resume", str(run))
    after = json.loads(path.read_text())
    assert ("kernels" in after) == begun and {**after, **before} == after


@pytest.mark.parametrize("command", ["report", "evaluate"])
def test_commands_refuse_metrics_with_lost_rows(run, refuse, command):
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    message = refuse(command, str(run))
    assert f"metrics {path} ends with round 2 and the checkpoint is of round 5: rows are lost" in message
    assert "if there is none, fedspeak train --resume with --set-aside-metrics lets the run go on" in message


def test_set_aside_metrics_keeps_old_file_and_report_omits_zeroed_updates(run, refuse, monkeypatch, capsys):
    from experiments.cli import main

    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[400:])
    assert "--set-aside-metrics needs --resume" in refuse("train", "demo", "--set-aside-metrics")
    monkeypatch.setattr(results, "evaluate", lambda _: "")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(run), "--set-aside-metrics"])
    assert stop.value.code == 0
    err = " ".join(capsys.readouterr().err.split())
    assert (
        "metrics.jsonl now holds only the newest round, and later rounds are appended to it; the previous file is kept "
        "in the same folder"
    ) in err
    assert "metrics.jsonl lacks rows of the 5 rounds" in err
    assert (run / "metrics-until-round-000005.jsonl").exists() and not open_to_others(run)


def test_write_reports_notes_cut_metrics_without_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    path = run / "metrics.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    notes: list[str] = []
    results.write_reports(RunFolder(run), notes.append)
    assert notes[0] == f"{path} lacks rows of the 5 rounds: the report does not say how many updates were zeroed"
    assert json.loads((run / "report.json").read_text())["operator"]["non_finite_updates"] is None


@pytest.mark.parametrize("command", ["report", "evaluate", "train --resume", "export", "demo --output"])
def test_run_folder_that_cannot_be_written_is_refused(run, refuse, command):
    with read_only(run):
        message = refuse(*command.split(), str(run))
    written = run / "model.tflite" if command == "export" else run
    assert message.startswith(f"fedspeak: error: {written} could not be written (")
    assert "give yourself the right to write there" in message


def test_resume_of_run_folder_that_cannot_be_written_is_refused(run, refuse):
    (run / "weights.npz").unlink()
    with read_only(run):
        assert f"{run} could not be written (" in refuse("train", "--resume", str(run))


def test_checkpoint_that_cannot_be_written_is_named(run):
    newest = checkpoints.list_files(RoundLog(run).checkpoints)[-1]
    with read_only(newest.parent), pytest.raises(OSError, match="give yourself the right") as caught:
        checkpoints.replace_document(newest.parent, {})
    assert str(newest) in str(caught.value)


def test_board_on_full_disk_raises_one_line(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="board could not be written .*: free disk space or give yourself") as caught:
        with Board(tmp_path / "board") as board:
            board.write(1, {"loss": 1.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                for step in range(2, 40):
                    board.write(step, {"loss": 1.0})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o077]


def test_board_in_folder_that_cannot_be_written_raises_one_line(tmp_path):
    (tmp_path / "board").mkdir()
    with read_only(tmp_path / "board"), pytest.raises(OSError, match="board could not be written") as caught:
        Board(tmp_path / "board")
    assert "\n" not in str(caught.value)


def test_full_disk_error_names_vocabulary_or_model_file(whole, tmp_path, monkeypatch):
    words = Vocabulary.load(whole[0] / "vocabulary.json")
    facts = tflite_file.Facts("float32", {}, 1, 1, [], 4, "")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for name, write in (
        ("words", words.save),
        ("model", lambda path: tflite_file.write(path, b"flat", words, facts)),
    ):
        with pytest.raises(OSError) as caught:
            write(tmp_path / name)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_create_on_full_disk_leaves_no_folder(tmp_path, monkeypatch, writes):
    """Writing a file calls fsync twice: for the file and for its folder."""
    calls, real = [], os.fsync

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match="No space left"):
        RunFolder(tmp_path / "run").create(Config())
    assert not (tmp_path / "run").exists()
