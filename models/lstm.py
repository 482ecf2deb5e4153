"""Computes the LSTM recurrence over whole sequences, with a gradient written by hand as in `models.cifg_gradient`.

    i, f, o = sigmoid(...)   g = tanh(...)   c' = f * c + i * g   h = o * tanh(c')

The order of the gates on the last axis is i, f, g, o, as in Keras' LSTM layer, so the weights of that layer can be used
unchanged. Keras computes the products with the inputs inside the loop over time. Here the caller computes them for all
steps at once. Baselines from the literature use this cell (Hochreiter and Schmidhuber 1997, with the forget gate of
Gers et al. 2000).
"""

from typing import Any

import tensorflow as tf

from models.cifg_gradient import sum_of_products, transposed


def outputs(projected: tf.Tensor, recurrent_kernel: tf.Tensor) -> tf.Tensor:
    """Returns the outputs h of all time steps from the zero state, unrolled and differentiable once.

    Args:
      projected: W x + b, `[(U,) T, B, 4H]`, with T known when the graph is built. Both arguments have a leading client
        axis of size U, or neither has.
      recurrent_kernel: `[(U,) H, 4H]`.

    Returns:
      `[(U,) T, B, H]`.
    """
    time_axis = projected.shape.rank - 3

    @tf.custom_gradient
    def run(projected: tf.Tensor, recurrent_kernel: tf.Tensor) -> Any:
        gates: list[Any] = []
        cells: list[Any] = []
        squashed: list[Any] = []
        trail: list[Any] = []
        for z in tf.unstack(projected, axis=time_axis):
            if trail:
                z += tf.matmul(trail[-1], recurrent_kernel)
            i, f, g, o = tf.split(z, 4, axis=-1)
            i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
            cells.append(f * cells[-1] + i * g if cells else i * g)
            gates.append((i, f, g, o))
            squashed.append(tf.tanh(cells[-1]))
            trail.append(o * squashed[-1])

        stacked = tf.stack(trail, time_axis)

        def gradient(upstream: tf.Tensor) -> Any:
            d_outputs = tf.unstack(upstream, num=len(trail), axis=time_axis)
            back_kernel = transposed(recurrent_kernel)
            d_z: list[Any] = [None] * len(trail)
            d_cell_after: Any = None
            for t in reversed(range(len(trail))):
                i, f, g, o = gates[t]
                d_cell = tf.raw_ops.TanhGrad(y=squashed[t], dy=d_outputs[t] * o)
                if d_cell_after is not None:
                    d_cell += d_cell_after
                d_cell_after = d_cell * f
                d_z[t] = tf.concat(
                    [
                        tf.raw_ops.SigmoidGrad(y=i, dy=d_cell * g),
                        tf.raw_ops.SigmoidGrad(y=f, dy=d_cell * cells[t - 1]) if t else tf.zeros_like(f),
                        tf.raw_ops.TanhGrad(y=g, dy=d_cell * i),
                        tf.raw_ops.SigmoidGrad(y=o, dy=d_outputs[t] * squashed[t]),
                    ],
                    -1,
                )
                if t:
                    d_outputs[t - 1] += tf.matmul(d_z[t], back_kernel)
            d_projected = tf.stack(d_z, time_axis)
            return d_projected, sum_of_products(stacked, d_projected, lag=1)

        return stacked, gradient

    result: tf.Tensor = run(projected, recurrent_kernel)
    return result
