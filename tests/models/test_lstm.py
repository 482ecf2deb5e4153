"""The LSTM's gradient by hand against autodiff of the definition, in float64; its outputs against Keras' layer."""

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
    """One user: [T, B, 4H], [H, 4H] -> [T, B, H], as in Hochreiter and Schmidhuber with the forget gate."""
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
    # Over one step the recurrent kernel takes no part.
    return outputs, *tape.gradient(total, arguments, unconnected_gradients=tf.UnconnectedGradients.ZERO)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_the_gradient_is_that_of_autodiff(steps, batch, users, seed):
    """`users` 0: without the axis."""
    rng, lead = np.random.default_rng(seed), [users] * (users > 0)
    projected, kernel = rng.normal(size=(*lead, steps, batch, 4 * H)), rng.normal(size=(*lead, H, 4 * H))
    upstream = rng.normal(size=(*lead, steps, batch, H))
    found = with_gradients(lstm.outputs, projected, kernel, upstream)
    if users:
        each = [with_gradients(by_definition, *of_user) for of_user in zip(projected, kernel, upstream, strict=True)]
        wanted = [np.stack(parts) for parts in zip(*each, strict=True)]
    else:
        wanted = with_gradients(by_definition, projected, kernel, upstream)
    for ours, law in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, law, rtol=1e-11, atol=1e-12)


def test_the_outputs_are_those_of_keras_layer():
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
