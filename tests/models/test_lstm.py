"""Compares the LSTM's hand-written gradient with autodiff of the definition, and its outputs with Keras' layer."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import lstm
from tests.tolerance import FUNCTION, condition, rounding

pytestmark = pytest.mark.numerical

H = 3


def by_definition(projected, recurrent_kernel):
    """Computes an LSTM with forget gate step by step, without a client axis: [T, B, 4H], [H, 4H] -> [T, B, H]."""
    output = cell = tf.zeros([projected.shape[1], H], projected.dtype)
    outputs = []
    for t in range(projected.shape[0]):
        i, f, g, o = tf.split(projected[t] + output @ recurrent_kernel, 4, axis=-1)
        cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(g)
        output = tf.sigmoid(o) * tf.tanh(cell)
        outputs.append(output)
    return tf.stack(outputs)


def with_gradients(function, projected, kernel, upstream):
    arguments = tf.constant(projected), tf.constant(kernel)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = function(*arguments)
        total = tf.reduce_sum(outputs * upstream)
    # Over one step the result does not depend on the recurrent kernel.
    return outputs, *tape.gradient(total, arguments, unconnected_gradients=tf.UnconnectedGradients.ZERO)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_outputs_equal_autodiff_of_the_definition_in_values_and_gradients(steps, batch, clients, seed):
    """`clients` = 0 means no client axis."""
    rng, lead = np.random.default_rng(seed), [clients] * (clients > 0)
    projected, kernel = rng.normal(size=(*lead, steps, batch, 4 * H)), rng.normal(size=(*lead, H, 4 * H))
    upstream = rng.normal(size=(*lead, steps, batch, H))
    actual = with_gradients(lstm.outputs, projected, kernel, upstream)
    if clients:
        each = [with_gradients(by_definition, *data) for data in zip(projected, kernel, upstream, strict=True)]
        expected = [np.stack(parts) for parts in zip(*each, strict=True)]
    else:
        expected = with_gradients(by_definition, projected, kernel, upstream)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_outputs_equal_those_of_the_keras_layer():
    layer = tf.keras.layers.LSTM(H, return_sequences=True)
    inputs = np.random.default_rng(1).normal(size=(4, 6, 2)).astype(np.float32)
    wanted = layer(inputs)

    def ours(weights):
        kernel, recurrent_kernel, bias = weights.values()
        projected = np.einsum("bte,eg->tbg", inputs, kernel) + bias
        return [tf.transpose(lstm.outputs(tf.constant(projected), recurrent_kernel), [1, 0, 2])]

    weights = dict(enumerate(layer.get_weights()))
    # A step: the products and bias of a gate, its function and that of the cell, the new cell and output.
    within = rounding((2 + H + 1) + 2 * FUNCTION + 4, condition(ours, weights))
    np.testing.assert_allclose(ours(weights)[0], wanted, atol=within)
