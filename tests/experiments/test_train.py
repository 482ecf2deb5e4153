"""The train command as a user runs it: to its end, killed and resumed, and with bad input."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main

CONFIG = """
[data]
source = "jsonl"
path = "{folder}/users.jsonl"
public = ["{folder}/public.txt"]
min_tokens = 10
validation = 0.2
test = 0.2

[vocabulary]
size = 300

[model]
embedding = 8
units = 12

[warm_start]
epochs = 1

[clients]
learning_rate = 0.5
batch_size = 4
sequence_length = 8
max_sequences = 8

[cohort]
rate = 0.4

[privacy]
noise_multiplier = 1.0
clip = 0.5
clip_quantile = 0.5
count_stddev = 5.0

[run]
rounds = 5
evaluate_every = 2
fixed_key = 1
users_at_once = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    words = "the king shall speak and all men hear him well when night is dark".split()
    generator = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(generator.choice(words, 8))

    rows = [json.dumps({"user": f"u{i}", "text": sentence()}) for i in range(40) for _ in range(6)]
    rows.insert(7, '{"user": "u1"}')
    (folder / "users.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "public.txt").write_text("\n".join(sentence() for _ in range(100)) + "\n")
    (folder / "config.toml").write_text(CONFIG.format(folder=folder))
    return folder


def start(*arguments: str) -> subprocess.Popen:
    # As a user's shell: what the test run sets for TensorFlow is not there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tempfile.gettempdir(),  # token stores go to runs/data of the working folder
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_rounds(run: Path, process: subprocess.Popen, rounds: int) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= rounds:
            return
        time.sleep(0.01)
    pytest.fail(f"ended too early: {finish(process)}")


def worker_of(err: str) -> int:
    found = re.search(r"TFF worker: process (\d+)", err)
    assert found, err
    return int(found[1])


def ended(pid: int) -> bool:
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def whole(folder) -> tuple[Path, str, str]:
    """A run that nothing disturbed, and what it printed."""
    run = folder / "whole"
    code, out, err = finish(start("train", str(folder / "config.toml"), "--output", str(run)))
    assert code == 0, err
    return run, out, err


def outcome(run: Path) -> tuple:
    with np.load(run / "weights.npz") as arrays:
        weights = {name: arrays[name].tobytes() for name in arrays.files}
    return weights, (run / "ledger.jsonl").read_bytes(), (run / "metrics.jsonl").read_bytes()


def test_a_run_leaves_all_that_was_promised(whole):
    run, out, err = whole
    for name in (
        "config.toml", "vocabulary.json", "keys.json", "ledger.jsonl", "metrics.jsonl", "weights.npz", "model.json",
        "evaluation.json", "report.html", "report.md", "report.json", "report-release.html",
    ):  # fmt: skip
        assert (run / name).exists() or name == "keys.json", name
    assert "| after federated training |" in out
    assert "left out: 1 bad rows" in err and "users.jsonl:8" in err
    assert "operator only, outside ε" in err
    assert ended(worker_of(err))
    assert list((run / "tensorboard").iterdir())


def test_no_warning_reaches_the_screen(whole):
    _, _, err = whole
    assert not re.search(r"warning|deprecat|traceback|cuda|tensorrt", err, re.IGNORECASE)


def test_terminated_killed_and_resumed_equals_undisturbed(folder, whole):
    run = folder / "disturbed"
    process = start("train", str(folder / "config.toml"), "--output", str(run))
    wait_for_rounds(run, process, 1)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 130 and f"go on with: fedspeak train --resume {run}" in err
    assert ended(worker_of(err))

    process = start("train", "--resume", str(run))
    wait_for_rounds(run, process, 3)
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code == -signal.SIGKILL
    assert ended(worker_of(err))

    code, _, err = finish(start("train", "--resume", str(run)))
    assert code == 0, err
    assert outcome(run) == outcome(whole[0])


def test_a_lost_worker_is_one_line_and_the_run_resumes(folder, whole):
    run = folder / "lost-worker"
    process = start("train", str(folder / "config.toml"), "--output", str(run))
    wait_for_rounds(run, process, 1)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "worker_binary"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 2 and "ended with code -9" in err and "Traceback" not in err, err
    code, _, err = finish(start("train", "--resume", str(run)))
    assert code == 0, err
    assert outcome(run) == outcome(whole[0])


def test_a_report_on_a_cut_ledger_is_refused(whole, tmp_path, refuse):
    run = tmp_path / "cut"
    shutil.copytree(whole[0], run)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert "holds 2 of the 5 rounds that this run has made" in refuse("report", str(run))


def test_the_figures_are_of_the_test_clients(folder, whole, tmp_path, monkeypatch):
    from experiments import data
    from experiments.runs import RunFolder, load_trained
    from fl.evaluation import Evaluator

    monkeypatch.chdir(tmp_path)
    run = RunFolder(whole[0])
    prepared = data.prepare(run.read_config(), run.vocabulary)
    model, weights, _ = load_trained(run.path)
    found = json.loads(run.evaluation.read_text())
    assert found["clients"] == len(prepared.splits.test) != len(prepared.splits.validation)
    mine = Evaluator(model, [prepared.whole(client) for client in prepared.splits.test])(weights).loss_per_token
    rows = {row["name"]: row["nats"]["estimate"] for row in found["rows"]}
    assert rows["after federated training"] == pytest.approx(mine, rel=1e-6)
    released = json.loads((run.path / "report-release.json").read_text())["evaluation"]["rows"]
    assert [row["name"] for row in released] == ["public model", "after federated training"]


@pytest.mark.parametrize(
    ("command", "name", "content"),
    [
        ("evaluate", "facts.json", "{}"),
        ("evaluate", "facts.json", '{"store": '),
        ("evaluate", "model.json", '{"architecture": "recu'),
        ("evaluate", "model.json", "[]"),
        ("evaluate", "weights.npz", None),
        ("report", "metrics.jsonl", "{}\n"),
        ("report", "evaluation.json", "{}"),
        ("report", "evaluation.json", '{"clients": 1, "rows": [{}], "versions": {}}'),
        ("report", "evaluation.json", "["),
    ],
)
def test_a_damaged_file_is_named(whole, tmp_path, refuse, command, name, content):
    run = tmp_path / "damaged"
    shutil.copytree(whole[0], run)
    if content is None:
        with np.load(run / name) as arrays:
            np.savez(run / name, **{key: arrays[key].T for key in arrays.files})
    else:
        (run / name).write_text(content)
    assert str(run / name) in refuse(command, str(run))


def test_a_report_without_checkpoints_still_knows_the_rounds(whole, tmp_path, refuse):
    run = tmp_path / "no-checkpoints"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "checkpoints")
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert "holds 2 of the 5 rounds" in refuse("report", str(run))


def test_a_finished_run_is_not_evaluated_on_other_data(whole, tmp_path, refuse):
    run = tmp_path / "other-data"
    shutil.copytree(whole[0], run)
    facts = json.loads((run / "facts.json").read_text())
    (run / "facts.json").write_text(json.dumps({**facts, "store": "0" * 64}))
    assert "the data is not what" in refuse("evaluate", str(run))


def test_a_mistake_deletes_nothing_of_the_users(folder, tmp_path, refuse):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "note.txt").write_text("keep")
    config = str(folder / "config.toml")
    assert "sampling rate" in refuse("train", config, "--output", str(mine), "--set", "cohort.rate=2")
    assert [path.name for path in mine.iterdir()] == ["note.txt"]
    for name in ("vocabulary.json", "weights.npz", "checkpoints"):
        (mine / name).touch()
        assert "holds a run" in refuse("train", config, "--output", str(mine))
        (mine / name).unlink()


def test_a_run_whose_updates_are_all_lost_says_so(folder):
    """Beyond float32 after a step: each update counts as zero, and no loss is a loss of 0."""
    settings = ["clients.learning_rate=1e38", "run.rounds=1", "warm_start.epochs=0"]
    options = [part for setting in settings for part in ("--set", setting)]
    code, _, err = finish(start("train", str(folder / "config.toml"), "--output", str(folder / "lost"), *options))
    assert code == 0, err
    assert "warning: round 1: no client's update was finite" in err
    assert re.search(r"train loss\* nan .*updates zeroed\* [1-9]", err)


def test_a_lost_key_file_is_not_replaced(folder, whole, tmp_path, refuse):
    run = tmp_path / "lost-key"
    shutil.copytree(whole[0], run)
    (run / "weights.npz").unlink()
    text = (run / "config.toml").read_text().replace("fixed_key = 1\n", "")
    (run / "config.toml").write_text(text)
    (run / "config.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())
    assert "keys.json is missing: without it the run cannot be resumed" in refuse("train", "--resume", str(run))
    assert not (run / "keys.json").exists()


def test_resuming_with_a_changed_config_is_refused(folder, whole, capsys):
    run = folder / "changed"
    run.mkdir()
    for name in ("config.toml", "config.sha256"):
        (run / name).write_bytes((whole[0] / name).read_bytes())
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("rounds = 5", "rounds = 6"))
    assert refused("train", "--resume", str(run)).endswith("start a new run with it")


@pytest.fixture
def refuse(capsys, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        message = err.strip().splitlines()[-1]
        assert message.startswith("fedspeak: error: ") and "Traceback" not in err, err
        return message

    return check


def refused(*arguments: str) -> str:
    code, _, err = finish(start(*arguments))
    assert code == 2, err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clients.learning_rate=nan", "clients.learning_rate is nan: a finite number is needed"),
        ("clients.learning_rate=0", "clients.learning_rate is 0.0: a positive number is needed"),
        ("server.learning_rate=-1", "server.learning_rate is -1.0: a positive number is needed"),
        ("privacy.clip=0", "clip norm"),
        ("privacy.clip=-1", "clip norm"),
        ("privacy.noise_multiplier=-1", "noise multiplier"),
        ("privacy.noise_multiplier=1e30", "noise multiplier must lie in [1e-6, 1e8]"),
        ("privacy.delta=1", "delta"),
        ("privacy.epsilon=2", "privacy.epsilon and privacy.noise_multiplier are both set"),
        ("server.weighting=examples", "use \"uniform\""),
        ("cohort.rate=1.5", "sampling rate"),
        ("server.epsilon=0.1", "server.epsilon is 0.1 and has no effect"),
        ("server.momentum=1", "server.momentum is 1.0"),
        ("cohort.size=3", 'cohort.size is 3 and has no effect with "poisson"'),
        ("cohort.sampler=cyclic", "cohort.rate is 0.4 and has no effect"),
        ("data.split=train", "data.split is"),
        ("data.held_out=1", "data.held_out is 1.0"),
        ('data.public=["{folder}/users.jsonl"]', "which is clients' text"),
        ("model.seed=-1", "model.seed is -1"),
        ("model.units=0", "model.units is 0"),
        ("run.fixed_key=-1", "run.fixed_key is -1"),
        ("data.path=none.jsonl", "none.jsonl"),
        ("data.public=[]", "data.public is empty"),
        ("data.public=[\"none.txt\"]", "none.txt does not exist: correct data.public"),
        ("data.strict=true", "users.jsonl:8"),
        ("vocabulary.size=100", "vocabulary"),
        ("model.preset=huge", "preset: 'huge' is not one of tiny"),
        ("run.rounds=0", "rounds"),
        ("run.evaluate_every=0", "run.evaluate_every"),
        ("run.keep_checkpoints=0", "run.keep_checkpoints"),
        ("run.shards=0", "run.shards"),
        ("warm_start.epochs=-1", "warm_start.epochs"),
        ("warm_start.batch_size=0", "warm_start.batch_size"),
        ("data.validation=0.9", "share"),
        ("data.min_tokens=1", "min_tokens"),
        ("data.min_tokens=1000000", "all 40 clients have fewer than 1000000 tokens"),
    ],
)  # fmt: skip
def test_bad_settings_are_answered_in_one_line(folder, tmp_path, refuse, setting, message):
    config, run = str(folder / "config.toml"), tmp_path / "run"
    assert message in refuse("train", config, "--output", str(run), "--set", setting.format(folder=folder))
    assert not run.exists()  # corrected, the same command works


def test_strict_refuses_the_first_bad_row(folder, tmp_path, refuse):
    for command in (["train", "--output", str(tmp_path / "run")], ["data"]):
        assert "users.jsonl:8" in refuse(*command, str(folder / "config.toml"), "--strict")


def test_a_full_disk_is_named_and_leaves_a_resumable_run(folder, whole, tmp_path):
    """The run begins on a small file system, which its files fill."""
    small = ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(small, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    run = tmp_path / "run"
    try:
        (tmp_path / "filler").write_bytes(bytes(1_380_000))
        code, _, err = finish(start("train", str(folder / "config.toml"), "--output", str(run)))
        assert code == 2 and "could not be written" in err and "make room" in err and "Traceback" not in err, err
        (tmp_path / "filler").unlink()
        code, _, err = finish(start("train", "--resume", str(run)))
        assert code == 0, err
        assert outcome(run) == outcome(whole[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_fixed_size_cohort_larger_than_the_population(folder, tmp_path, refuse):
    settings = ["--set", "cohort.sampler=fixed-size", "--set", "cohort.size=1000", "--set", "cohort.rate=none"]
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *settings)
    assert "cohort size 1000 is larger than the population" in message


def test_an_empty_file(folder, tmp_path, refuse):
    (tmp_path / "empty.jsonl").touch()
    setting = f"data.path={tmp_path}/empty.jsonl"
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), "--set", setting)
    assert "empty.jsonl: the file is empty" in message


def test_wrong_uses_of_the_command(folder, whole, tmp_path, refuse):
    config = str(folder / "config.toml")
    assert "give a config" in refuse("train")
    assert "give a config" in refuse("train", config, "--resume", str(whole[0]))
    assert "drop --set" in refuse("train", "--resume", str(whole[0]), "--set", "run.rounds=7")
    assert "holds no run" in refuse("train", "--resume", str(tmp_path))
    assert "holds a run: resume it" in refuse("train", config, "--output", str(whole[0]))
    assert "does not exist" in refuse("train", "none")
    assert "holds no run" in refuse("report", str(tmp_path))
    assert "holds no run" in refuse("evaluate", str(tmp_path))


def test_a_folder_that_cannot_be_written(folder, refuse):
    # /sys refuses a new folder to everybody, root too.
    message = refuse("train", str(folder / "config.toml"), "--output", "/sys/run")
    assert message.startswith("fedspeak: error: /sys/run: ")


def test_the_keys_stay_in_their_file(folder):
    run = folder / "secret"
    settings = ["--set", "run.rounds=1"]
    text = (folder / "config.toml").read_text().replace("fixed_key = 1\n", "")
    (folder / "own-key.toml").write_text(text)
    code, out, err = finish(start("train", str(folder / "own-key.toml"), "--output", str(run), *settings))
    assert code == 0, err
    keys = run / "keys.json"
    assert keys.stat().st_mode & 0o777 == 0o600
    secret = max(re.findall(r"[0-9a-f]{32,}", keys.read_text()), key=len)
    everything = [path for path in run.rglob("*") if path.is_file() and path != keys]
    assert everything
    assert not any(secret.encode() in path.read_bytes() for path in everything) and secret not in out + err
