"""Tests checks of models that draw random numbers: those that mix examples are refused, dropout is accepted."""

import random

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy.dpsgd import model_checks
from privacy.dpsgd.examples import checked_examples, losses_of
from privacy.dpsgd.model_checks import check_apart
from tests.privacy.dpsgd.keras_training import compiled, examples, settings
from tests.privacy.dpsgd.test_model_checks import shared_out


class InTraining(layers.Layer):
    """A layer that applies a function to its inputs in training only."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs, training=None):
        return self.function(inputs) if training else inputs


def batch_mean(inputs):
    """Returns the mean over the batch without a gradient, so that only losses show the mixing."""
    return tf.stop_gradient(tf.reduce_mean(inputs, 0, keepdims=True))


def sometimes_centred(inputs):
    """Subtracts the batch mean if one coin for the whole batch shows heads."""
    return inputs - tf.cast(tf.random.uniform([]) < 0.5, inputs.dtype) * batch_mean(inputs)


def by_place(inputs):
    return inputs * tf.reshape(1 + tf.range(tf.shape(inputs)[0], dtype=inputs.dtype), [-1, 1])


def by_number(inputs):
    return inputs / tf.cast(tf.shape(inputs)[0], inputs.dtype)


def add_unrepeatable_noise(inputs):
    """Adds noise from a generator that cannot be set back."""
    noise = tf.numpy_function(lambda: np.random.default_rng().normal(), [], tf.float64)
    return inputs + tf.cast(tf.ensure_shape(noise, []), inputs.dtype)


def with_dropout(function):
    return lambda: compiled(layers.Dense(8), layers.Dropout(0.5), InTraining(function), layers.Dense(3))


MIXING = {
    "centred in training": (
        lambda: compiled(layers.Dense(8), InTraining(lambda inputs: inputs - batch_mean(inputs)), layers.Dense(3)),
        "mixes examples",
    ),
    "centred in training, with dropout": (with_dropout(lambda inputs: inputs - batch_mean(inputs)), "mixes examples"),
    "centred by a coin, with dropout": (with_dropout(sometimes_centred), "mixes examples"),
    "by place, with dropout": (with_dropout(by_place), "mixes examples"),
    "by number, with dropout": (with_dropout(by_number), "or on their number"),
    "centred, with dropout of one's own": (
        with_dropout(lambda inputs: tf.nn.dropout(inputs, 0.5) - batch_mean(inputs)),
        "mixes examples",
    ),
    "by number, with dropout of one's own": (
        with_dropout(lambda inputs: by_number(tf.nn.dropout(inputs, 0.5))),
        "or on their number",
    ),
    "shared out, with dropout": (
        lambda: compiled(layers.Dense(8), layers.Dropout(0.5), layers.Dense(3), loss=shared_out),
        "or on their number",
    ),
    "random numbers that cannot be drawn again": (with_dropout(add_unrepeatable_noise), "cannot be drawn again"),
}


@pytest.mark.parametrize("name", MIXING)
def test_fit_refuses_models_that_mix_examples_in_training(name):
    build, message = MIXING[name]
    with pytest.raises(ValueError, match=message) as error:
        settings().fit(build(), *examples())
    assert "\n" not in str(error.value)


@pytest.fixture(autouse=True)
def _seeds():
    """Fixes the initial weights and the random states: by chance, dropout may hide the mixing in all of them."""
    random.seed(1)
    tf.random.set_seed(1)


APART = {
    "dropout": lambda: compiled(layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(3)),
    "dropout with a seed": lambda: compiled(layers.Dense(8, "relu"), layers.Dropout(0.5, seed=3), layers.Dense(3)),
    "noise": lambda: compiled(layers.Dense(8, "relu"), layers.GaussianNoise(0.5), layers.Dense(3)),
    "multiplied noise": lambda: compiled(layers.Dense(8, "relu"), layers.GaussianDropout(0.5), layers.Dense(3)),
    "dropout of one's own": with_dropout(lambda inputs: tf.nn.dropout(inputs, 0.5)),
    "channels": lambda: compiled(
        layers.Reshape((2, 2)), layers.SpatialDropout1D(0.5), layers.Flatten(), layers.Dense(3)
    ),
}
if hasattr(layers, "AlphaDropout"):
    APART["alpha dropout"] = lambda: compiled(layers.Dense(8), layers.AlphaDropout(0.5), layers.Dense(3))


@pytest.mark.parametrize("name", APART)
def test_fit_accepts_dropout_and_noise_layers(name):
    settings().fit(APART[name](), *examples())


@pytest.mark.parametrize("seed", [None, 3])
def test_check_leaves_random_state_as_it_was(seed, monkeypatch):
    monkeypatch.setattr(model_checks, "_OWN_RANDOM_STATES", 3)  # for speed: all are put back in the same way
    dropout = layers.Dropout(0.5) if seed is None else layers.Dropout(0.5, seed=seed)
    model = compiled(
        layers.Dense(8), dropout, InTraining(lambda inputs: inputs + tf.random.normal([])), layers.Dense(3)
    )
    generators = [vars(dropout._random_generator).copy()] if hasattr(dropout, "_random_generator") else []
    before = [v.numpy() for v in model.variables + list(dropout.variables)]
    x, y = examples()
    numbers = []
    for check in (False, True):
        tf.random.set_seed(5)
        np.random.seed(6)
        random.seed(7)
        tf.random.uniform([])
        if check:
            check_apart(model, losses_of(model), checked_examples(x, y))
        numbers.append([float(tf.random.uniform([])), np.random.random(), random.random()])
    assert numbers[0] == numbers[1]
    if generators:
        assert vars(dropout._random_generator) == generators[0]
    for value, v in zip(before, model.variables + list(dropout.variables), strict=True):
        np.testing.assert_array_equal(v.numpy(), value)
