"""The errors of train, report, evaluate and export: bad settings, and damaged or incomplete run folders."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from models.vocabulary import Vocabulary
from privacy.keys import RunKeys


def test_report_refuses_cut_ledger(whole, tmp_path, refuse):
    run = tmp_path / "cut"
    shutil.copytree(whole[0], run)
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert "holds 2 of the 5 rounds that this run has trained" in refuse("report", str(run))


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
def test_damaged_file_is_named(whole, tmp_path, refuse, command, name, content):
    run = tmp_path / "damaged"
    shutil.copytree(whole[0], run)
    if content is None:
        with np.load(run / name) as arrays:
            np.savez(run / name, **{key: arrays[key].T for key in arrays.files})
    else:
        (run / name).write_text(content)
    assert str(run / name) in refuse(command, str(run))


def test_export_refuses_vocabulary_of_another_run(whole, tmp_path, refuse):
    """The vocabulary has the same size, so that no other check would notice it."""
    run = tmp_path / "other-words"
    shutil.copytree(whole[0], run)
    words = Vocabulary.load(run / "vocabulary.json")
    (run / "vocabulary.json").write_text(Vocabulary((*words.pieces[:-1], b"another")).to_json())
    assert "vocabulary.json is not the vocabulary that the run was trained with" in refuse("export", str(run))


def test_report_refuses_cut_ledger_without_checkpoints(whole, tmp_path, refuse):
    run = tmp_path / "no-checkpoints"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "checkpoints")
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert "holds 2 of the 5 rounds" in refuse("report", str(run))


def test_evaluate_refuses_other_data_than_the_run_began_with(whole, tmp_path, refuse):
    run = tmp_path / "other-data"
    shutil.copytree(whole[0], run)
    facts = json.loads((run / "facts.json").read_text())
    (run / "facts.json").write_text(json.dumps({**facts, "store": "0" * 64}))
    assert "the data differs from what" in refuse("evaluate", str(run))


def test_evaluate_refuses_diverged_model_with_the_fix(whole, tmp_path, refuse):
    run = tmp_path / "diverged"
    shutil.copytree(whole[0], run)
    with np.load(run / "weights.npz") as arrays:
        np.savez(run / "weights.npz", **{name: np.full_like(arrays[name], np.inf) for name in arrays.files})
    message = refuse("evaluate", str(run))
    assert f"{run}: the trained model's loss is not finite on " in message and "start a new run" in message
    assert "Likely cause: clip norm" in message or "Likely cause: the server learning rate is too large" in message


def test_failed_start_keeps_the_users_files(folder, tmp_path, refuse):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "note.txt").write_text("keep")
    config = str(folder / "config.toml")
    assert "must be" in refuse("train", config, "--output", str(mine), "--set", "cohort.sampling_probability=2")
    assert [path.name for path in mine.iterdir()] == ["note.txt"]
    for name in ("vocabulary.json", "weights.npz", "checkpoints"):
        (mine / name).touch()
        assert "holds a run" in refuse("train", config, "--output", str(mine))
        (mine / name).unlink()


def test_resume_refuses_missing_key_file_and_makes_no_new_one(folder, whole, tmp_path, refuse):
    run = tmp_path / "lost-key"
    shutil.copytree(whole[0], run)
    (run / "weights.npz").unlink()
    text = (run / "config.toml").read_text().replace("fixed_key = 1\n", "")
    (run / "config.toml").write_text(text)
    (run / "config.sha256").write_text(hashlib.sha256(text.encode()).hexdigest())
    assert "keys.json is missing: without it the run cannot be resumed" in refuse("train", "--resume", str(run))
    assert not (run / "keys.json").exists()


def test_resume_refuses_changed_config(folder, whole, refuse):
    run = folder / "changed"
    run.mkdir()
    for name in ("config.toml", "config.sha256"):
        (run / name).write_bytes((whole[0] / name).read_bytes())
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("rounds = 5", "rounds = 6"))
    assert refuse("train", "--resume", str(run)).endswith("start a new run with it")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clients.learning_rate=nan", "clients.learning_rate = nan: must be a positive number"),
        ("clients.learning_rate=0", "clients.learning_rate = 0: must be a positive number"),
        ("server.learning_rate=-1", "server.learning_rate = -1: must be a positive number"),
        ("privacy.clip_norm=0", "privacy.clip_norm = 0: must be a positive number"),
        ("privacy.clip_norm=-1", "privacy.clip_norm = -1: must be a positive number"),
        ("privacy.noise_multiplier=-1", "privacy.noise_multiplier = -1: must be"),
        ("privacy.noise_multiplier=1e30", "privacy.noise_multiplier = 1e+30: must be a finite number, at least 0"),
        ("privacy.delta=1", "privacy.delta = 1: must be"),
        ("privacy.epsilon=2", "privacy.epsilon and privacy.noise_multiplier are both set"),
        ("server.weighting=examples", "use \"uniform\""),
        ("cohort.sampling_probability=1.5", "cohort.sampling_probability = 1.5: must be"),
        ("server.epsilon=0.1", "server.epsilon = 0.1 has no effect"),
        ("server.momentum=1", "server.momentum = 1: must be a finite number, at least 0 and below 1"),
        ("cohort.size=3", 'cohort.size = 3 has no effect with "poisson"'),
        ("cohort.sampler=cyclic", "cohort.sampling_probability = 0.4 has no effect"),
        ("data.split=train", 'data.split = "train" has no effect with "jsonl", only with "sqlite"'),
        ("data.held_out=1", "data.held_out = 1: must be"),
        ('data.public=["{folder}/users.jsonl"]', "which is clients' text"),
        ("model.seed=-1", "model.seed = -1: must be an integer, at least"),
        ("model.units=0", "model.units = 0: must be an integer, at least"),
        ("run.fixed_key=-1", "run.fixed_key = -1: must be an integer, at least"),
        ("data.path=none.jsonl", "none.jsonl"),
        ("data.public=[]", "data.public is empty"),
        ("data.public=[\"none.txt\"]", "none.txt, which does not exist: correct the name"),
        ("data.strict=true", "users.jsonl:8"),
        ("vocabulary.size=100", "vocabulary.size = 100: must be an integer, at least 259"),
        ("vocabulary.size=1000000", "vocabulary.size = 1000000: the text yields at most"),
        ("model.preset=huge", 'model.preset = "huge": must be one of "cifg-18.8m", '),
        ("run.rounds=0", "run.rounds = 0: must be an integer, at least 1"),
        ("run.evaluate_every=0", "run.evaluate_every"),
        ("run.keep_checkpoints=0", "run.keep_checkpoints"),
        ("run.shards=0", "run.shards"),
        ("run.shards=1000000", "run.shards = 1000000: must be an integer, at least 1 and at most 4096"),
        ("run.clients_at_once=1000000", "run.clients_at_once = 1000000: must be an integer, at least 1"),
        ("pretraining.epochs=-1", "pretraining.epochs"),
        ("pretraining.batch_size=0", "pretraining.batch_size"),
        ("data.validation=0.9", "data.validation = 0.9 and data.test = "),
        (
            "cohort.sampling_probability=0.001",
            "clients per round on average: raise it (1 bad row, the first: {folder}/users.jsonl:8",
        ),
        ("data.min_tokens=1", "min_tokens"),
        ("data.min_tokens=1000000", "all 40 clients have fewer than data.min_tokens = 1000000 tokens: lower it"),
    ],
)  # fmt: skip
def test_bad_setting_is_refused_in_one_line_and_leaves_no_folder(folder, tmp_path, refuse, setting, message):
    config, run = str(folder / "config.toml"), tmp_path / "run"
    error = refuse("train", config, "--output", str(run), "--set", setting.format(folder=folder))
    assert message.format(folder=folder) in error
    assert not run.exists()  # so the same command works once the setting is corrected


def test_strict_refuses_the_first_bad_row(folder, tmp_path, refuse):
    for command in (["train", "--output", str(tmp_path / "run")], ["data"]):
        assert "users.jsonl:8" in refuse(*command, str(folder / "config.toml"), "--strict")


def test_fixed_size_cohort_larger_than_population_is_refused(folder, tmp_path, refuse):
    settings = [
        "--set",
        "cohort.sampler=fixed-size",
        "--set",
        "cohort.size=1000",
        "--set",
        "cohort.sampling_probability=none",
    ]
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *settings)
    assert "cohort size 1000 is larger than the population" in message


def test_empty_data_file_is_refused(folder, tmp_path, refuse):
    (tmp_path / "empty.jsonl").touch()
    setting = f"data.path={tmp_path}/empty.jsonl"
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), "--set", setting)
    assert "empty.jsonl: the file is empty" in message


def test_wrong_arguments_of_run_commands_are_refused(folder, whole, tmp_path, refuse):
    config = str(folder / "config.toml")
    assert "give either a config" in refuse("train")
    assert "give either a config" in refuse("train", config, "--resume", str(whole[0]))
    assert "drop --set" in refuse("train", "--resume", str(whole[0]), "--set", "run.rounds=7")
    assert "holds no run" in refuse("train", "--resume", str(tmp_path))
    assert "holds a run: resume it" in refuse("train", config, "--output", str(whole[0]))
    assert "does not exist" in refuse("train", "none")
    assert "holds no run" in refuse("report", str(tmp_path))
    assert "holds no run" in refuse("evaluate", str(tmp_path))


def test_output_folder_that_cannot_be_written_is_refused(folder, refuse):
    # /sys refuses a new folder to everybody, root too.
    message = refuse("train", str(folder / "config.toml"), "--output", "/sys/run")
    assert message.startswith("fedspeak: error: /sys/run: ")


def test_report_refuses_ledger_of_other_keys(whole, tmp_path, refuse):
    """The run has a fixed key, no checkpoints, and a key file that is not its own."""
    run = tmp_path / "other-ledger"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "checkpoints")
    RunKeys.create(run / "keys.json")
    assert "holds rounds that were not made with the keys in" in refuse("report", str(run))
