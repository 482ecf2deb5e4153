"""Computes the CIFG recurrence over whole sequences, with a gradient written by hand.

Autodiff computes each weight's gradient with one matrix product per time step. Here the backward loop over time only
computes what depends on the following step, and each weight's gradient is a single product over all steps. Values and
gradients are those of `models.cifg.Recurrence.states`, and the tests check this. Shapes that begin with `(U,)` may have
a leading client axis of size U.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.activations import Differentiable

LAYER_NORM_EPSILON = 1e-6


class _Step(NamedTuple):
    """Holds the values of one forward step that the backward pass needs; an activation is a pair (value, scale)."""

    forget: tuple[Any, Any]
    out: tuple[Any, Any]
    update: tuple[Any, Any]
    cell: Any
    squashed: tuple[Any, Any]  # the squashed cell state, t(c')
    hidden: Any  # after layer normalisation
    norm_scale: Any  # 1 / standard deviation, [(U,) B, 1]; None without layer norm
    output: Any


@dataclass(frozen=True)
class _Cell:
    gate: Differentiable
    squash: Differentiable
    layer_norm: bool
    recurrent_kernel: tf.Tensor
    projection: tf.Tensor | None

    def forward(self, inputs: tf.Tensor, before: _Step | None) -> _Step:
        """Computes one step from projected inputs `[(U,) B, 3H]`; `before` is None for the first step."""
        z = inputs if before is None else inputs + tf.matmul(before.output, self.recurrent_kernel)
        z_forget, z_out, z_update = tf.split(z, 3, -1)
        forget, out, update = self.gate.value(z_forget), self.gate.value(z_out), self.squash.value(z_update)
        cell = update[0] - forget[0] * (update[0] if before is None else update[0] - before.cell)
        squashed = self.squash.value(cell)
        hidden, norm_scale = out[0] * squashed[0], None
        if self.layer_norm:
            hidden -= tf.reduce_mean(hidden, axis=-1, keepdims=True)
            norm_scale = tf.math.rsqrt(tf.reduce_mean(tf.square(hidden), axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
            hidden *= norm_scale
        output = hidden if self.projection is None else tf.matmul(hidden, self.projection)
        return _Step(forget, out, update, cell, squashed, hidden, norm_scale, output)

    def run(self, projected: tf.Tensor, time_axis: int) -> list[_Step]:
        """Computes all steps from the zero state, for projected inputs `[(U,) T, B, 3H]`."""
        steps: list[_Step] = []
        for inputs in tf.unstack(projected, axis=time_axis):
            steps.append(self.forward(inputs, steps[-1] if steps else None))
        return steps

    def backward(self, steps: list[_Step], upstream: list[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the loss's gradients with respect to each step's gate inputs z and to each step's output.

        Args:
          steps: the forward steps.
          upstream: for each step, the part of the gradient with respect to its output that does not pass through later
            steps.

        Returns:
          Two lists with one entry per step: gradients with respect to z, `[(U,) B, 3H]`, and with respect to the
          output, `[(U,) B, R]`, including the paths through later steps.
        """
        back_kernel = transposed(self.recurrent_kernel)
        back_projection = None if self.projection is None else transposed(self.projection)
        d_z: list[Any] = [None] * len(steps)
        d_outputs = list(upstream)
        d_cell_after: Any = None
        for t in reversed(range(len(steps))):
            step = steps[t]
            d_hidden = d_outputs[t] if back_projection is None else tf.matmul(d_outputs[t], back_projection)
            if step.norm_scale is not None:
                centred = d_hidden - tf.reduce_mean(d_hidden, axis=-1, keepdims=True)
                along = step.hidden * tf.reduce_mean(d_hidden * step.hidden, axis=-1, keepdims=True)
                d_hidden = step.norm_scale * (centred - along)
            d_cell = self.squash.gradient(d_hidden * step.out[0], *step.squashed)
            if d_cell_after is not None:
                d_cell += d_cell_after
            d_cell_after = d_cell * step.forget[0]
            d_forget = d_cell * (steps[t - 1].cell - step.update[0] if t else -step.update[0])
            d_z[t] = tf.concat(
                [
                    self.gate.gradient(d_forget, *step.forget),
                    self.gate.gradient(d_hidden * step.squashed[0], *step.out),
                    self.squash.gradient(d_cell - d_cell_after, *step.update),
                ],
                -1,
            )
            if t:
                d_outputs[t - 1] += tf.matmul(d_z[t], back_kernel)
        return d_z, d_outputs


def outputs(
    activations: tuple[Differentiable, Differentiable],
    layer_norm: bool,
    projected: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    projection: tf.Tensor | None,
) -> tf.Tensor:
    """Returns the outputs of all time steps from the zero state, unrolled and differentiable once.

    Args:
      activations: the activation of the gates, and that of update and cell state.
      layer_norm: whether the hidden state is normalised before the projection.
      projected: W x + b, `[(U,) T, B, 3H]`, with T known when the graph is built.
      recurrent_kernel: `[(U,) R, 3H]`.
      projection: `[(U,) H, R]`; None for no projection, so that R = H.

    Returns:
      `[(U,) T, B, R]`.
    """
    time_axis = projected.shape.rank - 3

    @tf.custom_gradient
    def run(projected: tf.Tensor, recurrent_kernel: tf.Tensor, *projection: tf.Tensor) -> Any:
        cell = _Cell(*activations, layer_norm, recurrent_kernel, *(projection or [None]))
        steps = cell.run(projected, time_axis)

        trail = tf.stack([step.output for step in steps], time_axis)

        def gradient(upstream: tf.Tensor) -> Any:
            each_d_z, each_d_output = cell.backward(steps, tf.unstack(upstream, num=len(steps), axis=time_axis))
            d_z = tf.stack(each_d_z, time_axis)
            # Each step multiplies the recurrent kernel by the output of the step before (lag 1); the first has none.
            d_kernel = sum_of_products(trail, d_z, lag=1)
            if not projection:
                return d_z, d_kernel
            hidden = tf.stack([step.hidden for step in steps], time_axis)
            return d_z, d_kernel, sum_of_products(hidden, tf.stack(each_d_output, time_axis), lag=0)

        return trail, gradient

    result: tf.Tensor = run(projected, recurrent_kernel, *([] if projection is None else [projection]))
    return result


def tapped_outputs(
    activations: tuple[Differentiable, Differentiable],
    layer_norm: bool,
    projected: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    projection: tf.Tensor | None,
    output_tap: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the result of `outputs`, and the hidden states.

    Together with the gradients at `projected` and `output_tap`, the outputs and hidden states give each example's
    gradients of the recurrent kernel and the projection.

    Args:
      activations: as for `outputs`.
      layer_norm: as for `outputs`.
      projected: as for `outputs`.
      recurrent_kernel: as for `outputs`.
      projection: as for `outputs`.
      output_tap: zeros `[(U,) T, B, R]`. The gradient with respect to it is the loss's gradient with respect to each
        step's output, including the paths through later steps.

    Returns:
      The outputs `[(U,) T, B, R]`, and the hidden states before the projection, `[(U,) T, B, H]`. The returned hidden
      states are for reading only: a gradient with respect to them is ignored.
    """
    time_axis = projected.shape.rank - 3

    @tf.custom_gradient
    def run(projected: tf.Tensor, output_tap: tf.Tensor, recurrent_kernel: tf.Tensor, *projection: tf.Tensor) -> Any:
        cell = _Cell(*activations, layer_norm, recurrent_kernel, *(projection or [None]))
        steps = cell.run(projected, time_axis)
        trail = tf.stack([step.output for step in steps], time_axis)
        hidden = tf.stack([step.hidden for step in steps], time_axis)

        def gradient(upstream: tf.Tensor, _: tf.Tensor) -> Any:
            each_d_z, each_d_output = cell.backward(steps, tf.unstack(upstream, num=len(steps), axis=time_axis))
            d_z, d_output = tf.stack(each_d_z, time_axis), tf.stack(each_d_output, time_axis)
            d_kernels = [sum_of_products(trail, d_z, lag=1)]
            if projection:
                d_kernels.append(sum_of_products(hidden, d_output, lag=0))
            return d_z, d_output, *d_kernels

        return (trail, hidden), gradient

    trail, hidden = run(projected, output_tap, recurrent_kernel, *([] if projection is None else [projection]))
    return trail, hidden


def sum_of_products(left: tf.Tensor, right: tf.Tensor, lag: int) -> tf.Tensor:
    """Returns the sum over steps t of left_(t - lag)ᵀ right_t, computed as one matrix product.

    Args:
      left: `[(U,) T, B, M]`.
      right: `[(U,) T, B, N]`.
      lag: number of steps by which `left` is behind `right`, 0 to T; steps without a partner add nothing.

    Returns:
      `[(U,) M, N]`.
    """
    steps = left.shape[-3] - lag
    left, right = left[..., :steps, :, :], right[..., lag:, :, :]
    users = [] if left.shape.rank == 3 else [tf.shape(left)[0]]
    flat = [tf.reshape(each, [*users, -1, each.shape[-1]]) for each in (left, right)]
    product: tf.Tensor = tf.matmul(*flat, transpose_a=True)
    return product


def transposed(matrix: tf.Tensor) -> tf.Tensor:
    """Returns the transpose, `[(U,) M, N] -> [(U,) N, M]`, as a tensor that is computed once for all its uses.

    Grappler would fold a plain transpose into every matrix product that uses it. Products of few rows would then take
    three times as long on CPU.
    """
    *lead, rows, columns = matrix.shape
    users = [tf.shape(matrix)[0]] if lead else []
    swapped = tf.linalg.matrix_transpose(tf.reshape(matrix, [*users, 1, rows, columns]))
    result: tf.Tensor = tf.reshape(swapped, [*users, columns, rows])
    return result
