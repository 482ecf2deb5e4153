"""Runs the tasks of `bench dp-step` in fedspeak: `LinearDPSGD` for "linear", the step of `KerasDPSGD` for others."""

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from experiments.bench.peers.dp_common import CLIP, LEARNING_RATE, Loop, Task, main
from privacy.linear.linear_dpsgd import LinearDPSGD


def build(task: Task, noise_multiplier: float | None) -> Loop:
    """Builds the training loop of a task; a noise multiplier of None means plain steps."""
    return (_linear if task.name == "linear" else _keras)(task, noise_multiplier)


def _linear(task: Task, noise_multiplier: float | None) -> Loop:
    """Builds a loop with `LinearDPSGD`, whose Poisson sampling and checks before the first step are timed too.

    With a noise multiplier of 0, which is for the comparison of gradients, each step takes the whole first batch.
    """
    batch, private = task.x.shape[1], noise_multiplier is not None
    x, y = task.x.reshape(-1, task.x.shape[2]), task.y.reshape(-1)
    if noise_multiplier == 0:
        x, y = task.x[0], task.y[0]
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    generator, weights = np.random.default_rng(1), np.zeros((x.shape[1], task.weights["bias"].size), np.float32)

    def run(steps: int) -> None:
        training = LinearDPSGD(
            steps,
            sampling_probability=batch / len(x),
            expected_batch=batch,
            clip_norm=CLIP if private else math.inf,
            noise_multiplier=noise_multiplier or 0.0,
            # `LinearDPSGD` divides the gradient by the clip norm.
            learning_rate=LEARNING_RATE * (CLIP if private else 1.0),
            momentum=0.0,
        )
        weights[:] = training.train(x, y, weights.shape[1], generator)

    return Loop(run, lambda: [weights.copy()])


def _keras(task: Task, noise_multiplier: float | None) -> Loop:
    """Builds a loop for a model of Keras' own layers; a step reads its examples by row numbers, as `fit` does."""
    model = _model(task)
    step = _plain_step(model, task) if noise_multiplier is None else _private_step(model, task, noise_multiplier)

    def run(steps: int) -> None:
        for number in range(steps):
            step(number % len(task.x))
        model.trainable_variables[-1].numpy()

    return Loop(run, lambda: [np.array(value) for value in model.get_weights()])


def _private_step(model: Any, task: Task, noise_multiplier: float) -> Callable[[int], None]:
    from privacy.dpsgd.examples import checked_examples
    from privacy.dpsgd.step import PrivateStep

    batch = task.x.shape[1]
    data = checked_examples(*(part.reshape(-1, *part.shape[2:]) for part in (task.x, task.y)))
    step = PrivateStep(model, CLIP, noise_multiplier, float(batch), data)
    return lambda number: step(data, np.arange(number * batch, (number + 1) * batch), None)


def _plain_step(model: Any, task: Task) -> Callable[[int], None]:
    import tensorflow as tf

    x, y = task.x.reshape(-1, *task.x.shape[2:]), task.y.reshape(-1, *task.y.shape[2:])
    batch = task.x.shape[1]

    @tf.function(autograph=False)
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = model.loss(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def run(number: int) -> None:
        rows = np.arange(number * batch, (number + 1) * batch)
        step(tf.convert_to_tensor(x[rows]), tf.convert_to_tensor(y[rows]))

    return run


def _model(task: Task) -> Any:
    import keras

    weights, layers = task.weights, keras.layers
    if task.name == "lstm":
        vocabulary, embedding = weights["embedding"].shape
        stack = [
            keras.Input((task.x.shape[2],), dtype="int32"),
            layers.Embedding(vocabulary, embedding),
            layers.LSTM(weights["recurrent_kernel"].shape[0], return_sequences=True),
            layers.Dense(vocabulary),
        ]
    else:
        sizes = [value.size for name, value in weights.items() if name.endswith("bias")]
        stack = [keras.Input((task.x.shape[2],)), *(layers.Dense(size, "relu") for size in sizes[:-1])]
        stack.append(layers.Dense(sizes[-1]))
    model = keras.Sequential(stack)
    model.set_weights(list(weights.values()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LEARNING_RATE), loss)
    return model


if __name__ == "__main__":
    main("fedspeak", version("fedspeak"), build)
