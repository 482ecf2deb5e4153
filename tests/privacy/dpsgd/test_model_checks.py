"""Models in which clipping protects nobody are refused, before the ledger and with their weights as they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from privacy import Budget, Releases
from tests.privacy.dpsgd.keras_training import CROSS_ENTROPY, compiled, examples, settings


class Centred(layers.Layer):
    """Takes the batch's mean off: examples do not stay apart."""

    def call(self, inputs):
        return inputs - tf.reduce_mean(inputs, 0, keepdims=True)


class Running(layers.Layer):
    """Keeps what it has seen."""

    def build(self, input_shape):
        self.seen = self.add_weight(name="seen", shape=(), trainable=False, initializer=keras.initializers.Zeros())
        self.built = True

    def call(self, inputs):
        self.seen.assign_add(tf.reduce_sum(inputs))
        return inputs


class Noisy(layers.Layer):
    """Weights and randomness in one layer."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(4,), initializer=keras.initializers.Ones())
        self.built = True

    def call(self, inputs):
        return tf.nn.dropout(inputs, 0.5) * self.scale


def borrowed():
    """A weight used outside its layer."""
    inputs = keras.Input((4,))
    dense = layers.Dense(4)
    hidden = dense(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Lambda(lambda value: tf.matmul(value, dense.kernel))(hidden)))
    model.compile("sgd", CROSS_ENTROPY)
    return model


class ByTheLargest(layers.Layer):
    """Divides by the batch's largest number, whatever the type of the inputs."""

    def call(self, inputs):
        values = tf.cast(inputs, tf.float32)
        return values / tf.reduce_max(values)


class Statistics(layers.Layer):
    """The batch's spread, without a gradient."""

    def call(self, inputs):
        return inputs / (1 + tf.stop_gradient(tf.math.reduce_std(inputs, 0)))


class Summed(layers.Layer):
    """Only what comes later depends on what comes before."""

    def call(self, inputs):
        return tf.cumsum(inputs, axis=0)


class Neighbours(layers.Layer):
    """Each with the next."""

    def call(self, inputs):
        return inputs + tf.roll(inputs, 1, axis=0)


class Gate(layers.Layer):
    """Mixes behind a gate that is shut at first."""

    def build(self, input_shape):
        self.gate = self.add_weight(name="gate", shape=(), initializer=keras.initializers.Zeros())
        self.built = True

    def call(self, inputs):
        return inputs + self.gate * tf.reduce_mean(inputs, 0, keepdims=True)


class Hidden(layers.Layer):
    """Keeps what it has seen where Keras does not look."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = [tf.Variable(0.0, trainable=False)]

    def call(self, inputs):
        self.seen[0].assign_add(tf.reduce_sum(inputs))
        return inputs


class Lies(layers.Dense):
    """Spreads each gradient over the batch: only the sum is right."""

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
    """Weighted by how rare a label is in the batch."""
    same = tf.equal(tf.reshape(y, [-1, 1]), tf.reshape(y, [1, -1]))
    rare = 1 / tf.reduce_mean(tf.cast(same, tf.float32), 1)
    return rare * keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)


def everybodys(y, outputs):
    """[B] - [B, 1]: every label with every output."""
    return tf.reduce_mean(tf.square(tf.cast(y, tf.float32)[:, tf.newaxis, tf.newaxis] - outputs), [0, 2])


class ByTheirNumber(layers.Layer):
    """Shares something out among all examples there are."""

    def call(self, inputs):
        return inputs / tf.sqrt(tf.cast(tf.shape(inputs)[0], inputs.dtype))


def shared_out(y, outputs):
    """A mean over the batch, taken before there is one."""
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
    "batch normalisation": (lambda: compiled(layers.BatchNormalization(), layers.Dense(3)), "mixes examples|keeps"),
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
    "everybody's labels": (lambda: compiled(loss=everybodys), "mixes examples"),
    "by their number": (lambda: compiled(ByTheirNumber(), layers.Dense(3)), "or on their number"),
    "shared out": (lambda: compiled(loss=shared_out), "or on their number"),
    "hidden": (lambda: compiled(Hidden(), layers.Dense(3)), "without noise"),
    "lies": (lambda: compiled(Lies(3)), "does not follow from its layer's calls"),
    "other outputs": (lambda: compiled(OtherOutputs(3)), "something else than its call"),
    "own step": (own_step, "train_step of its own"),
    "partly built": (partly_built, "was not built whole"),
    "running": (lambda: compiled(Running(), layers.Dense(3)), "without noise"),
    "noisy": (lambda: compiled(Noisy(), layers.Dense(3)), "does not follow from its layer's calls"),
    "borrowed": (borrowed, "does not follow from its layer's calls"),
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
def test_models_that_cannot_be_private_are_refused(name, tmp_path):
    make, line = MODELS[name]
    model = make()
    before = model.get_weights()
    with Releases.open(tmp_path / "ledger.jsonl", Budget(epsilon=100.0, delta=1e-5)) as ledger:
        with pytest.raises(ValueError, match=line) as error:
            settings().fit(model, *examples(), ledger=ledger)
        assert ledger.releases == []
    assert "\n" not in str(error.value)
    for part, same in zip(model.get_weights(), before, strict=False):  # more where it was not built whole
        np.testing.assert_array_equal(part, same)


def test_whole_numbers_do_not_hide_a_mixture():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (20, 4)).astype(np.uint8), generator.integers(0, 3, 20)
    model = keras.Sequential([keras.Input((4,), dtype="uint8"), ByTheLargest(), layers.Dense(3)])
    model.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match="mixes examples"):
        settings().fit(model, x, y)


@pytest.mark.parametrize("loss", ["mse", "mean_absolute_error", keras.losses.MeanSquaredError()])
def test_labels_without_an_axis_for_one_output(loss):
    """As Keras has it: the label of an example goes with its own output alone."""
    x, y = examples()
    found = []
    for labels in (y.astype(np.float32), y.astype(np.float32)[:, np.newaxis]):
        model = compiled(layers.Dense(1), loss=loss)
        settings(clip_norm=0.1, noise_multiplier=0.0).fit(model, x, labels)
        found.append(model.get_weights())
    for part, same in zip(*found, strict=True):
        np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("name", ["group normalisation", "function", "string"])
def test_models_that_can(name):
    made = {
        "group normalisation": lambda: compiled(layers.Dense(8), layers.GroupNormalization(2), layers.Dense(3)),
        "function": lambda: compiled(loss=lambda y, outputs: tf.reduce_sum(outputs**2, -1)),
        "string": lambda: compiled(layers.Dense(3, "softmax"), loss="sparse_categorical_crossentropy"),
    }
    settings().fit(made[name](), *examples())
