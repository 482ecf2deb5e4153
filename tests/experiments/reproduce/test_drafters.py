"""The study's losses and total variations equal a direct computation; its table shows them."""

import json
import shutil

import numpy as np
import pytest

from experiments import config_file, data
from experiments.cli import main
from experiments.reproduce import drafters
from fl.evaluation import Evaluator
from models.vocabulary import Vocabulary
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters
from tests.experiments.reproduce.small_drafters import SPEAKERS
from tests.models import exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafters")
    small_drafters.write(folder)
    return folder


def test_losses_and_total_variations_equal_a_direct_computation(folder, monkeypatch):
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    results = drafters.compare(folder)
    loaded = {name: drafters.load_trained(folder / name) for name in drafters.MODELS}
    words = exported.vocabulary()
    rows = [data.clients.sequences(np.array(words.document("\n".join(lines)), np.int32), 6) for _, lines in SPEAKERS]
    for name, (model, weights, _) in loaded.items():
        loss = Evaluator(model, rows)(weights).loss_per_token
        assert results[name]["nats"]["estimate"] == pytest.approx(loss, rel=1e-5)
        assert results[name]["weights"] == sum(weight.size for weight in weights.values())
    every = np.concatenate(rows)
    used = every[:, 1:] != 0

    def probabilities(name, temperature):
        model, weights, _ = loaded[name]
        logits = model.extend(weights, every[:, :-1], model.initial_state(len(every)))[0].numpy() / temperature
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    for temperature in drafters.TEMPERATURES:
        target, drafter = (probabilities(name, temperature) for name in (drafters.TARGET, "si-cifg"))
        variation = 1 - np.minimum(target, drafter).sum(-1)
        found = results["si-cifg"]["total_variation"][f"{temperature:g}"]["estimate"]
        assert found == pytest.approx(float(variation[used].mean()), rel=1e-4)
    table = drafters.format_table(results)
    assert table.count("\n| ") == 1 + len(drafters.MODELS)
    assert f"| si-cifg | {results['si-cifg']['weights'] / 1e6:.2f} M |" in table


def test_models_share_text_and_vocabulary_and_drafters_are_ten_times_smaller():
    configs = {name: config_file.load("target", changes) for name, changes in drafters.MODELS.items()}
    assert len({(config.data, config.vocabulary) for config in configs.values()}) == 1
    from experiments import assembly

    sizes = {
        name: sum(int(np.prod(shape)) for shape in assembly.build_model(config, 4096).shapes().values())
        for name, config in configs.items()
    }
    assert 8e6 < sizes[drafters.TARGET] < 20e6
    assert all(10 * size < sizes[drafters.TARGET] for name, size in sizes.items() if name != drafters.TARGET)


def test_drafter_with_another_vocabulary_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    shutil.copytree(folder, tmp_path / "drafters")
    pieces = list(exported.vocabulary().pieces)
    pieces[-5], pieces[-6] = pieces[-6], pieces[-5]
    Vocabulary(tuple(pieces)).save(tmp_path / "drafters" / "si-cifg" / "vocabulary.json")
    with pytest.raises(ValueError, match="si-cifg has another vocabulary than .*/target: delete it to train it anew"):
        drafters.compare(tmp_path / "drafters")


def test_name_of_the_text_file_may_hold_any_character(tmp_path):
    file = tmp_path / """it's "a\\b" é \U0001f600.txt"""
    config = config_file.load("target", drafters._with_text(file))
    assert config.data.public == (*config_file.load("target").data.public, str(file))


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("experiments.public_run.train", lambda run, command, show: None)
    monkeypatch.setattr(drafters, "compare", lambda folder: {})
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_second_run_with_another_set_is_refused_and_trains_nothing(no_training, tmp_path, refuse):
    output = ("--output", str(tmp_path / "drafters"))
    epochs = ("--set", "pretraining.epochs=3")
    assert call("reproduce", "drafters", *epochs, *output, folder=tmp_path)[0] == 0
    assert call("reproduce", "drafters", *epochs, *output, folder=tmp_path)[0] == 0
    shutil.rmtree(tmp_path / "drafters" / "target")
    message = refuse("reproduce", "drafters", *output)
    assert "drafters/transformer holds a model of another config (other --set, or" in message
    assert not (tmp_path / "drafters" / "target").exists()


def test_failing_bible_is_reported_in_one_line(no_training, tmp_path, monkeypatch, refuse):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    message = refuse("reproduce", "drafters", "--output", str(tmp_path / "drafters"))
    assert "/bin/false did not print the King James Bible" in message and "repair or remove it" in message
    assert not (tmp_path / "drafters" / "bible.txt").exists()


@pytest.mark.slow
def test_study_trains_the_models_and_writes_table_and_results(tmp_path, monkeypatch, capsys):
    """Runs "reproduce drafters" with two small models on one play, and a second time, which trains nothing."""
    small = ("model.embedding=16", "model.blocks=1", "model.heads=2", "model.feed_forward=32")
    monkeypatch.setattr(drafters, "MODELS", {drafters.TARGET: small, "transformer": small})
    monkeypatch.setattr(drafters, "write_bible", lambda path, show: None)
    monkeypatch.setattr(data, "sources", lambda config: (SPEAKERS, [], ()))
    settings = ['data.public=["timon-of-athens"]', "vocabulary.size=300", "clients.sequence_length=8"]
    settings += ["pretraining.epochs=1", "pretraining.evaluate_every=200"]
    command = ["reproduce", "drafters", "--output", str(tmp_path / "out")]
    for setting in settings:
        command += ["--set", setting]
    for _ in range(2):
        with pytest.raises(SystemExit) as exit:
            main(command)
        assert exit.value.code == 0
    output = capsys.readouterr()
    assert "holds a trained model already" in output.err
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]
    assert set(found) == {drafters.TARGET, "transformer"}
    # Both models have one seed, text and size, so that they are equal.
    assert found["transformer"]["total_variation"]["1"]["estimate"] == pytest.approx(0, abs=1e-6)
    assert drafters.format_table(found) in output.out
