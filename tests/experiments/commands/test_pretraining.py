"""The pretrain command: undisturbed, interrupted and resumed, killed and resumed, and its errors."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import initial_model, public_run
from experiments.drafting import load_drafter
from experiments.runs import RunFolder, load_trained
from experiments.text_overlap import digest_text
from fl.evaluation import Evaluator
from fl.runtime.kernels import describe_kernels
from models.decoding.drafters import ModelDrafter
from models.vocabulary import Vocabulary
from tests.disks import read_only
from tests.experiments.processes import call, finish, start

SETTINGS = ("pretraining.epochs=3", "pretraining.evaluate_every=2", "pretraining.patience=9")
"""The public text makes 105 sequences, of which 99 are trained on in batches of 32: 3 steps an epoch, 9 in all."""
TRANSFORMER = (
    "model.preset=si-transformer-4m", "model.units=none", "model.blocks=1", "model.heads=2", "model.feed_forward=16",
    "model.context=8",
)  # fmt: skip


NO_MODEL = ("model.embedding=none", "model.units=none", "vocabulary.size=none")


def options(settings: tuple[str, ...]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def pretrain(folder: Path, name: str, *settings: str) -> tuple[int, str, str]:
    arguments = ["pretrain", str(folder / "config.toml"), "--output", str(folder / name)]
    return call(*arguments, *options((*SETTINGS, *settings)), folder=folder)


def weights_of(run: Path) -> dict[str, bytes]:
    with np.load(run / "weights.npz") as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files}


def public_losses(run: Path) -> list[tuple[int, float]]:
    """Returns the losses in a folder's TensorBoard events by step."""
    import tensorflow as tf

    files = sorted((run / "tensorboard").iterdir())
    events = [event for file in files for event in tf.compat.v1.train.summary_iterator(str(file))]
    values = [(event.step, value) for event in events for value in event.summary.value]
    assert {value.tag for _, value in values} == {"public_loss"}
    return [(step, float(tf.make_ndarray(value.tensor))) for step, value in values]


@pytest.fixture(scope="module")
def pretrained(folder) -> tuple[Path, str, str]:
    code, out, err = pretrain(folder, "pretrained")
    assert code == 0, err
    return folder / "pretrained", out, err


def test_pretrain_writes_a_model_that_loads(folder, pretrained):
    run, out, err = pretrained
    assert out == f"wrote {run}: evaluate it on text files with fedspeak evaluate {run} --text FILE\n"
    assert "public: text file public.txt" in err and "public model 9/9  loss on held-out public text" in err
    model, weights, words = load_trained(run)
    assert (model.config()["units"], words) == (12, Vocabulary.load(run / "vocabulary.json"))
    config = RunFolder(run).read_config()
    _, sequences, _ = public_run.data.prepare_public(config, run / "vocabulary.json")
    losses = public_losses(run)
    assert [step for step, _ in losses] == [2, 4, 6, 8, 9]
    found = Evaluator(model, [sequences[::20]])(weights).loss_per_token
    assert found == pytest.approx(min(loss for _, loss in losses), rel=1e-6)
    assert found < Evaluator(model, [sequences[::20]])(model.init(0)).loss_per_token


def test_pretrain_records_command_inputs_and_digests_of_the_text_for_the_operator_only(folder, pretrained):
    run = RunFolder(pretrained[0])
    facts = json.loads(run.facts.read_text())
    assert facts["command"].startswith("fedspeak") and facts["public"] == ["text file public.txt"]
    assert facts["vocabulary"] == Vocabulary.load(run.vocabulary).digest
    assert facts["initial"] is None and facts["kernels"] == [describe_kernels()]
    lines = (folder / "public.txt").read_text().splitlines()
    with np.load(run.text_digests) as arrays:
        for name, expected in digest_text(lines)._asdict().items():
            np.testing.assert_array_equal(arrays[name], expected)
    closed = [path for path in run.path.iterdir() if path != run.vocabulary]
    assert {path.stat().st_mode & 0o077 for path in closed} == {0}
    assert not [path for path in run.path.rglob("*") if path.suffix in (".tmp", ".draft")]


def test_pretrain_reads_no_client(folder, tmp_path, pretrained):
    """The clients' file is not there."""
    code, _, err = pretrain(folder, "no-clients", f"data.path={tmp_path}/none.jsonl")
    assert code == 0, err
    assert weights_of(folder / "no-clients") == weights_of(pretrained[0])


def test_pretrain_needs_no_plays_where_only_files_are_public(folder, pretrained, monkeypatch):
    monkeypatch.setattr("fl.sources.shakespeare.load", lambda **_: pytest.fail("reads the plays"))
    code, _, err = pretrain(folder, "only-files", "data.source=shakespeare", "data.path=none")
    assert code == 0, err
    assert weights_of(folder / "only-files") == weights_of(pretrained[0])


def test_transformer_pretrains(folder):
    code, _, err = pretrain(folder, "transformer", *TRANSFORMER)
    assert code == 0, err
    model, weights, _ = load_trained(folder / "transformer")
    assert (model.config()["architecture"], model.context) == ("transformer", 8)
    losses = [loss for _, loss in public_losses(folder / "transformer")]
    assert losses[-1] < losses[0]
    assert all(np.isfinite(value).all() for value in weights.values())


def test_model_with_the_vocabulary_of_another_drafts_for_it(folder, pretrained):
    changes = (f"vocabulary.of={pretrained[0]}", "vocabulary.size=none", "model.units=5")
    code, _, err = pretrain(folder, "small", *changes)
    assert code == 0, err
    model, weights, words = load_trained(folder / "small")
    target, target_weights, own = load_trained(pretrained[0])
    assert (model.config()["units"], words.digest) == (5, own.digest)
    facts = json.loads((folder / "small" / "facts.json").read_text())
    assert facts["initial"] == initial_model.load(pretrained[0]).digest
    assert facts["public"][1].startswith("vocabulary of initial model ")
    drafter = load_drafter(str(folder / "small"), target, target_weights, own, 16)
    assert isinstance(drafter, ModelDrafter)  # and not one for another vocabulary


def test_sequences_longer_than_the_context_are_refused(folder, refuse):
    message = refuse(
        "pretrain", str(folder / "config.toml"), "--output", "long", *options((*SETTINGS, *TRANSFORMER)),
        "--set", "model.context=7",
    )  # fmt: skip
    assert "clients.sequence_length = 8 is more than the model's context of 7 tokens: lower it" in message
    assert not Path("long").exists()


def test_interrupted_pretraining_names_the_command_that_resumes_it(folder, pretrained, monkeypatch):
    from experiments.board import Board

    write = Board.write

    def interrupted(board: Board, step: int, values: Any) -> None:
        write(board, step, values)
        if step == 4:
            raise KeyboardInterrupt

    run = folder / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(Board, "write", interrupted)
        code, _, err = pretrain(folder, "interrupted")
    assert code == 130 and f"resume with: fedspeak pretrain --resume {run}" in err
    assert not (run / "weights.npz").exists() and not (run / "model.json").exists()
    code, _, err = call("pretrain", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert "public model 6/9" in err and "public model 4/9" not in err
    assert weights_of(run) == weights_of(pretrained[0])
    assert public_losses(run) == public_losses(pretrained[0])


def test_finished_pretraining_is_not_trained_again(folder, pretrained):
    before = weights_of(pretrained[0])
    code, _, err = call("pretrain", "--resume", str(pretrained[0]), folder=folder)
    assert code == 0 and "holds a trained model already: nothing is trained" in err
    assert weights_of(pretrained[0]) == before


@pytest.mark.slow
def test_killed_and_resumed_pretraining_gives_the_same_weights_bit_for_bit(folder, tmp_path):
    """Killed after a checkpoint while it trains on, in processes as from a user's shell."""
    settings = options(("pretraining.epochs=100", "pretraining.evaluate_every=10", "pretraining.patience=99"))
    config = str(folder / "config.toml")
    code, _, err = finish(
        start("pretrain", config, "--output", str(tmp_path / "undisturbed"), *settings, folder=tmp_path)
    )
    assert code == 0, err
    run = tmp_path / "killed"
    process = start("pretrain", config, "--output", str(run), *settings, folder=tmp_path)
    while process.poll() is None and not list((run / "checkpoints").glob("round-*.ckpt")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    code, _, err = finish(process)
    assert code == -signal.SIGKILL and not (run / "weights.npz").exists(), err
    code, out, err = finish(start("pretrain", "--resume", str(run), folder=tmp_path))
    assert code == 0, err
    assert weights_of(run) == weights_of(tmp_path / "undisturbed")
    assert "Traceback" not in err and "warning" not in err.lower()


def test_kill_while_digests_or_facts_are_written_leaves_a_folder_that_is_resumed(folder, pretrained):
    """What a kill leaves before the first checkpoint: config and vocabulary, and drafts of other files."""
    run = folder / "early"
    run.mkdir()
    for name in ("config.toml", "config.sha256", "vocabulary.json"):
        shutil.copy(pretrained[0] / name, run / name)
    (run / ".text-digests.npz.tmp").write_bytes(b"\x93NUM")
    code, _, err = call("pretrain", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert weights_of(run) == weights_of(pretrained[0])
    assert (run / "text-digests.npz").read_bytes() == (pretrained[0] / "text-digests.npz").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pretraining.epochs=0"], "pretraining.epochs = 0 trains nothing: set it to at least 1"),
        (['data.public=["none.txt"]'], "none.txt, which does not exist: correct the name"),
        (["data.public=[]"], "data.public is empty: name text files that may be published"),
        (['data.public=["{folder}/users.jsonl"]'], "which is clients' text"),
        (["pretraining.batch_size=1000"], "pretraining.batch_size = 1000: must be at most "),
        (["clients.sequence_length=500"], "sequences: 40 are needed to train the public model; declare more text"),
        (["pretraining.learning_rate=1e38"], "pretraining.learning_rate = 1e+38: after "),
        (["pretraining.accumulate=33"], "pretraining.accumulate = 33 is more than pretraining.batch_size = 32: lower"),
        (["model.heads=2"], 'model.heads has no effect: model.preset = "tiny" is recurrent; remove the key'),
        (["model.init={folder}/none", *NO_MODEL], "model.init = '{folder}/none': {folder}/none does not exist"),
        (["vocabulary.of={folder}"], "vocabulary.size = 300 has no effect with vocabulary.of, whose"),
        (["vocabulary.of={folder}", "vocabulary.size=none"], "vocabulary.of = '{folder}': {folder} holds no trained"),
        (
            ["model.init={folder}", "vocabulary.of={folder}", *NO_MODEL],
            'vocabulary.of = "{folder}" has no effect with model.init, whose vocabulary is used: remove the key',
        ),
        (["model.init={folder}", *NO_MODEL], "model.init = '{folder}': {folder} holds no trained model"),
    ],
)  # fmt: skip
def test_bad_setting_is_refused_in_one_line_and_leaves_no_folder(folder, tmp_path, refuse, settings, message):
    shown = [setting.format(folder=folder) for setting in ("pretraining.epochs=2", *settings)]
    error = refuse("pretrain", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *options(tuple(shown)))
    assert message.format(folder=folder) in error
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused(folder, pretrained, refuse):
    config, run = str(folder / "config.toml"), str(pretrained[0])
    assert "give either a config to start, or --resume RUN" in refuse("pretrain")
    assert "give either a config to start, or --resume RUN" in refuse("pretrain", config, "--resume", run)
    assert "drop --set and --output" in refuse("pretrain", "--resume", run, "--set", "pretraining.epochs=9")
    assert "drop --set and --output" in refuse("pretrain", "--resume", run, "--output", "other")
    assert "none holds no run" in refuse("pretrain", "--resume", "none")
    assert "is not TOML" in refuse("pretrain", str(folder / "users.jsonl"))


def test_output_that_holds_a_model_is_refused_and_stays_as_it_is(folder, pretrained, refuse):
    before = {path.name: path.stat().st_mtime_ns for path in pretrained[0].iterdir()}
    message = refuse("pretrain", str(folder / "config.toml"), "--output", str(pretrained[0]), *options(SETTINGS))
    assert f"{pretrained[0]} holds a run: resume it with --resume {pretrained[0]}" in message
    assert {path.name: path.stat().st_mtime_ns for path in pretrained[0].iterdir()} == before


def test_failed_start_keeps_the_users_files(folder, tmp_path, refuse):
    (tmp_path / "note.txt").write_text("keep")
    settings = options((*SETTINGS, "pretraining.batch_size=1000"))
    refuse("pretrain", str(folder / "config.toml"), "--output", str(tmp_path), *settings)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def unfinished(pretrained: tuple[Path, str, str], run: Path) -> Path:
    shutil.copytree(pretrained[0], run)
    (run / "weights.npz").unlink()
    return run


def test_resume_with_changed_public_text_is_refused(folder, pretrained, tmp_path, refuse):
    run = unfinished(pretrained, tmp_path / "run")
    public = folder / "public.txt"
    text = public.read_text()
    public.write_text(text + "one more line of words\n")
    try:
        message = refuse("pretrain", "--resume", str(run))
    finally:
        public.write_text(text)
    assert f"the public text differs from what {run} began with: restore it, or start a new model" in message
    assert not (run / "weights.npz").exists()


def test_resume_with_another_initial_model_is_refused(folder, pretrained, tmp_path, refuse):
    shutil.copytree(pretrained[0], tmp_path / "init")
    code, _, err = pretrain(folder, "from-init", f"model.init={tmp_path}/init", *NO_MODEL)
    assert code == 0, err
    run = unfinished((folder / "from-init", "", ""), tmp_path / "run")
    with np.load(tmp_path / "init" / "weights.npz") as arrays:
        weights = {name: arrays[name] + 1 for name in arrays.files}
    np.savez(tmp_path / "init" / "weights.npz", **weights)
    message = refuse("pretrain", "--resume", str(run))
    assert f"the model that model.init names differs from what {run} began with: restore it" in message
    assert not (run / "weights.npz").exists()


def test_digests_of_another_text_are_written_again_where_the_facts_are_missing(folder, pretrained, tmp_path):
    """A version that wrote the digests first may have been killed between the two, and the text changed since."""
    run = unfinished(pretrained, tmp_path / "run")
    (run / "facts.json").unlink()
    initial_model.write_text_digests(run / "text-digests.npz", ["another text"])
    code, _, err = call("pretrain", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert (run / "text-digests.npz").read_bytes() == (pretrained[0] / "text-digests.npz").read_bytes()


def test_kill_between_facts_and_digests_leaves_a_folder_whose_text_is_compared(folder, pretrained, tmp_path, refuse):
    run = unfinished(pretrained, tmp_path / "run")
    (run / "text-digests.npz").unlink()
    public = folder / "public.txt"
    text = public.read_text()
    public.write_text(text + "one more line of words\n")
    try:
        assert "the public text differs from what" in refuse("pretrain", "--resume", str(run))
    finally:
        public.write_text(text)
    assert not (run / "text-digests.npz").exists()
    code, _, err = call("pretrain", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert (run / "text-digests.npz").read_bytes() == (pretrained[0] / "text-digests.npz").read_bytes()


def test_resume_with_other_kernels_warns_and_records_them(folder, pretrained, tmp_path, monkeypatch):
    run = unfinished(pretrained, tmp_path / "run")
    monkeypatch.setattr(public_run, "describe_kernels", lambda: "other kernels")
    code, _, err = call("pretrain", "--resume", str(run), folder=folder)
    assert code == 0, err
    assert f"earlier steps were computed with {describe_kernels()}, the next ones will be with other kernels" in err
    assert json.loads((run / "facts.json").read_text())["kernels"] == [describe_kernels(), "other kernels"]


def test_commands_refuse_a_folder_of_the_other_kind_with_the_right_command(pretrained, whole, tmp_path, refuse):
    run = unfinished(pretrained, tmp_path / "run")
    assert f"resume it with fedspeak pretrain --resume {run}" in refuse("train", "--resume", str(run))
    assert f"finish it with fedspeak pretrain --resume {run}" in refuse("export", str(run))
    for command in ("evaluate", "report"):
        message = refuse(command, str(pretrained[0]))
        assert f"without clients: evaluate it with fedspeak evaluate {pretrained[0]} --text FILE" in message
    shutil.copytree(whole[0], tmp_path / "federated")
    (tmp_path / "federated" / "weights.npz").unlink()
    message = refuse("pretrain", "--resume", str(tmp_path / "federated"))
    assert f"is a federated run: resume it with fedspeak train --resume {tmp_path}/federated" in message
    assert not (tmp_path / "federated" / "weights.npz").exists()


def test_folder_that_cannot_be_written_is_refused_before_training(folder, pretrained, tmp_path, refuse):
    run = unfinished(pretrained, tmp_path / "run")
    with read_only(run):
        assert f"{run} could not be written" in refuse("pretrain", "--resume", str(run))


def test_full_disk_gives_one_line_and_pretraining_can_be_resumed(folder, pretrained, tmp_path):
    small = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(small, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    run = tmp_path / "run"
    arguments = ["pretrain", str(folder / "config.toml"), "--output", str(run), *options(SETTINGS)]
    try:
        (tmp_path / "filler").write_bytes(bytes(512 * 1024 - 80_000))
        code, _, err = call(*arguments, folder=folder)
        assert code == 2 and "could not be written" in err and "make room" in err and "Traceback" not in err, err
        assert not (run / "weights.npz").exists() and not list(run.rglob("*.tmp"))
        (tmp_path / "filler").unlink()
        code, _, err = call("pretrain", "--resume", str(run), folder=folder)
        assert code == 0, err
        assert weights_of(run) == weights_of(pretrained[0])
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
