"""The tied embedding and the output layer of a language model, made for training."""

from typing import Any

import tensorflow as tf

PAD = 0
_SMALLEST_PROBABILITY = 1e-30
"""From here on a float32 has all its digits, so that its logarithm is the loss."""


def tied(embedding: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Looks up rows of an embedding that is also the output layer.

    Args:
      embedding: `[(U,) V, E]`.
      ids: int32 `[(U,) ...]`.

    Returns:
      (rows `[(U,) ..., E]`, the embedding to use as output layer). The gradient is one dense tensor, that of the output
      layer, to which the rows' are added in place.
    """

    @tf.custom_gradient
    def run(embedding: tf.Tensor) -> Any:
        size = embedding.shape[-1]
        flat, positions = tf.reshape(embedding, [-1, size]), ids
        if embedding.shape.rank == 3:
            users = tf.range(tf.shape(ids)[0]) * embedding.shape[-2]
            positions += tf.reshape(users, [-1] + [1] * (ids.shape.rank - 1))

        def gradient(d_rows: tf.Tensor, d_table: tf.Tensor) -> tf.Tensor:
            added = tf.tensor_scatter_nd_add(
                tf.reshape(d_table, [-1, size]), tf.reshape(positions, [-1, 1]), tf.reshape(d_rows, [-1, size])
            )
            return tf.reshape(added, tf.shape(embedding))

        return (tf.gather(flat, positions), tf.identity(embedding)), gradient

    rows, table = run(embedding)
    return rows, table


def sums(
    outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor, with_correct: bool
) -> list[tf.Tensor]:
    """The sum of `cross_entropy` over the targets that are not PAD, float [] or [U]; and how many of these are the
    likeliest of their logits, if asked for.

    Rows without a target are left out before the product with the table (with a user axis only of the sum). Not for
    XLA: their number is that of the data.
    """
    if table.shape.rank == 3:
        real = tf.not_equal(targets, PAD)
        # Not times 0: what a diverged user's padding gives may be no number.
        outputs = tf.where(real[..., tf.newaxis], outputs, tf.zeros([], outputs.dtype))
        found = _found(outputs, table, bias, targets, with_correct)
        found = [tf.where(real, part, tf.zeros([], part.dtype)) for part in found]
        return [tf.reduce_sum(part, axis=[*range(1, targets.shape.rank)]) for part in found]
    real = tf.where(tf.not_equal(targets, PAD))
    found = _found(tf.gather_nd(outputs, real), table, bias, tf.gather_nd(targets, real), with_correct)
    return [tf.reduce_sum(part) for part in found]


def cross_entropy(outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor) -> tf.Tensor:
    """Negative log-softmax of each target, in nats, of the logits outputs · tableᵀ + bias.

    Args:
      outputs: float `[(U,) ..., E]`.
      table: `[(U,) V, E]`.
      bias: `[(U,) V]`, or None.
      targets: int32 `[(U,) ...]`.

    Returns:
      `[(U,) ...]`, the shape of targets; never negative. A loss is exact to a few units of rounding of 1 or of itself,
      whichever is larger: that of a certain target is 0 or as good as 0.
    """
    return _found(outputs, table, bias, targets, with_correct=False)[0]


def _found(
    outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor, with_correct: bool
) -> list[tf.Tensor]:
    """The losses and, if asked for, 1 where the target is the likeliest: each of the shape of targets."""
    lead = [tf.shape(table)[0]] if table.shape.rank == 3 else []
    rows = tf.reshape(outputs, [*lead, -1, outputs.shape[-1]])
    found = _of_rows(rows, table, bias, tf.reshape(targets, [*lead, -1]), with_correct)
    return [tf.reshape(part, tf.shape(targets)) for part in found]


def _of_rows(
    outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor, with_correct: bool
) -> list[tf.Tensor]:
    """Outputs `[(U,) N, E]`, targets `[(U,) N]` -> each `[(U,) N]`.

    Written out because TensorFlow's own op takes 2.5 times as long on CPU, and because the logits' gradient is scaled
    by row in the small factors of its products, never in itself.
    """

    @tf.custom_gradient
    def run(outputs: tf.Tensor, table: tf.Tensor, *bias: tf.Tensor) -> Any:
        logits = tf.matmul(outputs, table, transpose_b=True)
        if bias:
            logits += bias[0][..., tf.newaxis, :]
        vocabulary = logits.shape[-1]
        rows = tf.reshape(targets, [-1])
        positions = tf.stack([tf.range(tf.size(rows)), rows], axis=1)
        softmax = tf.nn.softmax(logits)

        def at_targets(values: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tf.gather_nd(tf.reshape(values, [-1, vocabulary]), positions), tf.shape(targets))

        probability = at_targets(softmax)
        # Some kernels multiply by an approximate reciprocal, so that the probability of a certain target is next to 1.
        losses, exact = -tf.math.log(tf.minimum(probability, 1.0)), probability > _SMALLEST_PROBABILITY
        losses = tf.cond(
            tf.reduce_all(exact),
            lambda: losses,
            lambda: tf.where(exact, losses, tf.reduce_logsumexp(logits, axis=-1) - at_targets(logits)),
        )

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> Any:
            flat = tf.reshape(softmax, [-1, vocabulary])
            error = tf.tensor_scatter_nd_sub(flat, positions, tf.ones_like(rows, logits.dtype))
            error = tf.reshape(error, tf.shape(logits))
            weight = upstream[..., tf.newaxis]
            d_outputs = weight * tf.matmul(error, table)
            d_table = tf.matmul(error, weight * outputs, transpose_a=True)
            d_bias = [tf.matmul(error, weight, transpose_a=True)[..., 0] for _ in bias]
            return d_outputs, d_table, *d_bias

        if not with_correct:
            return losses, gradient
        correct = tf.cast(tf.equal(tf.argmax(softmax, -1, targets.dtype), targets), losses.dtype)
        return (losses, correct), gradient

    result = run(outputs, table, *([] if bias is None else [bias]))
    return list(result) if with_correct else [result]
