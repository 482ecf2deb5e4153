"""Tests checks on the training data: models that mix examples only there are refused, ordinary ones are accepted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy.dpsgd import batch_checks, model_checks
from privacy.dpsgd.examples import checked_examples, losses_of
from privacy.dpsgd.model_checks import check_apart
from tests.privacy.dpsgd.keras_training import CROSS_ENTROPY, randomise

ROWS, COLUMNS = 60, 48


class Function(layers.Layer):
    """A layer that applies a function to its inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs, training=None):
        return self.function(inputs)


class FunctionInTraining(Function):
    """A layer that applies a function to its inputs in training only."""

    def call(self, inputs, training=None):
        return self.function(inputs) if training else inputs


def pixels(generator, shape):
    return generator.integers(0, 256, shape).astype(np.float32)


def standardised(generator, shape):
    return generator.normal(size=shape).astype(np.float32)


def heavy_tailed(generator, shape):
    return generator.standard_cauchy(shape).astype(np.float32)


DATA = {"pixels": pixels, "standardised": standardised, "heavy-tailed": heavy_tailed}


def batch_mean(inputs):
    return tf.stop_gradient(tf.reduce_mean(inputs, 0, keepdims=True))


def ghost_normalised(inputs):
    """Normalises each group of eight consecutive examples; the last examples, fewer than eight, stay as they are."""
    whole = tf.shape(inputs)[0] // 8 * 8
    groups = tf.reshape(inputs[:whole], [-1, 8, inputs.shape[-1]])
    mean, variance = tf.nn.moments(groups, [1], keepdims=True)
    normal = tf.stop_gradient((groups - mean) * tf.math.rsqrt(variance + 1e-3))
    return tf.concat([tf.reshape(normal, [-1, inputs.shape[-1]]), inputs[whole:]], 0)


def centred_if_many(inputs):
    return inputs - tf.cast(tf.shape(inputs)[0] > 7, inputs.dtype) * batch_mean(inputs)


def rarely_centred(inputs):
    return inputs - tf.cast(tf.random.uniform([]) < 0.1, inputs.dtype) * batch_mean(inputs)


MIXING = {
    "clipped by the batch's norm": (lambda: [Function(lambda x: tf.clip_by_norm(x, 1000.0))], pixels),
    "divided by the batch's maximum": (lambda: [Function(lambda x: x / tf.maximum(1.0, tf.reduce_max(x)))], pixels),
    "shifted by negative numbers": (
        lambda: [Function(lambda x: x - tf.stop_gradient(tf.reduce_mean(tf.nn.relu(-x), 0)))],
        standardised,
    ),
    "shifted by a large mean": (
        lambda: [Function(lambda x: x - tf.stop_gradient(tf.nn.relu(tf.reduce_mean(x, 0) - 1)))],
        pixels,
    ),
    "normalised in groups of eight": (lambda: [Function(ghost_normalised)], pixels),
    "centred if many": (lambda: [Function(centred_if_many)], pixels),
    "rarely centred, with dropout": (lambda: [layers.Dropout(0.5), FunctionInTraining(rarely_centred)], pixels),
    "rarely centred": (lambda: [FunctionInTraining(rarely_centred)], pixels),
}


def build_model(stack, shape=(COLUMNS,), dtype="float32"):
    return compile_model(keras.Sequential([keras.Input(shape, dtype=dtype), *stack, layers.Dense(3)]))


def compile_model(model):
    model = randomise(model)
    model.compile("sgd", CROSS_ENTROPY)
    return model


def check(model, x, largest=40, seed=0):
    y = np.random.default_rng(seed).integers(0, 3, len(x))
    return check_apart(model, losses_of(model), checked_examples(x, y), largest)


@pytest.mark.parametrize("name", MIXING)
def test_check_refuses_models_that_mix_examples_on_their_data_and_restores_weights(name):
    stack, draw = MIXING[name]
    model = build_model(stack())
    before = model.get_weights()
    with pytest.raises(ValueError, match="mixes examples"):
        check(model, draw(np.random.default_rng(0), (ROWS, COLUMNS)))
    for after, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, expected)


def attention():
    inputs = keras.Input((8, COLUMNS // 8))
    hidden = layers.LayerNormalization()(layers.Dense(8)(inputs))
    hidden = layers.Add()([hidden, layers.Dot((2, 1))([layers.Softmax()(layers.Dot(2)([hidden, hidden])), hidden])])
    return compile_model(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden))))


def deep():
    return build_model([layer for _ in range(4) for layer in (layers.Dense(64, "relu"), layers.LayerNormalization())])


ORDINARY = {
    "linear": lambda: build_model([]),
    "dense": lambda: build_model([layers.Dense(64, "relu"), layers.Dense(64, "relu")]),
    "saturating": lambda: build_model([layers.Dense(64, "tanh"), layers.Dense(64, "sigmoid")]),
    "deep": deep,
    "convolutional": lambda: build_model(
        [
            *(layers.Reshape((6, 8, 1)), layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(8, 2, activation="relu"), layers.Flatten()),
        ]
    ),
    "recurrent": lambda: build_model([layers.Reshape((8, COLUMNS // 8)), layers.LSTM(16)]),
    "layer normalisation": lambda: build_model([layers.LayerNormalization(), layers.Dense(16, "gelu")]),
    "group normalisation": lambda: build_model([layers.Dense(16), layers.GroupNormalization(4), layers.ReLU()]),
    "attention": attention,
    "dropout": lambda: build_model([layers.Dense(32, "relu"), layers.Dropout(0.5), layers.Dense(16, "relu")]),
    "dropout of one's own": lambda: build_model(
        [layers.Dense(32, "relu"), FunctionInTraining(lambda x: tf.nn.dropout(x, 0.5))]
    ),
}


# With random numbers the check takes long, since it restores tens of states. Other scales are covered by "dense".
REPEATED = {(name, scale) for name in ("dropout", "dropout of one's own") for scale in ("standardised", "heavy-tailed")}


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param(name, scale, marks=[pytest.mark.slow] if (name, scale) in REPEATED else [])
        for name in ORDINARY
        for scale in DATA
    ],
)
def test_check_accepts_ordinary_models_at_every_scale_of_data_and_restores_weights(name, scale):
    model = ORDINARY[name]()
    x = DATA[scale](np.random.default_rng(1), (ROWS, COLUMNS))
    before = model.get_weights()
    check(model, x.reshape(ROWS, *model.input_shape[1:]))
    for after, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, expected)


def test_check_accepts_a_model_with_embedding():
    tokens = np.random.default_rng(0).integers(0, 50, (ROWS, 8))
    check(build_model([layers.Embedding(50, 16), layers.LSTM(16)], (8,), "int64"), tokens)


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("kind", [list, dict])
def test_check_covers_models_with_several_inputs(kind, mixes):
    first, second = keras.Input((4,), name="a"), keras.Input((6,), name="b")
    hidden = layers.Concatenate()([first, second])
    if mixes:
        hidden = Function(lambda x: tf.clip_by_norm(x, 1000.0))(hidden)
    inputs = [first, second] if kind is list else {"a": first, "b": second}
    model = compile_model(keras.Model(inputs, layers.Dense(3)(hidden)))
    generator = np.random.default_rng(0)
    parts = [pixels(generator, (ROWS, 4)), pixels(generator, (ROWS, 6))]
    x = parts if kind is list else dict(zip("ab", parts, strict=True))
    data = checked_examples(x, generator.integers(0, 3, ROWS))
    if not mixes:
        check_apart(model, losses_of(model), data)
        return
    with pytest.raises(ValueError, match="mixes examples"):
        check_apart(model, losses_of(model), data)


def test_check_without_the_training_data_accepts_mixing_models(monkeypatch):
    """So it is the comparison on the training data that refuses the models of `MIXING`."""
    monkeypatch.setattr(model_checks._DataCheck, "check", lambda self, draws: None)
    for name, (stack, draw) in MIXING.items():
        if "rarely" not in name and "negative" not in name:
            check(build_model(stack()), draw(np.random.default_rng(0), (ROWS, COLUMNS)))


def test_extreme_rows_are_found_across_chunks(monkeypatch):
    monkeypatch.setattr(batch_checks, "_CHUNK", 7 * COLUMNS)
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    x[50], x[41, 3], x[2, 5], x[33] = 20, 99, -98, 0
    rows = batch_checks._extreme_rows(checked_examples(x, np.zeros(ROWS)))
    assert list(rows[:4]) == [50, 41, 2, 33]


def test_batches_have_four_sizes_and_exchange_much_of_each_rows_batch():
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    batches = batch_checks.Batches(checked_examples(x, np.zeros(ROWS)), 32, np.random.default_rng(0))
    all_rows = list(batches)
    assert {len(rows) for rows in all_rows} == {1, 7, 29, 32}
    for row in batches.rows:
        beside = [set(rows) - {row} for rows in all_rows if row in rows]
        assert min(len(others & more) / len(more) for others in beside for more in beside if more) <= 0.6


def test_random_states_miss_a_branch_of_probability_0_1_with_probability_below_0_01():
    assert 0.9**model_checks._OWN_RANDOM_STATES < 0.01
