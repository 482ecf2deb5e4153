"""Runs that start from another model, and the refusal of models that were trained on text of the run's own clients."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import config_file, data, initial_model
from experiments.runs import RunFolder, load_trained, load_weights
from privacy.ledger import Ledger
from tests.experiments.processes import call

FROM = ("model.embedding=none", "model.units=none", "vocabulary.size=none", "pretraining.epochs=0", "run.rounds=1")
NO_NOISE = ("privacy.noise_multiplier=0", "privacy.clip_quantile=none", "privacy.clip_count_stddev=none")


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def run_command(command: str, folder: Path, output: Path, *settings: str) -> tuple[int, str, str]:
    config = str(folder / "config.toml")
    return call(command, config, "--output", str(output), *options(*settings), folder=folder)


@pytest.fixture(scope="module")
def pretrained(folder) -> Path:
    code, _, err = run_command("pretrain", folder, folder / "initial", "pretraining.epochs=2")
    assert code == 0, err
    return folder / "initial"


@pytest.fixture(scope="module")
def started(folder, pretrained) -> tuple[Path, str]:
    """Trains a private run from the pretrained model; returns its folder and what it displayed."""
    code, _, err = run_command("train", folder, folder / "started", f"model.init={pretrained}", *FROM)
    assert code == 0, err
    return folder / "started", err


@pytest.fixture(scope="module")
def plain(folder, whole) -> tuple[Path, str]:
    """Trains a run without noise from a private run of the same clients; returns its folder and what it displayed."""
    code, _, err = run_command("train", folder, folder / "plain", f"model.init={whole[0]}", *FROM, *NO_NOISE)
    assert code == 0, err
    return folder / "plain", err


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory) -> Path:
    """Writes more clients: `ids.jsonl` has the ids of the shared ones with other text, `text.jsonl` their text under
    other ids, `new.jsonl` neither."""
    place = tmp_path_factory.mktemp("elsewhere")
    lines = [line for line in (folder / "users.jsonl").read_text().splitlines() if "text" in line]
    texts: dict[str, list[str]] = {}
    for row in map(json.loads, lines):
        texts.setdefault(row["user"], []).append(row["text"])
    generator = np.random.default_rng(5)

    def other() -> str:
        return " ".join(f"n{number}" for number in generator.integers(0, 1000, 8))

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        (place / name).write_text("".join(json.dumps({"user": u, "text": t}) + "\n" for u, t in rows))

    write("ids.jsonl", [(user, other()) for user in texts for _ in range(6)])
    write("text.jsonl", [(f"v{user}", text) for user, rows in texts.items() for text in rows])
    write("new.jsonl", [(f"v{user}", other()) for user in texts for _ in range(6)])
    # The same words, in lines of eleven.
    words = " ".join(text for rows in texts.values() for text in rows).split()
    (place / "wrapped.txt").write_text("\n".join(" ".join(words[i : i + 11]) for i in range(0, len(words), 11)))
    return place


def prepare(folder: Path, init: Path, *settings: str) -> data.Data:
    return data.prepare(config_file.load(folder / "config.toml", (f"model.init={init}", *FROM, *settings)), None)


def check(folder: Path, init: Path, *settings: str) -> None:
    initial_model.require_other_text(initial_model.load(init), prepare(folder, init, *settings))


@pytest.fixture(autouse=True)
def _in_the_shared_folder(folder, monkeypatch):
    """Token stores of all tests are in one place."""
    monkeypatch.chdir(folder)


def test_run_starts_with_weights_and_vocabulary_of_the_initial_model(started, pretrained):
    run = RunFolder(started[0])
    _, weights, vocabulary = load_trained(pretrained)
    begun = load_weights(run.public_weights)
    assert begun.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(begun[name], value)
    model, trained, own = load_trained(run.path)
    assert own == vocabulary and run.vocabulary.read_bytes() == (pretrained / "vocabulary.json").read_bytes()
    assert model == load_trained(pretrained)[0]
    assert any((trained[name] != value).any() for name, value in weights.items())


def test_plan_report_and_facts_name_digest_and_text_of_the_initial_model(started, pretrained):
    run, digest = RunFolder(started[0]), initial_model.load(pretrained).digest
    described = f"initial model {digest[:16]}, trained on text file public.txt"
    assert Ledger.read(run.ledger).plan.public == (described,)
    assert json.loads(run.facts.read_text())["initial"] == digest
    for name in ("report.md", "report.html", "report-release.md", "report-release.json"):
        assert described in (run.path / name).read_text()


def test_digest_changes_with_the_last_bit_of_a_weight(pretrained, tmp_path):
    def digest_of(name: str) -> str:
        return initial_model.load(tmp_path / name).digest

    for name in ("same", "weights"):
        shutil.copytree(pretrained, tmp_path / name)
    weights = load_weights(pretrained / "weights.npz")
    weights["embedding"][3, 5] = np.nextafter(weights["embedding"][3, 5], np.float32(1))
    np.savez(tmp_path / "weights" / "weights.npz", **weights)
    assert digest_of("same") == initial_model.load(pretrained).digest != digest_of("weights")


def test_digest_changes_with_configuration_and_vocabulary(pretrained, tmp_path, monkeypatch):
    digest = initial_model.load(pretrained).digest
    model, weights, vocabulary = load_trained(pretrained)

    def digest_of(model, vocabulary) -> str:
        monkeypatch.setattr(initial_model, "load_trained", lambda folder: (model, weights, vocabulary))
        return initial_model.load(pretrained).digest

    assert digest_of(model, vocabulary) == digest
    assert digest_of(SimpleNamespace(config=lambda: {**model.config(), "context": 7}), vocabulary) != digest
    assert digest_of(model, SimpleNamespace(digest="0" * 64)) != digest


def test_pretraining_inside_the_run_continues_from_the_initial_model(folder, pretrained, tmp_path):
    code, _, err = run_command(
        "train", folder, tmp_path / "run", f"model.init={pretrained}", *FROM, "pretraining.epochs=2"
    )
    assert code == 0, err
    losses = [float(line.rpartition(" ")[2]) for line in err.splitlines() if line.startswith("public model ")]
    own = [float(line.rpartition(" ")[2]) for line in _pretraining_losses(folder, tmp_path)]
    assert losses[0] < own[-1] < own[0]


def _pretraining_losses(folder: Path, place: Path) -> list[str]:
    code, _, err = run_command("pretrain", folder, place / "again", "pretraining.epochs=2")
    assert code == 0, err
    return [line for line in err.splitlines() if line.startswith("public model ")]


def test_model_of_other_text_and_clients_is_accepted(folder, pretrained, whole, elsewhere):
    check(folder, pretrained)
    check(folder, whole[0], f"data.path={elsewhere}/new.jsonl")


def test_run_of_the_same_clients_is_refused_for_a_private_run(folder, whole, tmp_path, refuse):
    settings = options(f"model.init={whole[0]}", *FROM)
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *settings)
    assert f"model.init = '{whole[0]}' was trained on text of this run's clients (it has the same clients)" in message
    assert message.endswith("set privacy.noise_multiplier = 0, and the report will say NOT PRIVATE")
    assert not (tmp_path / "run").exists()


def test_run_of_the_same_clients_is_allowed_without_noise_and_reported_as_not_private(plain):
    run, err = plain
    assert "privacy: NOT PRIVATE" in err
    for name in ("report.md", "report-release.md"):
        report = (run / name).read_text()
        assert "NOT PRIVATE" in report and "trained by the run whole on the text of its clients" in report


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["data.path={}/ids.jsonl"], "28 client ids are in both; if they are other people, give their ids a prefix"),
        (["data.path={}/text.jsonl"], "it holds 100% of the text of client 'vu"),
        (["data.min_tokens=11"], "28 client ids are in both"),
    ],
)
def test_run_that_shares_ids_or_text_is_refused(folder, whole, elsewhere, settings, reason):
    with pytest.raises(ValueError, match="^model.init = '.*whole' was trained on text of this run's") as caught:
        check(folder, whole[0], *(setting.format(elsewhere) for setting in settings))
    assert reason.replace("28", str(len(prepare(folder, whole[0]).splits.train))) in str(caught.value)


def test_run_whose_public_text_holds_the_clients_text_is_refused(folder, elsewhere, tmp_path):
    code, _, err = run_command(
        "train", folder, tmp_path / "run", f'data.public=["{folder}/public.txt", "{elsewhere}/wrapped.txt"]',
        f"data.path={elsewhere}/new.jsonl", "run.rounds=1",
    )  # fmt: skip
    assert code == 0, err
    with pytest.raises(ValueError, match="its public text: it holds 100% of the text of client 'u"):
        check(folder, tmp_path / "run")


def test_pretrained_model_is_refused_by_the_clients_whose_text_it_was_trained_on(folder, elsewhere, tmp_path):
    """Their text stands in another file, in lines of other length, beside other text."""
    public = f'data.public=["{folder}/public.txt", "{elsewhere}/wrapped.txt"]'
    code, _, err = run_command("pretrain", folder, tmp_path / "leaky", "pretraining.epochs=1", public)
    assert code == 0, err
    with pytest.raises(ValueError, match="leaky' was trained on text of this run's .* 100% of the text of client 'u"):
        check(folder, tmp_path / "leaky")
    check(folder, tmp_path / "leaky", f"data.path={elsewhere}/new.jsonl")


def test_pretrained_model_of_the_clients_messages_in_another_order_is_refused(folder, pretrained, tmp_path):
    """Messages of four words, of which no eight stand together in both texts."""
    generator = np.random.default_rng(8)
    lines = [" ".join(f"n{number}" for number in generator.integers(0, 1000, 4)) for _ in range(480)]
    rows = [json.dumps({"user": f"w{i % 120}", "text": line}) for i, line in enumerate(lines)]
    (tmp_path / "short.jsonl").write_text("\n".join(rows))
    run, settings = RunFolder(tmp_path / "run"), (f"data.path={tmp_path}/short.jsonl", "data.min_tokens=2")
    shutil.copytree(pretrained, run.path)
    check(folder, run.path, *settings)
    initial_model.write_text_digests(run.text_digests, [line.upper() for line in sorted(lines)])
    with pytest.raises(ValueError, match=r"text of this run's clients \(it holds 100.0% of their short lines\), which"):
        check(folder, run.path, *settings)


@pytest.mark.parametrize(
    ("settings", "use"),
    [
        (("pretraining.epochs=1",), "pretraining"),
        (("pretraining.epochs=0",), "the vocabulary"),
        (("model.init={}", *FROM, "pretraining.epochs=1"), "pretraining"),
    ],
)
def test_private_run_whose_own_public_text_holds_its_clients_text_is_refused(
    folder, pretrained, elsewhere, tmp_path, refuse, settings, use
):
    public = f'data.public=["{folder}/public.txt", "{elsewhere}/wrapped.txt"]'
    changes = options(public, *(setting.format(pretrained) for setting in settings))
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *changes)
    assert "wrapped.txt'] has text of this run's clients (it holds 100% of the text of client 'u" in message
    assert f"which {use} would use outside this run's ε: name other text, or set privacy.noise_multiplier" in message
    assert not (tmp_path / "run").exists()


def test_public_text_is_compared_only_where_it_is_used(folder, pretrained, elsewhere):
    public = f'data.public=["{elsewhere}/wrapped.txt"]'
    config = config_file.load(folder / "config.toml", (f"model.init={pretrained}", *FROM, public))
    initial_model.require_other_public_text(config, prepare(folder, pretrained, public))


def test_public_text_of_a_run_without_noise_is_not_compared(folder, elsewhere, tmp_path):
    public = f'data.public=["{folder}/public.txt", "{elsewhere}/wrapped.txt"]'
    code, _, err = run_command("train", folder, tmp_path / "run", public, "run.rounds=1", *NO_NOISE)
    assert code == 0, err


@pytest.mark.parametrize("settings", [("model.init={}", *FROM), ("vocabulary.of={}", "vocabulary.size=none")])
def test_model_that_began_from_a_refused_one_is_refused_too(folder, whole, elsewhere, tmp_path, settings):
    """With `vocabulary.of` it began from the vocabulary alone."""
    first = tmp_path / "first"
    shutil.copytree(whole[0], first)
    changes = (*(setting.format(first) for setting in settings), "pretraining.epochs=1")
    code, _, err = run_command("pretrain", folder, tmp_path / "second", *changes)
    assert code == 0, err
    with pytest.raises(ValueError, match=f"through {first}, from which it began: it has the same clients"):
        check(folder, tmp_path / "second")
    new = f"data.path={elsewhere}/new.jsonl"
    check(folder, tmp_path / "second", new)
    weights = load_weights(first / "weights.npz")
    np.savez(first / "weights.npz", **{name: value + 1 for name, value in weights.items()})
    with pytest.raises(ValueError, match=f"it began from the model in {first}, which was changed since"):
        check(folder, tmp_path / "second", new)
    shutil.rmtree(first)
    with pytest.raises(ValueError, match=f"cannot be compared .*{first} does not exist"):
        check(folder, tmp_path / "second", new)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01", b"PK\x03\x04"])
def test_pretrained_model_without_intact_text_digests_is_refused(folder, pretrained, tmp_path, content):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(pretrained, run.path)
    run.text_digests.unlink()
    if content is not None:
        run.text_digests.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be compared with .*text-digests.npz is (missing|damaged)"):
        check(folder, run.path)


def test_run_whose_text_is_gone_or_changed_is_refused(folder, elsewhere, tmp_path):
    source = tmp_path / "source.jsonl"
    shutil.copy(elsewhere / "new.jsonl", source)
    code, _, err = run_command("train", folder, tmp_path / "run", f"data.path={source}", "run.rounds=1")
    assert code == 0, err
    check(folder, tmp_path / "run")
    source.write_text(source.read_text().replace("n1", "n2"))
    with pytest.raises(ValueError, match=f"cannot be compared .*the data of {tmp_path}/run was changed since"):
        check(folder, tmp_path / "run")
    source.unlink()
    with pytest.raises(ValueError, match="cannot be compared with this run's clients' .*source.jsonl.*: put it back"):
        check(folder, tmp_path / "run")


def test_imported_model_is_not_compared(folder, pretrained, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(pretrained, run.path)
    facts = {"imported": {"file": "a.gguf", "description": "llama"}, "vocabulary": load_trained(pretrained)[2].digest}
    run.facts.write_text(json.dumps(facts))
    check(folder, run.path)
    assert (
        "imported from a.gguf (llama), trained on text that is not known here"
        in initial_model.load(run.path).description
    )


def test_description_says_whether_the_earlier_run_was_private(whole, plain):
    said = "trained by the run whole on the text of its clients, "
    assert initial_model.load(whole[0]).description.endswith(f"{said}with that run's guarantee")
    said = said.replace("whole", "plain")
    assert initial_model.load(plain[0]).description.endswith(f"{said}without privacy")


def test_comparison_reads_a_bounded_number_of_clients_and_tokens(folder, pretrained, monkeypatch):
    prepared = prepare(folder, pretrained)
    monkeypatch.setattr(initial_model, "_MOST_CLIENTS", 5)
    monkeypatch.setattr(initial_model, "_MOST_TOKENS", 100)
    text = {client: " ".join(sentences).split() for client, sentences in initial_model._clients_text(prepared)}
    assert len(text) == 5 and set(text) <= set(prepared.splits.train)
    for client, words in text.items():
        tokens = prepared.store.tokens(prepared.store.index(client))[:20]
        assert (
            words
            == prepared.vocabulary.decode([token if token != 2 else 35 for token in tokens]).replace("#", " ").split()
        )


def test_resume_with_another_initial_model_is_refused(folder, started, pretrained, tmp_path, refuse):
    run, init = tmp_path / "run", Path(pretrained)
    shutil.copytree(started[0], run)
    (run / "weights.npz").unlink()
    kept = (init / "weights.npz").read_bytes()
    weights = load_weights(init / "weights.npz")
    try:
        np.savez(init / "weights.npz", **{name: value + 1 for name, value in weights.items()})
        message = refuse("train", "--resume", str(run))
    finally:
        (init / "weights.npz").write_bytes(kept)
    assert "plan" in message and not (run / "weights.npz").exists()


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("{0}/none", "model.init = '{0}/none': {0}/none does not exist: train one with fedspeak train, or give"),
        ("{0}", "model.init = '{0}': {0} holds no trained model: finish it with fedspeak train --resume {0}"),
    ],
)
def test_folder_without_model_is_refused_in_one_line(folder, tmp_path, refuse, init, message):
    arguments = [str(folder / "config.toml"), "--output", str(tmp_path / "run")]
    settings = options(f"model.init={init.format(folder)}", *FROM)
    assert message.format(folder) in refuse("train", *arguments, *settings)
    assert not (tmp_path / "run").exists()


def test_data_command_refuses_initial_model_without_vocabulary(folder, refuse):
    settings = options(f"model.init={folder}/none", *FROM)
    message = refuse("data", str(folder / "config.toml"), *settings)
    assert f"model.init = '{folder}/none' holds no model (no vocabulary.json)" in message


def test_sequences_longer_than_the_initial_model_s_context_are_refused(folder, tmp_path, refuse):
    transformer = ("model.preset=transformer-4m", "model.units=none", "model.heads=2", "model.blocks=1")
    code, _, err = run_command(
        "pretrain", folder, tmp_path / "small", *transformer, "model.feed_forward=8", "model.context=8"
    )
    assert code == 0, err
    settings = options(f"model.init={tmp_path}/small", *FROM, "clients.sequence_length=9")
    message = refuse("train", str(folder / "config.toml"), "--output", str(tmp_path / "run"), *settings)
    assert "clients.sequence_length = 9 is more than the model's context of 8 tokens" in message
