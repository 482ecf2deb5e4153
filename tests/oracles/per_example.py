"""Per-example gradients of a Keras model, one example after the other: slow and obviously right."""

import numpy as np
import tensorflow as tf


def gradients(model, loss, x, y):
    """For each example, the gradient of its loss (mean over positions) for each of the model's weights."""
    weights = [w if isinstance(w, tf.Variable) else w.value for w in model.trainable_weights]
    found = []
    for i in range(len(y)):
        alone = tf.nest.map_structure(lambda part, i=i: tf.convert_to_tensor(part[i : i + 1]), x)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(y[i : i + 1], model(alone, training=True)))
        one = tape.gradient(value, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        found.append([tf.convert_to_tensor(part).numpy().astype(np.float64) for part in one])
    return found


def clipped_sum(each, clip):
    """Of gradients as above: each over its own norm where that is above the clip norm."""
    total = [np.zeros_like(part) for part in each[0]]
    for parts in each:
        norm = np.sqrt(sum(np.square(part).sum() for part in parts))
        factor = min(1.0, clip / norm) if norm > 0 else 1.0
        total = [sum_ + factor * part for sum_, part in zip(total, parts, strict=True)]
    return total
