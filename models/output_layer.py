"""Implements the tied embedding and the output layer of a language model, with fast gradients for training.

Shapes that begin with `(U,)` may have a leading client axis of size U. All tensors of a call have it, or none has it.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

PAD = 0
_SMALLEST_PROBABILITY = 1e-30
"""Above this, a float32 probability has full precision, so its negative logarithm is accurate enough as the loss."""


def tied(embedding: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Looks up rows of an embedding that is also the output layer.

    Args:
      embedding: `[(U,) V, E]`.
      ids: int32 `[(U,) ...]`.

    Returns:
      The rows `[(U,) ..., E]`, and the embedding to use as the output layer. The gradient with respect to `embedding`
      is one dense tensor: the gradient of the output layer, to which the gradients of the rows are added in place.
    """

    @tf.custom_gradient
    def run(embedding: tf.Tensor) -> Any:
        size = embedding.shape[-1]
        flat, positions = tf.reshape(embedding, [-1, size]), ids
        if embedding.shape.rank == 3:
            client_offsets = tf.range(tf.shape(ids)[0]) * embedding.shape[-2]
            positions += tf.reshape(client_offsets, [-1] + [1] * (ids.shape.rank - 1))

        def gradient(d_rows: tf.Tensor, d_table: tf.Tensor) -> tf.Tensor:
            d_embedding = tf.tensor_scatter_nd_add(
                tf.reshape(d_table, [-1, size]), tf.reshape(positions, [-1, 1]), tf.reshape(d_rows, [-1, size])
            )
            return tf.reshape(d_embedding, tf.shape(embedding))

        return (tf.gather(flat, positions), tf.identity(embedding)), gradient

    rows, table = run(embedding)
    return rows, table


def sums(
    outputs: tf.Tensor,
    table: tf.Tensor,
    bias: tf.Tensor | None,
    targets: tf.Tensor,
    with_correct: bool,
    clients: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Returns the sum of `cross_entropy` over the targets that are not PAD, for each client if there is a client axis.

    Without a client axis, rows whose target is PAD are dropped before the matrix product with the table. Their number
    depends on the data, so this case does not compile under XLA. With a client axis, the losses of rows whose target is
    PAD are computed too, but they are left out of the sum.

    Args:
      outputs: as for `cross_entropy`.
      table: as for `cross_entropy`.
      bias: as for `cross_entropy`.
      targets: as for `cross_entropy`; PAD is padding.
      with_correct: whether to return also the number of targets that have the largest logit of their row.
      clients: the number U of clients if outputs and targets have a client axis and the table has none, else None.

    Returns:
      [loss sum], or with `with_correct` [loss sum, number of correct targets]. Each is a float `[]`, or `[U]` with a
      leading client axis. The loss is in nats.
    """
    if table.shape.rank == 3:
        real = tf.not_equal(targets, PAD)
        # tf.where instead of a product with 0: a diverged client may have NaN in its padding, and 0 times NaN is NaN.
        outputs = tf.where(real[..., tf.newaxis], outputs, tf.zeros([], outputs.dtype))
        parts = _losses(outputs, table, bias, targets, with_correct)
        parts = [tf.where(real, part, tf.zeros([], part.dtype)) for part in parts]
        return [tf.reduce_sum(part, axis=[*range(1, targets.shape.rank)]) for part in parts]
    real = tf.where(tf.not_equal(targets, PAD))
    parts = _losses(tf.gather_nd(outputs, real), table, bias, tf.gather_nd(targets, real), with_correct)
    if clients is not None:
        return [tf.math.unsorted_segment_sum(part, real[:, 0], clients) for part in parts]
    return [tf.reduce_sum(part) for part in parts]


def sums_in_turn(
    outputs: Sequence[tf.Tensor],
    table: tf.Tensor,
    bias: tf.Tensor | None,
    targets: Sequence[tf.Tensor],
    with_correct: bool,
    is_constant: bool = False,
    clients: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Returns the loss of `sums`, added up over several outputs of one layer.

    The outputs are computed one after another, each with its gradient, so that the logits and softmax of one output at
    a time are in memory, not those of all until the gradient is taken.

    Args:
      outputs: the vectors of each output, as for `cross_entropy`.
      table: as for `cross_entropy`.
      bias: as for `cross_entropy`.
      targets: the targets of each output, as for `cross_entropy`; PAD is padding.
      with_correct: whether to return also the number of targets of the first output that have the largest logit.
      is_constant: whether table and bias are constants, which have no client axis and get no gradient.
      clients: the number U of clients if outputs and targets have a client axis, else None.

    Returns:
      [loss sum], or with `with_correct` [loss sum, number of correct targets], as `sums` does.
    """
    layer = [] if is_constant else [table] if bias is None else [table, bias]

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> Any:
        vectors, trained = inputs[: len(outputs)], inputs[len(outputs) :]
        own_table, own_bias = (*trained, None)[:2] if trained else (table, bias)
        results: list[list[tf.Tensor]] = []
        of_outputs: list[tf.Tensor] = []
        of_layer: list[tf.Tensor] = []
        for each, ids in zip(vectors, targets, strict=True):
            with tf.control_dependencies([*of_outputs, *of_layer]):
                with tf.GradientTape() as tape:
                    tape.watch([each, *trained])
                    counts = with_correct and not results
                    found = sums(each, own_table, own_bias, ids, counts, clients if is_constant else None)
                    total = tf.reduce_sum(found[0])
                of_output, *added = tape.gradient(total, [each, *trained])
                of_layer = [old + new for old, new in zip(of_layer, added, strict=True)] if results else added
            of_outputs.append(of_output)
            results.append(found)

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            scale = [upstream] * (len(outputs) + len(layer))
            gradients = [*of_outputs, *of_layer]
            if clients is not None:
                scale = [tf.reshape(upstream, [-1, *[1] * (value.shape.rank - 1)]) for value in gradients]
            return [factor * value for factor, value in zip(scale, gradients, strict=True)]

        return [tf.add_n([found[0] for found in results]), *results[0][1:]], gradient

    return list(run(*outputs, *layer))


def cross_entropy(outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor) -> tf.Tensor:
    """Returns the negative log-softmax of each target, in nats, for the logits outputs · tableᵀ + bias.

    Args:
      outputs: float `[(U,) ..., E]`.
      table: the output embedding, `[(U,) V, E]`.
      bias: `[(U,) V]`; None for no bias.
      targets: int32 `[(U,) ...]`.

    Returns:
      `[(U,) ...]`, the shape of targets; never negative. The error of a loss is at most a few rounding units of
      max(1, loss). So the loss of a target of probability 1 is 0, or as small as a rounding error.
    """
    return _losses(outputs, table, bias, targets, with_correct=False)[0]


def _losses(
    outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor, with_correct: bool
) -> list[tf.Tensor]:
    """Returns the losses and, with `with_correct`, 1 where the target has the largest logit; both shaped as targets."""
    lead = [tf.shape(table)[0]] if table.shape.rank == 3 else []
    rows = tf.reshape(outputs, [*lead, -1, outputs.shape[-1]])
    parts = _row_losses(rows, table, bias, tf.reshape(targets, [*lead, -1]), with_correct)
    return [tf.reshape(part, tf.shape(targets)) for part in parts]


def _row_losses(
    outputs: tf.Tensor, table: tf.Tensor, bias: tf.Tensor | None, targets: tf.Tensor, with_correct: bool
) -> list[tf.Tensor]:
    """Computes `_losses` for outputs `[(U,) N, E]` and targets `[(U,) N]`; each result is `[(U,) N]`.

    Loss and gradient are written by hand for two reasons. TensorFlow's own op takes 2.5 times as long on CPU. And here
    the upstream gradient multiplies the small factors of the matrix products, not the large `[N, V]` gradient of the
    logits.
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
        # Some softmax kernels multiply by an approximate reciprocal. A probability of 1 can then come out slightly
        # above 1, and without the minimum its loss would be negative.
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
