"""Whether a task can train users stacked: tried on made-up data, since no rule tells it of any model."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from fl.local_training import Task, Weights

_TOLERANCE = 1e-3  # of the largest entry: a wrong rule is off by much more, float32 by much less
_ROUNDING = 1e-6  # of the largest entry of all gradients


def why_not_stacked(task: Task, weights: Weights) -> str | None:
    """Why stacked users are not what each is alone, in one line; None if they are.

    Losses and gradients are compared for three users with 3, 2 and 0 rows of 3: what is wrong about padding, or about
    operations that cannot be vectorised, shows.

    Args:
      task: its `loss` is called with a user axis, whatever `stacks` says.
      weights: a model's, without a user axis.
    """
    generator = np.random.default_rng(0)
    names, size, real = list(weights), 3, np.array([3, 2, 0], np.int32)

    def made_up(spec: tf.TensorSpec) -> np.ndarray:
        shape = (len(real), size, *spec.shape)
        values = generator.integers(0, 2, shape) if spec.dtype.is_integer else generator.normal(size=shape)
        # As `client_update` gives them: a user's padding is its last row.
        own = np.minimum(np.arange(size), np.maximum(real - 1, 0).reshape(-1, 1))
        return values[np.arange(len(real)).reshape(-1, 1), own].astype(spec.dtype.as_numpy_dtype)

    batch = tf.nest.map_structure(made_up, task.example)

    @tf.function(autograph=False)
    def trained(values: list[Any], batch: Any, rows: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = task.loss(dict(zip(names, values, strict=True)), batch, rows).total
        gradients = tape.gradient(total, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [total, *map(tf.convert_to_tensor, gradients)]

    with _quiet():
        try:
            together = trained([np.repeat(weights[name][np.newaxis], len(real), 0) for name in names], batch, real)
        except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
            return short(error)
        for user, rows in enumerate(real):
            own = tf.nest.map_structure(lambda array, user=user, rows=rows: array[user, :rows], batch)
            values = [weights[name] for name in names]
            alone = trained(values, own, rows) if rows else [np.float32(0), *map(np.zeros_like, values)]
            # A gradient that is 0 in theory is rounding, here and there another.
            least = _ROUNDING * max(float(np.max(np.abs(one))) for one in alone[1:])
            for one, many in zip(alone, together, strict=True):
                if not np.max(np.abs(many[user] - one)) <= max(_TOLERANCE * np.max(np.abs(one)), least):
                    return "padded to the length of others, a client's loss or gradient is another"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the pages that TensorFlow logs of an operation that it cannot vectorise."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def short(error: Exception) -> str:
    """The line of TensorFlow's pages that says what is wrong; of what cannot be vectorised, the operation."""
    if found := re.search(r"No pfor vectorization defined for (\w+)", str(error)):
        return f"operation {found[1]} cannot be vectorised"
    return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
