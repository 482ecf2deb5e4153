"""The language model of the bench: embedding, LSTM, linear projection, output layer; on the kernels of `models`."""

from typing import Any

import numpy as np


def lstm_weights(vocabulary: int, embedding: int, units: int) -> dict[str, np.ndarray]:
    """Small random weights; "output_table" `[V, E]` is the output layer's kernel, a row a word."""
    shapes = {
        "bias": (4 * units,),
        "embedding": (vocabulary, embedding),
        "kernel": (embedding, 4 * units),
        "output_bias": (vocabulary,),
        "output_table": (vocabulary, embedding),
        "projection_bias": (embedding,),
        "projection_kernel": (units, embedding),
        "recurrent_kernel": (units, 4 * units),
    }
    generator = np.random.default_rng(0)
    return {name: 0.05 * generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def lstm_loss_sum(weights: dict[str, Any], tokens: Any) -> Any:
    """int32 [B, T+1] -> float32 []: the sum of the losses in nats where the target is not padding (id 0)."""
    import tensorflow as tf

    from models import lstm, output_layer
    from models.cifg import matmul_rows

    ids = tf.transpose(tokens)
    inputs, targets = ids[:-1], ids[1:]
    projected = matmul_rows(tf.gather(weights["embedding"], inputs), weights["kernel"]) + weights["bias"]
    hidden = lstm.outputs(projected, weights["recurrent_kernel"])
    # Only what has a target is projected, as in models.output_layer.loss_sum.
    real = tf.where(tf.not_equal(targets, 0))
    outputs = tf.gather_nd(hidden, real) @ weights["projection_kernel"] + weights["projection_bias"]
    losses = output_layer.cross_entropy(
        outputs, weights["output_table"], weights["output_bias"], tf.gather_nd(targets, real)
    )
    return tf.reduce_sum(losses)
