"""Holds the benchmarks' models: an LSTM language model, computed with the kernels of `models`, and an image model.

The layers of the language model are an embedding, an LSTM, a linear projection and an output layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from models.transformer.decoder import TransformerLanguageModel


def transformer(weights: dict[str, Any]) -> TransformerLanguageModel:
    """Builds the model of a transformer workload from the shapes of its weights; its heads have 32 entries."""
    from models.transformer.decoder import TransformerLanguageModel

    vocabulary, embedding = weights["embedding"].shape
    blocks = sum(name.endswith(".inner") for name in weights)
    return TransformerLanguageModel(
        vocabulary, embedding, blocks, heads=embedding // 32, feed_forward=weights["block_00.outer"].shape[0]
    )


def lstm_weights(vocabulary: int, embedding: int, units: int) -> dict[str, np.ndarray]:
    """Draws small random weights, float32 by name, always the same ones.

    "output_table" `[V, E]` is the output layer's kernel with one row per word.

    Args:
      vocabulary: number of words V.
      embedding: size E of the embedding and of the projection.
      units: size H of the LSTM.
    """
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


def lstm_token_losses(weights: dict[str, Any], tokens: Any) -> Any:
    """Returns the loss of each target in nats, float32 [B, T], padding included.

    Args:
      weights: as from `lstm_weights`.
      tokens: int32 [B, T+1].
    """
    import tensorflow as tf

    hidden, targets = _hidden(weights, tokens)
    return tf.transpose(_losses(weights, hidden, targets))


def lstm_loss_sum(weights: dict[str, Any], tokens: Any) -> Any:
    """Returns the sum of the losses in nats over all targets that are not padding (id 0), float32 [].

    Args:
      weights: as from `lstm_weights`.
      tokens: int32 [B, T+1].
    """
    import tensorflow as tf

    hidden, targets = _hidden(weights, tokens)
    # Padding is dropped before the projection and the output layer, as in models.output_layer.sums.
    positions = tf.where(tf.not_equal(targets, 0))
    return tf.reduce_sum(_losses(weights, tf.gather_nd(hidden, positions), tf.gather_nd(targets, positions)))


def _hidden(weights: dict[str, Any], tokens: Any) -> tuple[Any, Any]:
    """Returns the LSTM's outputs [T, B, H] and the targets [T, B]."""
    import tensorflow as tf

    from models import lstm
    from models.cifg import matmul_rows

    ids = tf.transpose(tokens)
    projected = matmul_rows(tf.gather(weights["embedding"], ids[:-1]), weights["kernel"]) + weights["bias"]
    return lstm.outputs(projected, weights["recurrent_kernel"]), ids[1:]


def _losses(weights: dict[str, Any], hidden: Any, targets: Any) -> Any:
    from models import output_layer
    from models.cifg import matmul_rows

    outputs = matmul_rows(hidden, weights["projection_kernel"]) + weights["projection_bias"]
    return output_layer.cross_entropy(outputs, weights["output_table"], weights["output_bias"], targets)


def cnn_weights() -> dict[str, np.ndarray]:
    """Draws small random weights of the image model, float32 by name, always the same ones."""
    shapes = {
        "first_bias": (16,),
        "first_kernel": (5, 5, 1, 16),
        "output_bias": (62,),
        "output_kernel": (7 * 7 * 32, 62),
        "second_bias": (32,),
        "second_kernel": (5, 5, 16, 32),
    }
    generator = np.random.default_rng(0)
    return {name: 0.05 * generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def cnn_logits(weights: dict[str, Any], x: Any) -> Any:
    """Returns the logits `[B, classes]` of images `[B, height, width, channels]`.

    Each of the two convolutions is pooled before its bias and ReLU: the same function on a quarter of the entries.
    """
    import tensorflow as tf

    for layer in ("first", "second"):
        x = tf.nn.conv2d(x, weights[f"{layer}_kernel"], 1, "SAME")
        x = tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "VALID") + weights[f"{layer}_bias"])
    return tf.reshape(x, [tf.shape(x)[0], -1]) @ weights["output_kernel"] + weights["output_bias"]


def cnn_loss_sum(weights: dict[str, Any], x: Any, y: Any) -> Any:
    """Returns the sum of the cross-entropies of images `[B, 28, 28, 1]` and labels int32 `[B]`, in nats."""
    import tensorflow as tf

    return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(y, cnn_logits(weights, x)))
