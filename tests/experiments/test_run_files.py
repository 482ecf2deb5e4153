"""The files of a run: their modes, the operator's marks, and the errors where a file cannot be written."""

import dataclasses
import errno
import json
import math
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import data, federated_fairness, results, training
from experiments.board import Board
from experiments.config import Config
from experiments.display import ConsoleDisplay
from experiments.runs import RunFolder
from fl import checkpoints
from fl.fairness.client_sums import STEPS
from fl.rounds import RoundLog
from models import tflite_file
from models.vocabulary import Vocabulary
from privacy import accounting
from privacy.accounting.guarantee import format_epsilon
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from tests.disks import read_only
from tests.experiments.processes import call

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


@pytest.fixture
def people(folder) -> Path:
    """Returns a table of all users with a region."""
    path = folder / "regions.csv"
    path.write_text("client,region\n" + "".join(f"u{i},{'north' if i % 2 else 'south'}\n" for i in range(40)))
    return path


def fairness(run: Path, people: Path, *arguments: str) -> tuple[str, ...]:
    columns = ("--groups", "region", "--attributes", str(people))
    return (*"fairness federated".split(), str(run), *columns, "--alpha", "0.5", *arguments)


def test_federated_fairness_counts_each_client_once(run, folder, people, monkeypatch):
    ledger, prepare = (run / "ledger.jsonl").read_bytes(), data.prepare

    def with_many_test_clients(*arguments):  # the run has three
        prepared = prepare(*arguments)
        return dataclasses.replace(prepared, splits=prepared.splits._replace(test=prepared.splits.train))

    monkeypatch.setattr(data, "prepare", with_many_test_clients)
    code, out, err = call(*fairness(run, people, "--output", str(run / "fair")), folder=folder)
    clients = Ledger.read(run / "ledger.jsonl").plan.population
    assert code == 0, err
    assert f"{clients} clients of 2 groups, sampling: given counts" in out
    assert f"client: {clients} test clients, of whom 0 have no token" in out
    assert "none: exact sums, for the operator only, outside any epsilon" in out
    report = json.loads((run / "fair" / "fairness.json").read_text())
    assert (report["unit"], report["privacy"], report["sensitive_features"]) == ("client", None, ["region"])
    assert sum(report["tests"][0]["groups"]["rows"]) == clients
    for name in ("fairness.md", "fairness.html"):
        assert "The unit is the client" in (run / "fair" / name).read_text()
        assert (run / "fair" / name).stat().st_mode & 0o777 == 0o600
    assert (run / "ledger.jsonl").read_bytes() == ledger


def test_federated_fairness_charges_noise_once_even_if_killed_before_it_is_drawn(
    run, folder, people, refuse, monkeypatch
):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    noisy = fairness(run, people, "--noise-multiplier", "2", "--epsilon", "1e6", "--json")
    path = run / "ledger.jsonl"

    def kill(*_):
        assert any("raises ε from" in line for line in notes), "the cost is not shown before"
        assert len(Ledger.read(path).releases) == 1, "noise is drawn before the ledger is written"
        raise ValueError("killed")

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ConsoleDisplay, "note", lambda _, text: notes.append(text))
        patch.setattr(federated_fairness, "rounded_gaussian", kill)
        patch.setattr(results, "write_reports", lambda *_: [])
        assert refuse(*noisy) == "fedspeak: error: killed"
    before, first = path.read_bytes(), call(*noisy, folder=folder)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    again = call(*noisy, folder=folder)
    assert first[0] == 0 and first[1] == again[1] and path.read_bytes() == before
    assert "the same noise is shown again, and costs nothing more" in again[2] and "BUT ε DOES NOT HOLD" in again[2]
    shown = json.loads(first[1])
    ledger = Ledger.read(path)
    spent = accounting.epsilon(ledger.plan, 5, (2.0,)).value
    stated = shown["privacy"]["ε of the run and its releases together"]
    assert stated == f"{format_epsilon(spent)}; it does not hold, because the key is fixed"
    planned = accounting.epsilon(ledger.plan).value
    warning = f"ε is above the {format_epsilon(planned)} of the run's plan, by the releases after it"
    assert spent > planned and shown["privacy"]["warning"] == warning
    assert "every value in the table of attributes, also one that a single client has" in shown["privacy"]["public"]
    assert shown["privacy"]["neighbouring relation"] == "add-or-remove-one"
    rows = shown["tests"][0]["groups"]["rows"]
    assert rows != [190, 200] and np.abs(np.subtract(rows, [190, 200])).max() < 5 * 2 * 2
    for name in ("report.json", "report-release.json"):
        report = json.loads((run / name).read_text())
        assert report["guarantee"]["epsilon"] == spent > report["epsilon_of_rounds"]
        assert report["releases"] == [{"purpose": "fairness by region", "noise_multiplier": 2.0}]
    # Other sums, such as those of other kernels, get noise of their own, and are charged.
    totals[0, 0] += 1
    assert call(*noisy, folder=folder)[1] != first[1]
    assert [entry.noise_multiplier for entry in Ledger.read(path).releases] == [2.0, 2.0]


def test_noise_of_federated_fairness_has_three_independent_columns_of_their_own_size():
    """All bounds are five standard errors of 2,000 groups."""
    noise = federated_fairness.draw_noise(b"s" * 32, 1.5, 2000) / STEPS**2
    np.testing.assert_allclose(noise.std(0), [1.5, 1.5 / np.sqrt(2), 1.5], rtol=5 / np.sqrt(2 * 2000))
    assert np.abs(np.corrcoef(noise.T)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(2000)
    # The middle stream is not a copy of the outer one, in the order in which that was drawn.
    outer = noise[:, [0, 2]].ravel()[:2000]
    assert abs(np.corrcoef(noise[:, 1], outer)[0, 1]) < 5 / np.sqrt(2000)


def test_release_is_charged_for_the_sensitivity_of_the_relation():
    assert federated_fairness.relative_multiplier(2.0, "add-or-remove-one") == 2.0
    assert federated_fairness.relative_multiplier(2.0, "zero-out") == 2.0
    assert federated_fairness.relative_multiplier(2.0, "replace-one") == pytest.approx(np.sqrt(2))
    with pytest.raises(KeyError):  # a relation for which no one has worked out the sensitivity
        federated_fairness.relative_multiplier(2.0, "another")


def test_a_release_above_the_epsilon_of_the_plan_is_refused_unless_it_is_accepted(
    run, folder, people, refuse, monkeypatch
):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    path = run / "ledger.jsonl"
    plan, before = Ledger.read(path).plan, path.read_bytes()
    planned, after = (accounting.epsilon(plan, 5, releases).value for releases in ((), (2.0,)))
    shown = [format_epsilon(value) for value in (planned, after)]
    refusal = refuse(*fairness(run, people, "--noise-multiplier", "2"))
    accepted = f"{math.ceil(after * 100) / 100:g}"
    assert f"--noise-multiplier 2 raises ε from {shown[0]} to {shown[1]}, above the {shown[0]} of the plan" in refusal
    assert refusal.endswith(f"add more noise, or accept it by --epsilon {accepted}\n".rstrip())
    less = f"{after * 0.999:g}"
    assert f"above --epsilon {less}" in refuse(*fairness(run, people, "--noise-multiplier", "2", "--epsilon", less))
    assert path.read_bytes() == before
    code, out, err = call(*fairness(run, people, "--noise-multiplier", "2", "--epsilon", accepted), folder=folder)
    assert code == 0, err
    # The exact numbers of clients are not published beside noisy sums.
    assert "test clients, of whom" not in out and "exact sums" not in out
    # What is charged already costs nothing more, and needs no acceptance.
    again = call(*fairness(run, people, "--noise-multiplier", "2"), folder=folder)
    assert again[:2] == (0, out)


def test_noise_is_computed_from_the_epsilon_that_is_to_hold(run, folder, people, refuse, monkeypatch):
    totals = np.array([[30, 60, 40], [20, 50, 80]]) * STEPS**2
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: totals)
    monkeypatch.setattr(results, "write_reports", lambda *_: [])
    path = run / "ledger.jsonl"
    plan = Ledger.read(path).plan
    target = accounting.epsilon(plan, 5, (1.5,)).value
    code, _, err = call(*fairness(run, people, "--epsilon", f"{target!r}"), folder=folder)
    assert code == 0, err
    (release,) = Ledger.read(path).releases
    assert 1.5 * 0.9999 <= release.noise_multiplier <= 1.5 * 1.003
    assert accounting.epsilon(plan, 5, (release.noise_multiplier,)).value <= target
    assert f"takes --noise-multiplier {release.noise_multiplier!r}; repeat it with that" in err
    assert "leaves no room for a release" in refuse(*fairness(run, people, "--epsilon", f"{0.99 * target!r}"))
    assert "--epsilon must be" in refuse(*fairness(run, people, "--epsilon", "nan"))


def test_keys_of_another_run_draw_no_noise(run, people, refuse, monkeypatch):
    monkeypatch.setattr(federated_fairness, "_compute_totals", lambda *_: np.ones((2, 3), np.int64))
    before = (run / "ledger.jsonl").read_bytes()
    monkeypatch.setattr(federated_fairness.assembly, "load_keys", lambda *_, **__: RunKeys(b"x" * 32, is_fixed=False))
    assert "the keys are not those of the rounds in" in refuse(
        *fairness(run, people, "--noise-multiplier", "2", "--epsilon", "1e6")
    )
    assert (run / "ledger.jsonl").read_bytes() == before


def test_federated_fairness_refuses_what_it_cannot_test(run, people, refuse, tmp_path):
    assert "--attributes is missing" in refuse("fairness", "federated", str(run), "--groups", "role", "--alpha", "0.5")
    assert "--alpha must lie in [0, 1), got 1.0" in refuse(*fairness(run, people, "--alpha", "1"))
    assert "--noise-multiplier must be a finite number above 0" in refuse(
        *fairness(run, people, "--noise-multiplier", "0")
    )
    assert "--noise-multiplier 5000 hides all clients" in refuse(*fairness(run, people, "--noise-multiplier", "5000"))
    (tmp_path / "some.csv").write_text("client,region\nu0,south\nu1,north\n")
    assert "some.csv lacks the client 'u" in refuse(*fairness(run, tmp_path / "some.csv"))
    (tmp_path / "twice.csv").write_text("client,region\nu0,south\nu0,north\n")
    assert "twice.csv names a client twice" in refuse(*fairness(run, tmp_path / "twice.csv"))
    assert not Ledger.read(run / "ledger.jsonl").releases
