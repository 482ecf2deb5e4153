"""Runs the tasks of `bench dp-step` in TensorFlow Privacy: a Jacobian gives its optimizer per-example gradients."""

from importlib.metadata import version
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_privacy import VectorizedDPKerasSGDOptimizer

from experiments.bench.peers.dp_common import CLIP, LEARNING_RATE, Loop, Task, main


def _model(task: Task) -> Any:
    weights, layers = task.weights, tf.keras.layers
    if task.name == "lstm":
        vocabulary, embedding = weights["embedding"].shape
        model = tf.keras.Sequential(
            [
                layers.Embedding(vocabulary, embedding),
                layers.LSTM(weights["recurrent_kernel"].shape[0], return_sequences=True),
                layers.Dense(vocabulary),
            ]
        )
    else:
        sizes = [value.size for name, value in weights.items() if name.endswith("bias")]
        model = tf.keras.Sequential([*(layers.Dense(size, "relu") for size in sizes[:-1]), layers.Dense(sizes[-1])])
    model.build((task.x.shape[1], task.x.shape[2]))
    model.set_weights(list(weights.values()))
    return model


def build(task: Task, noise_multiplier: float | None) -> Loop:
    """Builds a loop with one graph per step; there is one microbatch per example, so that each is clipped alone."""
    model, batch = _model(task), task.x.shape[1]
    if noise_multiplier is None:
        optimizer = tf.keras.optimizers.legacy.SGD(LEARNING_RATE)
    else:
        optimizer = VectorizedDPKerasSGDOptimizer(CLIP, noise_multiplier, batch, learning_rate=LEARNING_RATE)
    x, y = [tf.constant(part) for part in task.x], [tf.constant(part) for part in task.y]

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape(persistent=noise_multiplier is not None) as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True))
            losses = tf.reduce_mean(tf.reshape(losses, [batch, -1]), axis=1)
            if noise_multiplier is None:
                losses = tf.reduce_mean(losses)
        optimizer.minimize(losses, model.trainable_variables, tape=tape)

    def run(steps: int) -> None:
        for number in range(steps):
            step(x[number % len(x)], y[number % len(x)])
        model.trainable_variables[-1].numpy()

    return Loop(run, lambda: [np.array(value) for value in model.get_weights()])


if __name__ == "__main__":
    main("TensorFlow Privacy", version("tensorflow-privacy"), build)
