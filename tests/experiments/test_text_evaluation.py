"""`fedspeak evaluate RUN --text FILE`: its numbers beside a direct computation, and its errors."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from experiments import text_evaluation
from experiments.intervals import mean_interval
from experiments.runs import RunFolder, load_trained, save_weights, write_json
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from models.vocabulary import EOS, learn
from tests.experiments.processes import call

TEXT = "the king shall speak\nand all men hear him well\n\nwhen night is dark, él habla\n"
WORDS = learn([TEXT] * 3, 270)


def write_model(folder: Path, model: Any) -> Path:
    """Writes a model with random weights as an imported model is written."""
    folder.mkdir()
    run, generator = RunFolder(folder), np.random.default_rng(0)
    weights = {name: generator.normal(0, 0.5, shape).astype(np.float32) for name, shape in model.shapes().items()}
    save_weights(run.weights, weights)
    write_json(run.model, model.config())
    WORDS.save(run.vocabulary)
    write_json(run.facts, {"imported": {"description": "a test", "file": "x"}, "vocabulary": WORDS.digest})
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    transformer = TransformerLanguageModel(270, embedding=8, blocks=1, heads=2, feed_forward=16, context=12)
    return {
        "recurrent": write_model(place / "recurrent", RecurrentLanguageModel("cifg", 270, 8, 8)),
        "transformer": write_model(place / "transformer", transformer),
    }


def direct(folder: Path, texts: list[str], length: int) -> tuple[list[float], list[int], int]:
    """Returns the loss in nats and the number of tokens of each sequence, and the number of correct predictions.

    Each sequence is computed by itself, without padding; the log-probabilities in float64.
    """
    model, weights, _ = load_trained(folder)
    model = model.fit(length)
    values = {name: tf.constant(value) for name, value in weights.items()}
    losses, counts, correct = [], [], 0
    for text in texts:
        ids = [1]
        for line in text.splitlines():
            ids += [*WORDS.encode(line), EOS]
        for begin in range(0, len(ids) - 1, length):
            row = ids[begin : begin + length + 1]
            logits = model.extend(values, tf.constant([row[:-1]]), model.initial_state(1))[0][0].numpy().astype(float)
            chosen = logits[np.arange(len(row) - 1), row[1:]]
            losses.append(
                float((np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - chosen).sum())
            )
            counts.append(len(row) - 1)
            correct += int((logits.argmax(1) == row[1:]).sum())
    return losses, counts, correct


def row_of(out: str) -> list[str]:
    return [cell.strip() for cell in out.splitlines()[4].strip("|").split("|")]


@pytest.mark.parametrize(("name", "length"), [("recurrent", 256), ("transformer", 12)])
def test_numbers_equal_a_direct_computation(models, tmp_path, name, length):
    texts = [TEXT * 9, "all men speak\n"]
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    arguments = [part for file in files for part in ("--text", str(file))]
    code, out, err = call("evaluate", str(models[name]), *arguments, folder=tmp_path)
    assert code == 0, err
    losses, counts, correct = direct(models[name], texts, length)
    assert len(counts) > 2
    begin = f"one.txt, two.txt: {sum(counts):,} tokens in sequences of up to {length}, with a 95 % interval"
    assert out.startswith(begin)
    numbers = [float(number) for number in re.findall(r"[\d.]+", " ".join(row_of(out)).replace(",", ""))]
    interval, mean = mean_interval(np.array(losses), np.array(counts)), sum(losses) / sum(counts)
    bits = sum(losses) / sum(map(len, texts)) / math.log(2)
    # All but the perplexity and the accuracy are printed with three digits, those with one.
    expected = [mean, interval.low, interval.high, bits, math.exp(mean), 100 * correct / sum(counts)]
    for number, value, unit in zip(numbers, expected, [1e-3, 1e-3, 1e-3, 1e-3, 0.1, 0.1], strict=True):
        assert number == pytest.approx(value, abs=0.6 * unit)
    assert interval.low < mean < interval.high


def test_byte_order_mark_is_no_text(models, tmp_path):
    (tmp_path / "plain.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "marked.txt").write_text(TEXT, encoding="utf-8-sig")
    plain, marked = (
        text_evaluation.evaluate_text(models["recurrent"], (tmp_path / f"{name}.txt",)) for name in ("plain", "marked")
    )
    assert row_of(plain) == row_of(marked)


def test_pretrained_and_federated_models_are_evaluated(folder, whole):
    code, out, err = call("evaluate", str(whole[0]), "--text", str(folder / "public.txt"), folder=folder)
    assert code == 0, err
    loss = float(row_of(out)[0].split()[0])
    assert 0 < loss < math.log(300)
    evaluation = json.loads((whole[0] / "evaluation.json").read_text())
    assert len(evaluation["rows"]) > 1  # stays that of the test clients


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfet\x00h\x00", "{}: not UTF-8 (byte 0): convert it first"),
        (b"the king\xe9", "{}: not UTF-8 (byte 8): convert it first"),
        (b"", "{}: fewer than two tokens of text: give a longer file"),
        (b"\n", "{}: fewer than two tokens of text: give a longer file"),
        (None, "{}: No such file or directory"),
    ],
)
def test_file_that_cannot_be_evaluated_is_refused_in_one_line(models, tmp_path, refuse, content, message):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text(TEXT, encoding="utf-8")
    if content is not None:
        bad.write_bytes(content)
    error = refuse("evaluate", str(models["recurrent"]), "--text", str(good), "--text", str(bad))
    assert error == f"fedspeak: error: {message.format(bad)}"


def test_folder_instead_of_a_file_is_refused(models, tmp_path, refuse):
    assert "Is a directory" in refuse("evaluate", str(models["recurrent"]), "--text", str(tmp_path))


def test_folder_without_model_is_refused(tmp_path, refuse):
    (tmp_path / "good.txt").write_text(TEXT, encoding="utf-8")
    message = refuse("evaluate", str(tmp_path / "none"), "--text", str(tmp_path / "good.txt"))
    assert f"{tmp_path}/none does not exist: train one with fedspeak train" in message


def test_diverged_model_is_refused_in_one_line(tmp_path, refuse):
    folder = write_model(tmp_path / "model", RecurrentLanguageModel("cifg", 270, 8, 8))
    weights = load_trained(folder)[1]
    save_weights(folder / "weights.npz", {name: np.full_like(value, np.inf) for name, value in weights.items()})
    (tmp_path / "good.txt").write_text(TEXT, encoding="utf-8")
    message = refuse("evaluate", str(folder), "--text", str(tmp_path / "good.txt"))
    assert re.search(r"not finite: .*diverged", message)
