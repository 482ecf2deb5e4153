"""Tests clipped sums of whole models, in closed form and recomputed, against gradients of one example at a time."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from privacy.dpsgd.examples import checked_examples
from privacy.dpsgd.step import PrivateStep
from tests.oracles import per_example
from tests.privacy.dpsgd.keras_training import CROSS_ENTROPY, randomise
from tests.tolerance import model_operations, rounding, weights_conditions

pytestmark = pytest.mark.numerical

layers = keras.layers


def sizes(seed, count):
    return [int(size) for size in np.random.default_rng(seed).integers(2, 9, count)]


def mlp(inputs, hidden, classes):
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(hidden, "tanh"), layers.Dense(classes)])


def recurrent(layer, seed):
    steps, vocabulary, width, units = sizes(seed, 4)
    return [
        keras.Input((steps,), dtype="int32"),
        layers.Embedding(vocabulary, width),
        layer(units),
        layers.Dense(vocabulary),
    ]


class OwnWeights(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.scale = self.add_weight(name="scale", shape=(3,), initializer=keras.initializers.Ones())
        self.built = True

    def call(self, inputs):
        return self.dense(inputs) * self.scale


def own_weights():
    model = OwnWeights()
    model.build((None, 4))
    return model


def shared():
    """Builds a model with one layer used twice, an inner model, and a branch."""
    inputs = keras.Input((4,))
    twice = layers.Dense(4, activation="tanh")
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dense(4)])
    hidden = twice(twice(inputs)) + inner(inputs)
    return keras.Model(inputs, layers.Dense(3, use_bias=False)(hidden))


def images():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def attention():
    inputs = keras.Input((5, 4))
    attended = layers.MultiHeadAttention(2, 3)(inputs, inputs, use_causal_mask=True)
    return keras.Model(inputs, layers.Dense(3)(attended))


def with_states():
    """Builds a model whose last states begin another layer, so that one output is computed from the other."""
    inputs = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(6, 4)(inputs)
    outputs, *states = layers.LSTM(3, return_sequences=True, return_state=True)(embedded)
    return keras.Model(inputs, layers.Dense(6)(layers.LSTM(3, return_sequences=True)(outputs, initial_state=states)))


class Residual(models.CIFG):
    """A layer that overrides `call`, so that the closed form of its parent does not hold for it."""

    def call(self, inputs, initial_state=None, mask=None, training=None):
        return super().call(inputs, initial_state, mask, training) + inputs


def cifg(layer, **options):
    return lambda units: layer(units, return_sequences=True, **options)


# Name → (how to build the model, number of layers whose gradients have no closed form).
CASES = {
    **{f"mlp {seed}": (lambda seed=seed: mlp(*sizes(seed, 3)), 0) for seed in range(10, 13)},
    "linear": (lambda: keras.Sequential([keras.Input((5,)), layers.Dense(3)]), 0),
    "shared": (shared, 0),
    "positions": (lambda: keras.Sequential([keras.Input((30, 3)), layers.Dense(2, "tanh"), layers.Dense(4)]), 0),
    "images": (images, 2),
    "own weights": (own_weights, 1),
    "attention": (attention, 1),
    "states": (with_states, 2),
    "residual": (
        lambda: keras.Sequential([keras.Input((4, 3)), Residual(3, return_sequences=True), layers.Dense(3)]),
        1,
    ),
    "activation with weights": (
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, activation=layers.PReLU()), layers.Dense(3)]),
        1,
    ),
    **{
        f"lstm {seed}": (lambda seed=seed: keras.Sequential(recurrent(cifg(layers.LSTM), seed)), 0) for seed in range(3)
    },
    **{
        f"cifg {seed}": (
            lambda seed=seed: keras.Sequential(recurrent(cifg(models.CIFG, projection=3, layer_norm=True), seed)),
            0,
        )
        for seed in range(3)
    },
    "backwards": (lambda: keras.Sequential(recurrent(cifg(models.CIFG, go_backwards=True), 5)), 0),
    "last cifg": (lambda: keras.Sequential(recurrent(models.SICIFG, 4)), 0),
    "last lstm": (lambda: keras.Sequential(recurrent(layers.LSTM, 5)), 0),
    "gru": (lambda: keras.Sequential(recurrent(layers.GRU, 6)), 1),
    "cell": (lambda: keras.Sequential(recurrent(lambda units: layers.RNN(models.CIFGCell(units)), 7)), 1),
    "tied": (lambda: models.to_keras(models.RecurrentLanguageModel("si-cifg", 9, 4, 6), length=7), 0),
    "tied, bias": (
        lambda: models.to_keras(models.RecurrentLanguageModel("cifg", 5, 4, 3, output_bias=True), length=9),
        0,
    ),
}


def examples(model, count, seed=0):
    generator = np.random.default_rng(seed)
    inputs = getattr(model, "inputs", None)  # None for a subclassed model
    shape = model.input_shape[1:] if inputs else (4,)
    classes = model.output_shape[-1] if inputs else 3
    if inputs and "int" in str(inputs[0].dtype):
        x = generator.integers(0, classes, (count, *shape)).astype(np.int32)
    else:
        # Of different sizes, so that some gradients are clipped and others are not.
        scale = generator.exponential(size=(count, *[1] * len(shape)))
        x = (scale * generator.normal(size=(count, *shape))).astype(np.float32)
    outputs = model(x).shape[1:-1]
    return x, generator.integers(0, classes, (count, *outputs)).astype(np.int32)


def fast_and_slow(model, loss, x, y):
    """Returns the step, the clipped sums of step and oracle, and for each weight how far rounding may move them.

    The clip norm is the median of the examples' norms.
    """
    model.compile(keras.optimizers.SGD(), loss)
    data = checked_examples(x, y)
    each = per_example.gradients(model, loss, x, y)
    norms = [float(np.sqrt(sum(np.square(part).sum() for part in parts))) for parts in each]
    clip = float(np.median(norms))
    assert min(norms) < 0.999 * clip < 1.001 * clip < max(norms)
    step = PrivateStep(model, clip, 0.0, 1.0, data)
    step.close()
    clipped_sum = tf.function(step._sum_clipped, autograph=False)
    fast, slow = clipped_sum(*data.take(np.arange(len(y)))), per_example.clipped_sum(each, clip)
    return step, fast, slow, allowed(model, lambda: clipped_sum(*data.take(np.arange(len(y)))), slow, np.size(y))


def allowed(model, clipped_sum, expected, terms):
    """Returns for each weight how far rounding may move its sum.

    Terms as large as the largest sum of any weight may cancel in it: the gradient of a key's bias is zero in theory.
    """
    operations = model_operations(model, terms)
    cancelling = rounding(terms, max(np.abs(part).max() for part in expected))
    return [rounding(operations, condition) + cancelling for condition in weights_conditions(model, clipped_sum)]


# These differ from the first case of their kind in sizes only.
REPEATED = {"mlp 11", "mlp 12", "lstm 1", "lstm 2", "cifg 1", "cifg 2"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name for name in CASES]
)
def test_clipped_sum_equals_that_of_one_example_at_a_time(name):
    build: Any
    build, recomputed = CASES[name]
    model = randomise(build())
    x, y = examples(model, 6)
    step, fast, slow, tolerances = fast_and_slow(model, CROSS_ENTROPY, x, y)
    for part, expected, within in zip(fast, slow, tolerances, strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=within)
    assert len(step.recomputed) == recomputed


def test_clipped_sum_skips_masked_positions():
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(5, 4, mask_zero=True),
            layers.LSTM(3, return_sequences=True),
            layers.Dense(5),
        ]
    )
    x = np.array([[1, 2, 3, 0, 0, 0], [4, 1, 1, 2, 3, 4], [2, 0, 0, 0, 0, 0]], np.int32)

    def masked_mean(y, outputs):
        mask = tf.cast(tf.not_equal(y, 0), tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
        return tf.reduce_sum(mask * losses, -1) / tf.reduce_sum(mask, -1)

    randomise(model).compile(keras.optimizers.SGD(), CROSS_ENTROPY)
    data = checked_examples(x, x)
    step = PrivateStep(model, 0.1, 0.0, 1.0, data)
    step.close()
    slow = per_example.clipped_sum(per_example.gradients(model, masked_mean, x, x), 0.1)
    clipped_sum = tf.function(step._sum_clipped, autograph=False)
    tolerances = allowed(model, lambda: clipped_sum(*data.take(np.arange(3))), slow, x.size)
    for part, expected, within in zip(step._sum_clipped(*data.take(np.arange(3))), slow, tolerances, strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=within)


def test_clipped_sum_of_a_model_with_two_inputs_equals_the_oracle():
    first, second = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([first, second], layers.Dense(3)(layers.Concatenate()([first, layers.Dense(3)(second)])))
    randomise(model)
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(4, size)).astype(np.float32) for size in (3, 2)]
    _, fast, slow, tolerances = fast_and_slow(model, CROSS_ENTROPY, x, generator.integers(0, 3, 4))
    for part, expected, within in zip(fast, slow, tolerances, strict=True):
        np.testing.assert_allclose(part, expected, rtol=0, atol=within)


def test_layers_have_their_own_call_after_a_step():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    x, y = examples(model, 3)
    before = model(x).numpy()
    fast_and_slow(model, CROSS_ENTROPY, x, y)
    assert "call" not in vars(model.layers[-1])
    np.testing.assert_array_equal(model(x), before)
