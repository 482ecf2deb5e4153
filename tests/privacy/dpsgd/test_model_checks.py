"""Tests that models in which clipping protects nobody are refused before the ledger, with unchanged weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy import Budget, Releases
from tests.privacy.dpsgd.keras_training import CROSS_ENTROPY, compiled, examples, settings


class Centred(layers.Layer):
    """Subtracts the batch mean, which mixes examples."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 0, keepdims=True)


class Running(layers.Layer):
    """Keeps a running sum of its inputs in a weight."""

    def build(self, input_shape):
        self.seen = self.add_weight(name="seen", shape=(), trainable=False, initializer=keras.initializers.Zeros())
        self.built = True

    def call(self, inputs):
        self.seen.assign_add(tf.reduce_sum(inputs))
        return inputs


class Noisy(layers.Layer):
    """Has a weight and draws random numbers."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(4,), initializer=keras.initializers.Ones())
        self.built = True

    def call(self, inputs):
        return tf.nn.dropout(inputs, 0.5) * self.scale


def borrowed():
    """Builds a model that uses a weight outside its layer."""
    inputs = keras.Input((4,))
    dense = layers.Dense(4)
    hidden = dense(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Lambda(lambda value: tf.matmul(value, dense.kernel))(hidden)))
    model.compile("sgd", CROSS_ENTROPY)
    return model


class ByTheLargest(layers.Layer):
    """Divides by the largest number of the batch, for inputs of any dtype."""

    def call(self, inputs):
        values = tf.cast(inputs, tf.float32)
        return values / tf.reduce_max(values)


class Statistics(layers.Layer):
    """Divides by the standard deviation over the batch, without a gradient."""

    def call(self, inputs):
        return inputs / (1 + tf.stop_gradient(tf.math.reduce_std(inputs, 0)))


class Summed(layers.Layer):
    """Adds up over the batch: later examples depend on earlier ones."""

    def call(self, inputs):
        return tf.cumsum(inputs, axis=0)


class Neighbours(layers.Layer):
    """Adds to each example the one before it."""

    def call(self, inputs):
        return inputs + tf.roll(inputs, 1, axis=0)


class Gate(layers.Layer):
    """Mixes examples through a gate that is closed at the initial weights."""

    def build(self, input_shape):
        self.gate = self.add_weight(name="gate", shape=(), initializer=keras.initializers.Zeros())
        self.built = True

    def call(self, inputs):
        return inputs + self.gate * tf.reduce_mean(inputs, 0, keepdims=True)


class Hidden(layers.Layer):
    """Keeps a running sum of its inputs in a variable that Keras does not track."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = [tf.Variable(0.0, trainable=False)]

    def call(self, inputs):
        self.seen[0].assign_add(tf.reduce_sum(inputs))
        return inputs


class Lies(layers.Dense):
    """Spreads each gradient over the batch, so that only the sum is right."""

    def call(self, inputs):
        return super().call(inputs)

    def call_tapped(self, tap, inputs):
        outputs = tap(self.call(inputs))

        def terms(gradient):
            rows = tf.cast(tf.shape(gradient)[0], tf.float32)
            each = tf.reduce_sum(inputs[:, :, tf.newaxis] * gradient[:, tf.newaxis], 0, keepdims=True) / rows
            whole = tf.reduce_sum(gradient, 0, keepdims=True) / rows
            return [
                (self.kernel, None, tf.repeat(each, tf.shape(gradient)[0], 0)),
                (self.bias, None, tf.repeat(whole, tf.shape(gradient)[0], 0)),
            ]

        return outputs, terms


class OtherOutputs(layers.Dense):
    def call(self, inputs):
        return super().call(inputs)

    def call_tapped(self, tap, inputs):
        outputs = tap(2 * self.call(inputs))
        return outputs, lambda gradient: [
            (self.kernel, inputs[:, tf.newaxis], 2 * gradient[:, tf.newaxis]),
            (self.bias, None, 2 * gradient),
        ]


class OwnStep(keras.Model):
    def train_step(self, data):
        raise NotImplementedError


def own_step():
    inputs = keras.Input((4,))
    model = OwnStep(inputs, layers.Dense(3)(inputs))
    model.compile("sgd", CROSS_ENTROPY)
    return model


class PartlyBuilt(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(4), layers.Dense(3)

    def call(self, inputs):
        return self.second(self.first(inputs))


def partly_built():
    model = PartlyBuilt()
    model.first.build((None, 4))
    model.built = True
    model.compile("sgd", CROSS_ENTROPY)
    return model


def balanced(y, outputs):
    """Weights the loss by how rare a label is in the batch."""
    same = tf.equal(tf.reshape(y, [-1, 1]), tf.reshape(y, [1, -1]))
    rare = 1 / tf.reduce_mean(tf.cast(same, tf.float32), 1)
    return rare * keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)


def every_pair(y, outputs):
    """Compares every label with every output, as [B] - [B, 1] does."""
    return tf.reduce_mean(tf.square(tf.cast(y, tf.float32)[:, tf.newaxis, tf.newaxis] - outputs), [0, 2])


class ByTheirNumber(layers.Layer):
    """Divides by the square root of the number of examples."""

    def call(self, inputs):
        return inputs / tf.sqrt(tf.cast(tf.shape(inputs)[0], inputs.dtype))


def shared_out(y, outputs):
    """Divides each example's loss by the number of examples."""
    count = tf.cast(tf.shape(outputs)[0], tf.float32)
    return keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True) / count


def two_outputs_of_one_loss():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    model.compile("sgd", CROSS_ENTROPY)
    return model


def two_outputs():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(3)(inputs)])
    model.compile("sgd", [CROSS_ENTROPY, CROSS_ENTROPY])
    return model


def uncompiled():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3)])


def frozen():
    model = compiled()
    model.trainable = False
    return model


MODELS = {
    "batch normalisation": (lambda: compiled(layers.BatchNormalization(), layers.Dense(3)), "mixes examples|stores"),
    "centred": (lambda: compiled(layers.Dense(4), Centred(), layers.Dense(3)), "mixes examples"),
    "centred inputs": (lambda: compiled(Centred(), layers.Dense(3)), "mixes examples"),
    "statistics": (lambda: compiled(layers.Dense(4), Statistics(), layers.Dense(3)), "mixes examples"),
    "from zeros": (
        lambda: compiled(Centred(), layers.Dense(3, kernel_initializer="zeros")),
        "mixes examples",
    ),
    "summed": (lambda: compiled(layers.Dense(4), Summed(), layers.Dense(3)), "mixes examples"),
    "neighbours": (lambda: compiled(layers.Dense(4), Neighbours(), layers.Dense(3)), "mixes examples"),
    "gate": (lambda: compiled(layers.Dense(4), Gate(), layers.Dense(3)), "mixes examples"),
    "balanced": (lambda: compiled(loss=balanced), "mixes examples"),
    "every label with every output": (lambda: compiled(loss=every_pair), "mixes examples"),
    "by their number": (lambda: compiled(ByTheirNumber(), layers.Dense(3)), "or on their number"),
    "shared out": (lambda: compiled(loss=shared_out), "or on their number"),
    "hidden": (lambda: compiled(Hidden(), layers.Dense(3)), "without noise"),
    "lies": (lambda: compiled(Lies(3)), "per-example gradients of .* differ from TensorFlow's"),
    "other outputs": (lambda: compiled(OtherOutputs(3)), "call_tapped and call compute different outputs"),
    "own step": (own_step, "overrides train_step"),
    "partly built": (partly_built, "was not built completely"),
    "running": (lambda: compiled(Running(), layers.Dense(3)), "without noise"),
    "noisy": (lambda: compiled(Noisy(), layers.Dense(3)), "per-example gradients of .* differ from TensorFlow's"),
    "borrowed": (borrowed, "per-example gradients of .* differ from TensorFlow's"),
    "regularised": (lambda: compiled(layers.Dense(3, kernel_regularizer="l2")), "regularisation"),
    "two outputs": (two_outputs, "several losses"),
    "two outputs of one loss": (two_outputs_of_one_loss, "several outputs"),
    "uncompiled": (uncompiled, "not compiled"),
    "frozen": (frozen, "no weights to train"),
    "sum": (
        lambda: compiled(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")),
        "reduction 'sum'",
    ),
    "one loss": (lambda: compiled(loss=lambda y, outputs: tf.reduce_mean(outputs)), "one number|one for each"),
    "half": (lambda: compiled(layers.Dense(3, dtype="mixed_bfloat16")), "float32 is needed"),
}


@pytest.mark.parametrize("name", MODELS)
def test_fit_refuses_models_in_which_clipping_does_not_protect(name, tmp_path):
    build, message = MODELS[name]
    model = build()
    before = model.get_weights()
    with Releases.open(tmp_path / "ledger.jsonl", Budget(epsilon=100.0, delta=1e-5)) as ledger:
        with pytest.raises(ValueError, match=message) as error:
            settings().fit(model, *examples(), ledger=ledger)
        assert ledger.releases == []
    assert "\n" not in str(error.value)
    for after, expected in zip(model.get_weights(), before, strict=False):  # "partly built" has more weights now
        np.testing.assert_array_equal(after, expected)


def test_fit_refuses_a_model_that_mixes_integer_inputs():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (20, 4)).astype(np.uint8), generator.integers(0, 3, 20)
    model = keras.Sequential([keras.Input((4,), dtype="uint8"), ByTheLargest(), layers.Dense(3)])
    model.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match="mixes examples"):
        settings().fit(model, x, y)


@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", keras.losses.MeanSquaredError()])
def test_fit_pairs_labels_without_a_last_axis_with_their_own_outputs(loss):
    """Keras compares an example's label with its own output only."""
    x, y = examples()
    weights = []
    for labels in (y.astype(np.float32), y.astype(np.float32)[:, np.newaxis]):
        model = compiled(layers.Dense(1), loss=loss)
        settings(clip_norm=0.1, noise_multiplier=0.0).fit(model, x, labels)
        weights.append(model.get_weights())
    for without_axis, with_axis in zip(*weights, strict=True):
        np.testing.assert_array_equal(without_axis, with_axis)


@pytest.mark.parametrize("name", ["group normalisation", "function", "string"])
def test_fit_accepts_group_normalisation_and_losses_given_as_function_or_string(name):
    builders = {
        "group normalisation": lambda: compiled(layers.Dense(8), layers.GroupNormalization(2), layers.Dense(3)),
        "function": lambda: compiled(loss=lambda y, outputs: tf.reduce_sum(outputs**2, -1)),
        "string": lambda: compiled(layers.Dense(3, "softmax"), loss="sparse_categorical_crossentropy"),
    }
    settings().fit(builders[name](), *examples())
