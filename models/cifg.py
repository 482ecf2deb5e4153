"""Implements the CIFG recurrence, an LSTM whose input gate is one minus its forget gate, and its scale-invariant form.

For the input x, the recurrent output r, the cell state c and the hidden state h, one step is

    f = s(W_f x + U_f r + b_f)    o = s(W_o x + U_o r + b_o)    g = t(W_g x + U_g r + b_g)
    c' = f * c + (1 - f) * g      h = o * t(c')                 r' = W_p h  (h itself without a projection)

where (s, t) is (sigmoid, tanh) for CIFG (Greff et al. 2015, https://arxiv.org/abs/1503.04069), and the scale-invariant
pair of `models.activations` for SI-CIFG (Ro et al. 2024, https://arxiv.org/abs/2403.08100). Multiplying all three
weights of one gate (its blocks of W, U and b) by the same positive number does not change the outputs of SI-CIFG.

The weights are a mapping with "input_kernel" (W) `[E, 3H]`, "recurrent_kernel" (U) `[R, 3H]`, "bias" (b) `[3H]` and,
with a projection, "projection" (W_p) `[H, R]`; without it R = H. The order of the gates on the last axis is f, o, g.

Shapes that begin with `(U,)` may have a leading client axis of size U. Weights, inputs, states and masks all have it,
or none has it. Each client's rows are multiplied by that client's weights only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models import cifg_gradient
from models.activations import DIFFERENTIABLE, scale_invariant_sigmoid, scale_invariant_tanh
from models.cifg_gradient import LAYER_NORM_EPSILON
from models.tensors import shape_of
from models.token_tree import TokenTree

Activation = Callable[[tf.Tensor], tf.Tensor]
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "cifg": (tf.sigmoid, tf.tanh),
    "si-cifg": (scale_invariant_sigmoid, scale_invariant_tanh),
    "si-cifg-tanh": (scale_invariant_sigmoid, tf.tanh),
    "si-cifg-gates": (scale_invariant_sigmoid, scale_invariant_sigmoid),
}
"""The activations (s, t) of each kind of cell. The last two are ablations of SI-CIFG, which no Keras layer has."""
# Sequences of more steps run in a while loop. Unrolled graphs run faster, but take time to build: 20 ops per step.
LONGEST_UNROLLED = 64


class CIFGState(NamedTuple):
    """Holds the cell's state: output r `[(U,) B, R]` and cell state c `[(U,) B, H]`.

    It also holds the states of many time steps; both tensors then have a time axis: `[(U,) T, B, ...]`.
    """

    output: tf.Tensor
    cell: tf.Tensor


def matmul_rows(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Multiplies `[(U,) T, B, D]` by `[(U,) D, K]` in one product (one per client) instead of one per time step."""
    shape = shape_of(inputs)
    flat = tf.reshape(inputs, [*shape[:-3], -1, shape[-1]])
    return tf.reshape(tf.matmul(flat, kernel), [*shape[:-1], kernel.shape[-1]])


@dataclass(frozen=True)
class Recurrence:
    """Computes the recurrence of one kind of cell, as pure functions of the weights (see the module's docstring).

    Attributes:
      kind: one of `ACTIVATIONS`.
      layer_norm: whether h is normalised (without scale and offset) before the projection.

    Raises:
      ValueError: `kind` is unknown.
    """

    kind: str
    layer_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise ValueError(f"cell: {self.kind!r} is not one of {', '.join(map(repr, sorted(ACTIVATIONS)))}")

    def project_inputs(self, weights: Mapping[str, Any], inputs: tf.Tensor) -> tf.Tensor:
        """Returns W x + b for all gates and time steps: `[(U,) T, B, E] -> [(U,) T, B, 3H]`."""
        bias = tf.convert_to_tensor(weights["bias"])
        if bias.shape.rank == 2:
            bias = bias[:, tf.newaxis, tf.newaxis, :]
        return matmul_rows(inputs, tf.convert_to_tensor(weights["input_kernel"])) + bias

    def step(self, weights: Mapping[str, Any], projected: tf.Tensor, state: CIFGState) -> CIFGState:
        """Returns the state after one time step, from projected inputs `[(U,) B, 3H]` and the state before it."""
        gate, squash = ACTIVATIONS[self.kind]
        gates = projected + tf.matmul(state.output, weights["recurrent_kernel"])
        forget, out, update = tf.split(gates, 3, axis=-1)
        forget, out, update = gate(forget), gate(out), squash(update)
        cell = forget * state.cell + (1 - forget) * update
        hidden = out * squash(cell)
        if self.layer_norm:
            hidden -= tf.reduce_mean(hidden, axis=-1, keepdims=True)
            variance = tf.reduce_mean(tf.square(hidden), axis=-1, keepdims=True)
            hidden *= tf.math.rsqrt(variance + LAYER_NORM_EPSILON)
        output = tf.matmul(hidden, weights["projection"]) if "projection" in weights else hidden
        return CIFGState(output, cell)

    def zero_state(self, weights: Mapping[str, Any], projected: tf.Tensor) -> CIFGState:
        """Returns the state before any token, all zeros, for projected inputs `[(U,) T, B, 3H]`."""
        lead = shape_of(projected)[:-3] + shape_of(projected)[-2:-1]
        kernel = weights["recurrent_kernel"]
        output, units = kernel.shape[-2], kernel.shape[-1] // 3
        return CIFGState(tf.zeros([*lead, output], projected.dtype), tf.zeros([*lead, units], projected.dtype))

    def outputs(self, weights: Mapping[str, Any], inputs: tf.Tensor) -> tf.Tensor:
        """Returns the outputs of all steps from the zero state, for training: `[(U,) T, B, E] -> [(U,) T, B, R]`.

        For at most 64 steps it uses the hand-written gradient of `models.cifg_gradient`. That gradient is faster than
        autodiff and cannot be differentiated again.
        """
        if inputs.shape[-3] is None or inputs.shape[-3] > LONGEST_UNROLLED:
            return self.states(weights, inputs).output
        return cifg_gradient.outputs(
            DIFFERENTIABLE[self.kind],
            self.layer_norm,
            self.project_inputs(weights, inputs),
            tf.convert_to_tensor(weights["recurrent_kernel"]),
            tf.convert_to_tensor(weights["projection"]) if "projection" in weights else None,
        )

    def tapped_outputs(
        self, weights: Mapping[str, Any], projected: tf.Tensor, output_tap: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Calls `models.cifg_gradient.tapped_outputs` with the activations and weights of this cell; see there."""
        return cifg_gradient.tapped_outputs(
            DIFFERENTIABLE[self.kind],
            self.layer_norm,
            projected,
            tf.convert_to_tensor(weights["recurrent_kernel"]),
            tf.convert_to_tensor(weights["projection"]) if "projection" in weights else None,
            output_tap,
        )

    def states(
        self,
        weights: Mapping[str, Any],
        inputs: tf.Tensor,
        state: CIFGState | None = None,
        mask: tf.Tensor | None = None,
    ) -> CIFGState:
        """Returns the states after each time step.

        Args:
          weights: as in the module's docstring.
          inputs: `[(U,) T, B, E]`.
          state: the state before the first step; None is the zero state.
          mask: bool `[(U,) T, B]`. Where it is False, the step does not change the row's state. None: all True.

        Returns:
          A state with a time axis: output `[(U,) T, B, R]` and cell `[(U,) T, B, H]`.
        """
        projected = self.project_inputs(weights, inputs)
        state = self.zero_state(weights, projected) if state is None else state
        time_axis = projected.shape.rank - 3
        if projected.shape[-3] is None or projected.shape[-3] > LONGEST_UNROLLED:
            return self._loop_states(weights, projected, state, mask, time_axis)
        masks = None if mask is None else tf.unstack(mask, axis=time_axis)
        trail = []
        for t, projected_t in enumerate(tf.unstack(projected, axis=time_axis)):
            new = self.step(weights, projected_t, state)
            state = new if masks is None else _where(masks[t], new, state)
            trail.append(state)
        return CIFGState(tf.stack([s.output for s in trail], time_axis), tf.stack([s.cell for s in trail], time_axis))

    def _loop_states(
        self,
        weights: Mapping[str, Any],
        projected: tf.Tensor,
        state: CIFGState,
        mask: tf.Tensor | None,
        time_axis: int,
    ) -> CIFGState:
        projected, mask = (
            _to_front(projected, time_axis),
            None if mask is None else _to_front(mask, time_axis),
        )
        steps = projected.shape[0] or tf.shape(projected)[0]
        arrays = CIFGState(*(tf.TensorArray(s.dtype, steps, element_shape=s.shape) for s in state))

        def body(t: tf.Tensor, state: CIFGState, arrays: CIFGState) -> tuple[tf.Tensor, CIFGState, CIFGState]:
            new = self.step(weights, tf.gather(projected, t), state)
            new = new if mask is None else _where(tf.gather(mask, t), new, state)
            return t + 1, new, CIFGState(*(a.write(t, s) for a, s in zip(arrays, new, strict=True)))

        *_, arrays = tf.while_loop(
            lambda t, *_: t < steps, body, (tf.constant(0), state, arrays), maximum_iterations=steps
        )
        return CIFGState(*(_from_front(a.stack(), time_axis) for a in arrays))

    def tree_states(
        self,
        weights: Mapping[str, Any],
        inputs: tf.Tensor,
        before: CIFGState,
        tree: TokenTree,
        level: range | None = None,
    ) -> CIFGState:
        """Returns the states after nodes of a tree, where each node's step begins at its parent's state.

        One step computes all nodes of a depth.

        Args:
          weights: as in the module's docstring, without a client axis.
          inputs: `[N, B, E]`, by node.
          before: the states before the root and after each node above these, with an axis of nodes: `[M, B, ...]`.
          tree: the tree.
          level: one of `tree.levels`, of N nodes; None for the whole tree, of N nodes.

        Returns:
          A state with an axis of nodes: output `[N, B, R]` and cell `[N, B, H]`.

        Raises:
          ValueError: N is not the number of nodes.
        """
        tree.require_tokens(inputs.shape[0], level)
        projected = self.project_inputs(weights, inputs)
        above, first = before, -1  # the number of the first node of those above; the state before the root counts as -1
        levels: list[CIFGState] = []
        for nodes in tree.levels if level is None else (level,):
            parents = [tree.parents[node] - first for node in nodes]
            from_parents = CIFGState(*(_join(tf.gather(part, parents)) for part in above))
            own = projected if level is not None else projected[nodes.start : nodes.stop]
            new = self.step(weights, _join(own), from_parents)
            above, first = CIFGState(*(tf.reshape(part, [len(nodes), -1, part.shape[-1]]) for part in new)), nodes.start
            levels.append(above)
        return CIFGState(*(tf.concat(parts, 0) for parts in zip(*levels, strict=True)))

    def last_state(
        self, weights: Mapping[str, Any], inputs: tf.Tensor, lengths: tf.Tensor, state: CIFGState | None = None
    ) -> CIFGState:
        """Returns the state of each row after its own number of steps.

        Only one state per row is in memory at a time.

        Args:
          weights: as in the module's docstring, without a client axis.
          inputs: `[T, B, E]`.
          lengths: int32 `[B]`, 0 to T: the number of steps of each row.
          state: the state before the first step; None is the zero state.
        """
        projected = self.project_inputs(weights, inputs)

        def body(t: tf.Tensor, state: CIFGState) -> tuple[tf.Tensor, CIFGState]:
            new = self.step(weights, tf.gather(projected, t), state)
            return t + 1, _where(t < lengths, new, state)

        start = (tf.constant(0), self.zero_state(weights, projected) if state is None else state)
        return tf.while_loop(lambda t, _: t < tf.reduce_max(lengths), body, start)[1]


def _where(mask: tf.Tensor, new: CIFGState, old: CIFGState) -> CIFGState:
    return CIFGState(*(tf.where(mask[..., tf.newaxis], n, o) for n, o in zip(new, old, strict=True)))


def _join(x: tf.Tensor) -> tf.Tensor:
    """Makes the axes of nodes and rows one: `[W, B, D] -> [W·B, D]`."""
    return tf.reshape(x, [-1, x.shape[-1]])


def _to_front(x: tf.Tensor, axis: int) -> tf.Tensor:
    return x if axis == 0 else tf.transpose(x, [axis, *(i for i in range(x.shape.rank) if i != axis)])


def _from_front(x: tf.Tensor, axis: int) -> tf.Tensor:
    return x if axis == 0 else tf.transpose(x, [*range(1, axis + 1), 0, *range(axis + 1, x.shape.rank)])
