"""Computes per-example gradients of a Keras model one example at a time: slow and obviously right."""

import numpy as np
import tensorflow as tf


def gradients(model, loss, x, y):
    """Returns, for each example, the gradient of its loss (the mean over positions) for each of the model's weights."""
    weights = [w if isinstance(w, tf.Variable) else w.value for w in model.trainable_weights]
    each = []
    for i in range(len(y)):
        alone = tf.nest.map_structure(lambda part, i=i: tf.convert_to_tensor(part[i : i + 1]), x)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(y[i : i + 1], model(alone, training=True)))
        one = tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        each.append([tf.convert_to_tensor(part).numpy().astype(np.float64) for part in one])
    return each


def clipped_sum(each, clip):
    """Returns the sum of such gradients, each scaled down to the L2 norm `clip` if its norm is larger."""
    total = [np.zeros_like(part) for part in each[0]]
    for parts in each:
        norm = np.sqrt(sum(np.square(part).sum() for part in parts))
        factor = min(1.0, clip / norm) if norm > 0 else 1.0
        total = [sum_ + factor * part for sum_, part in zip(total, parts, strict=True)]
    return total
