"""Implements the layers of a decoder-only transformer as pure functions.

Shapes that begin with `(U,)` may have a leading client axis of size U. All tensors of a call have it, or none has it.
"""

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.language_model import Weights
from models.tensors import shape_of

_HIDDEN = -1e9
"""Score of a key that a query must not see; its softmax is exactly 0 next to any score above -1e8."""


def matmul(weights: Weights, name: str, inputs: tf.Tensor) -> tf.Tensor:
    """Multiplies `[(U,) ..., D]` by the weight `name`, `[(U,) D, K]`, in one product (one per client).

    The result is multiplied by the weight `name_scale` `[K]` and increased by `name_bias` `[(U,) K]`, if these exist.
    """
    kernel, scale, bias = weights[name], weights.get(f"{name}_scale"), weights.get(f"{name}_bias")
    shape = shape_of(inputs)
    lead = shape[:1] if kernel.shape.rank == 3 else []
    product = tf.matmul(tf.reshape(inputs, [*lead, -1, shape[-1]]), kernel)
    if scale is not None:
        product = rescale(product, scale)
    if bias is not None:
        product += bias[..., tf.newaxis, :]
    return tf.reshape(product, [*shape[:-1], kernel.shape[-1]])


def rescale(product: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Multiplies `[..., K]` by a scale `[K]`, in a way that the TFLite converter does not multiply into the matrix.

    If it did, the columns of the matrix would have their different magnitudes again, and one quantisation step.
    """
    first = tf.reshape(product, [-1])[:1]
    is_number = tf.equal(first, first)  # known at run time only
    return product * tf.where(is_number, scale, first)


def equalize(matrix: NDArray[np.float32], axis: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divides a matrix `[D, K]` by its largest magnitudes along `axis`; see `LanguageModel.equalized`.

    Returns:
      The matrix with entries of magnitude at most 1, and what it was divided by, `[K]` for axis 0 and `[D]` for axis 1.
    """
    largest = np.max(np.abs(matrix), axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float32)
    return matrix / scale, np.squeeze(scale, axis)


def gather_exactly(table: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Gathers entries of a constant table, float32 or float64, of which a TFLite file must not lose bits.

    The converter quantises float tables that are gathered from to int8 or float16, as it does the embedding. Integers,
    here the bits of the table, stay as they are.
    """
    if table.dtype != tf.float32:
        return tf.gather(table, indices)
    return tf.bitcast(tf.gather(tf.bitcast(table, tf.int32), indices), tf.float32)


def normalize(inputs: tf.Tensor, kind: str, epsilon: float, scale: tf.Tensor | None = None) -> tf.Tensor:
    """Normalises the last axis of `[(U,) ..., E]`.

    Args:
      inputs: the vectors.
      kind: "layer" subtracts the mean and divides by the standard deviation (Ba et al. 2016,
        https://arxiv.org/abs/1607.06450); "rms" divides by the root of the mean square (Zhang & Sennrich 2019,
        https://arxiv.org/abs/1910.07467).
      epsilon: added to the variance or the mean square, >= 0. With 0 the result does not change if `inputs` are
        multiplied by a positive number, and a vector whose variance or mean square is 0 becomes zero.
      scale: `[(U,) E]`, multiplied with the result; None for none.
    """
    if kind == "layer":
        inputs -= tf.reduce_mean(inputs, axis=-1, keepdims=True)
    square = tf.reduce_mean(tf.square(inputs), axis=-1, keepdims=True)
    outputs = inputs * tf.math.rsqrt(square + epsilon if epsilon else _above_zero(square))
    if scale is None:
        return outputs
    rank = outputs.shape.rank
    return outputs * tf.reshape(scale, [*shape_of(scale)[:-1], *[1] * (rank - scale.shape.rank), scale.shape[-1]])


def rotary_table(length: int, head_size: int, base: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the cosines and sines `[length, head_size / 2]` of the rotary position embedding.

    The angle of pair i at position p is p · base^(-2i / head_size) (Su et al. 2021, https://arxiv.org/abs/2104.09864).
    """
    frequencies = base ** (-np.arange(0, head_size, 2) / head_size)
    angles = np.arange(length)[:, np.newaxis] * frequencies
    return np.cos(angles), np.sin(angles)


def rotate(heads: tf.Tensor, cosines: tf.Tensor, sines: tf.Tensor) -> tf.Tensor:
    """Rotates each pair of entries (i, i + D/2) of `[(U,) B, T, heads, D]` by the angle of its position.

    Args:
      heads: queries or keys.
      cosines: `[T, D/2]` or `[B, T, D/2]`.
      sines: as `cosines`.
    """
    first, second = tf.split(heads, 2, axis=-1)
    cosines, sines = cosines[..., tf.newaxis, :], sines[..., tf.newaxis, :]
    return tf.concat([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def attend(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, visible: tf.Tensor, kind: str) -> tf.Tensor:
    """Computes attention with H query heads that share K key and value heads, H a multiple of K.

    Args:
      queries: `[(U,) B, G, H, D]`.
      keys: `[(U,) B, K, D, S]`.
      values: `[(U,) B, K, S, D]`.
      visible: bool `[G, S]` or `[B, G, S]`: which keys each query sees. Each query sees at least one.
      kind: "softmax", with scores divided by √D (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762); or "relu",
        where negative scores count as 0 and each row is divided by its sum, so that multiplying the queries or the keys
        by a positive number changes nothing (Li et al. 2022, SIBERT). A row of zeros stays zero.

    Returns:
      `[(U,) B, G, H · D]`.
    """
    shape = shape_of(queries)
    *lead, length, heads, size = shape
    groups, shared = keys.shape[-3], heads // keys.shape[-3]
    outer = [*range(len(lead))]
    first = len(lead)
    split = tf.reshape(queries, [*lead, length, groups, shared, size])
    split = tf.transpose(split, [*outer, first + 1, first + 2, first, first + 3])
    rows = tf.reshape(split, [*lead, groups, shared * length, size])
    # The heads of a group are rows of one product: [..., K, (H/K)·G, S].
    scores = tf.matmul(rows, keys)
    if shared > 1:
        visible = tf.concat([visible] * shared, axis=-2)
    visible = visible[..., tf.newaxis, :, :]
    if kind == "softmax":
        shares = tf.nn.softmax(tf.where(visible, scores * size**-0.5, _HIDDEN))
    else:
        positive = tf.where(visible, tf.nn.relu(scores), 0.0)
        shares = positive / _above_zero(tf.reduce_sum(positive, axis=-1, keepdims=True))
    merged = tf.reshape(tf.matmul(shares, values), [*lead, groups, shared, length, size])
    merged = tf.transpose(merged, [*outer, first + 2, first, first + 1, first + 3])
    return tf.reshape(merged, [*lead, length, heads * size])


def activate(hidden: tf.Tensor, kind: str) -> tf.Tensor:
    """Applies the activation of the feed-forward layer.

    Args:
      hidden: `[(U,) ..., F]` for "relu", `[(U,) ..., 2F]` (gate, then value) for "swiglu".
      kind: "relu"; or "swiglu", silu(gate) · value (Shazeer 2020, https://arxiv.org/abs/2002.05202).

    Returns:
      `[(U,) ..., F]`.
    """
    if kind == "relu":
        return tf.nn.relu(hidden)
    gate, value = tf.split(hidden, 2, axis=-1)
    return gate * tf.sigmoid(gate) * value


def _above_zero(denominator: tf.Tensor) -> tf.Tensor:
    """Replaces a denominator of 0 by 1.

    A tiny constant instead of the condition would break scale invariance, and a TFLite file with float16 weights rounds
    constants below 6e-8 to 0.
    """
    return tf.where(denominator > 0, denominator, 1.0)
