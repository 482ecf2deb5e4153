"""Tests on synthetic data whether a task can train clients stacked, since no rule decides this for every model."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from fl.local_training import Task, Weights

_TOLERANCE = 1e-3  # relative to the largest entry: a wrong result is off by much more, float32 rounding by much less
_ROUNDING = 1e-6  # relative to the largest entry of all gradients


def why_not_stacked(task: Task, weights: Weights) -> str | None:
    """Returns in one line why stacked clients differ from the same clients trained alone; None if they do not.

    It compares the losses and gradients of three clients, whose batches of 3 rows have 3, 2 and 0 real rows. This
    detects a wrong treatment of padding, and operations that cannot be vectorised.

    Args:
      task: the task; its `loss` is called with a client axis, whatever `stacks` says.
      weights: a model's weights, without a client axis.
    """
    generator = np.random.default_rng(0)
    names, size, real = list(weights), 3, np.array([3, 2, 0], np.int32)

    def draw_synthetic(spec: tf.TensorSpec) -> np.ndarray:
        shape = (len(real), size, *spec.shape)
        values = generator.integers(0, 2, shape) if spec.dtype.is_integer else generator.normal(size=shape)
        # As in `client_update`, a client's padding repeats its last row.
        own = np.minimum(np.arange(size), np.maximum(real - 1, 0).reshape(-1, 1))
        return values[np.arange(len(real)).reshape(-1, 1), own].astype(spec.dtype.as_numpy_dtype)

    batch = tf.nest.map_structure(draw_synthetic, task.example)

    @tf.function(autograph=False)
    def compute_gradients(values: list[Any], batch: Any, rows: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = task.loss(dict(zip(names, values, strict=True)), batch, rows).total
        gradients = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [total, *map(tf.convert_to_tensor, gradients)]

    with _quiet():
        try:
            stacked = [np.repeat(weights[name][np.newaxis], len(real), 0) for name in names]
            together = compute_gradients(stacked, batch, real)
        except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
            return short(error)
        for client, rows in enumerate(real):
            own = tf.nest.map_structure(lambda array, client=client, rows=rows: array[client, :rows], batch)
            values = [weights[name] for name in names]
            alone = compute_gradients(values, own, rows) if rows else [np.float32(0), *map(np.zeros_like, values)]
            # A gradient that is 0 in theory consists of rounding errors, which differ between the two ways.
            rounding = _ROUNDING * max(float(np.max(np.abs(one))) for one in alone[1:])
            for one, many in zip(alone, together, strict=True):
                if not np.max(np.abs(many[client] - one)) <= max(_TOLERANCE * np.max(np.abs(one)), rounding):
                    return "a client's loss or gradient changes when it is padded to the length of others"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the long messages that TensorFlow logs about an operation that it cannot vectorise."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def short(error: Exception) -> str:
    """Returns the one line of TensorFlow's long error message that says what is wrong."""
    if match := re.search(r"No pfor vectorization defined for (\w+)", str(error)):
        return f"operation {match[1]} cannot be vectorised"
    return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
