"""Rewards: what each name gives, and one line for what does not fit."""

import json
import sys

import numpy as np
import pytest

from models.alignment import rewards
from models.alignment.rewards import Sample

SAMPLE = Sample("To be", " or not", [1, 5, 6], [7, 8, 9, 2], -3.0, -6.0)
DIGEST = "a" * 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [("log-likelihood", -1.5), ("total-log-likelihood", -6.0), ("length", 4.0), ("brevity", -4.0)],
)
def test_rewards_of_the_text_itself(name, expected):
    assert rewards.load(name, DIGEST)(SAMPLE) == expected
    empty = SAMPLE._replace(tokens=[], unprocessed_log_prob=0.0)
    assert np.isfinite(rewards.load(name, DIGEST)(empty))


def test_sentiment_prefers_a_friendly_text():
    pytest.importorskip("vaderSentiment")
    rate = rewards.load("sentiment", DIGEST)
    good, bad = (rate(SAMPLE._replace(text=text)) for text in ("I love this wonderful day.", "This is horrible."))
    assert -1 <= bad < 0 < good <= 1


def test_function_of_the_user_gets_prompt_and_text(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(
        "def both(prompt, text):\n    return len(prompt) + 100 * len(text)\n\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert rewards.load("own_rewards:both", DIGEST)(SAMPLE) == 705
    for name, message in (
        ("own_rewards:neither", "has no neither"),
        ("own_rewards:number", "is no function"),
        ("nowhere_at_all:f", "there is no module nowhere_at_all"),
        ("sentimental", "must be log-likelihood, total-log-likelihood"),
        (":f", "must be"),
        ("own_rewards:", "must be"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            rewards.load(name, DIGEST)
        assert "\n" not in str(error.value)
    sys.modules.pop("own_rewards", None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(prompt, text) return 1", r"cannot be imported: SyntaxError \("),
        ("raise RuntimeError('no\\nluck')", r"cannot be imported: RuntimeError \(no\)"),
        ("import sys; sys.exit(7)", r"cannot be imported: SystemExit \(7\)"),
        ("import no_such_package", r"cannot be imported: ModuleNotFoundError \(No module named 'no_such_package'\)"),
        ("math = __import__('math').nothing", r"cannot be imported: AttributeError \("),
    ],
)
def test_module_that_cannot_be_imported_is_named_in_one_line(source, message, tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=f"reward = 'broken_rewards:f': the module broken_rewards {message}") as error:
        rewards.load("broken_rewards:f", DIGEST)
    assert "\n" not in str(error.value)
    sys.modules.pop("broken_rewards", None)


@pytest.mark.parametrize("name", [".x:f", "..x:f"])
def test_relative_module_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="cannot be imported: TypeError") as error:
        rewards.load(name, DIGEST)
    assert "\n" not in str(error.value)


def test_reward_that_exits_is_named_in_one_line():
    with pytest.raises(ValueError, match=r"reward = 'own': raised SystemExit \(3\) for the text ' or not'"):
        rewards.rate(lambda sample: sys.exit(3), [SAMPLE], "own")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "gave nan"),
        (10**400, "gave inf"),
        (float("inf"), "gave inf"),
        (None, "gave NoneType"),
        ([1, 2], "gave list"),
    ],
)
def test_reward_that_is_no_finite_number_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        rewards.rate(lambda sample: value, [SAMPLE], "own")


def test_reward_that_fails_is_named_in_one_line():
    with pytest.raises(ValueError, match="raised ZeroDivisionError") as error:
        rewards.rate(lambda sample: 1 / 0, [SAMPLE], "own")
    assert "\n" not in str(error.value)


def _write_scorer(path, length, outputs=1):
    import tensorflow as tf

    table = tf.constant(np.arange(20, dtype=np.float32))

    class Scorer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([1, length], tf.int32)])
        def score(self, tokens):
            return tf.tile(tf.reduce_sum(tf.gather(table, tokens), keepdims=True), [1, outputs])

    module = Scorer()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.score.get_concrete_function()], module)
    path.write_bytes(converter.convert())


def test_tflite_scorer_reads_the_last_tokens_of_prompt_and_text(tmp_path):
    for length, expected in ((4, 26.0), (10, 38.0), (None, 38.0)):  # 7 + 8 + 9 + 2; all of them, and zeros; all
        path = tmp_path / f"scorer{length}.tflite"
        _write_scorer(path, length)
        rewards.describe_scorer(path, DIGEST)
        reward = rewards.load(str(path), DIGEST)
        assert reward(SAMPLE) == expected
        assert reward(SAMPLE._replace(tokens=[2], prompt_tokens=[1])) == 3.0
        assert reward(SAMPLE) == expected


@pytest.mark.slow
def test_keras_scorer_reads_tokens(tmp_path):
    keras = pytest.importorskip("keras")
    inputs = keras.Input([6], dtype="int32")
    table = keras.layers.Embedding(20, 1, embeddings_initializer="ones")
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(keras.layers.Flatten()(table(inputs))))
    path = tmp_path / "scorer.keras"
    model.save(path)
    rewards.describe_scorer(path, DIGEST)
    assert rewards.load(str(path), DIGEST)(SAMPLE) == 6.0


def test_scorer_that_does_not_fit_is_refused_in_one_line(tmp_path):
    path = tmp_path / "scorer.tflite"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rewards.load(str(path), DIGEST)
    path.write_bytes(b"no model")
    for facts, message in (
        (None, "scorer.tflite.json is missing or damaged"),
        ("{}", "is missing or damaged"),
        (json.dumps({"vocabulary": "b" * 64}), "is not the model's"),
        (json.dumps({"vocabulary": DIGEST}), "cannot be loaded"),
    ):
        if facts is not None:
            (tmp_path / "scorer.tflite.json").write_text(facts)
        with pytest.raises(ValueError, match=message) as error:
            rewards.load(str(path), DIGEST)
        assert "\n" not in str(error.value)
    _write_scorer(path, 4, outputs=2)
    with pytest.raises(ValueError, match="gave 2 numbers for one text"):
        rewards.load(str(path), DIGEST)(SAMPLE)
