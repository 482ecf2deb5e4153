"""Provides the CIFG recurrences as Keras layers: cells for `keras.layers.RNN`, and fused layers equal to RNN(cell).

The layers run on Keras 2.14 and Keras 3 (TensorFlow backend). All arithmetic is in `models.cifg`. Its docstring has the
equations, the order of the gates and the shapes of the weights.
"""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, ClassVar

import keras
import tensorflow as tf

from models.cifg import LONGEST_UNROLLED, CIFGState, Recurrence

_PACKAGE = "fedspeak"


class _Cell(keras.layers.Layer):
    """Holds the weights of a recurrence and computes one step of it, as a Keras RNN cell."""

    kind: ClassVar[str]

    def __init__(self, units: int, projection: int | None = None, layer_norm: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("units", units), ("projection", projection)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{type(self).__name__}: {name} {value!r} is not a positive integer")
        self.units = units = int(units)
        self.projection = projection = None if projection is None else int(projection)
        self.layer_norm = layer_norm
        self.recurrence = Recurrence(self.kind, layer_norm)
        self.output_size = units if projection is None else projection
        self.state_size = [self.output_size, units]

    def build(self, input_shape: Any) -> None:
        gates = 3 * self.units
        self.input_kernel = self._add_kernel("input_kernel", input_shape[-1], gates)
        self.recurrent_kernel = self._add_kernel("recurrent_kernel", self.output_size, gates)
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer=keras.initializers.Zeros())
        if self.projection is not None:
            self.projection_kernel = self._add_kernel("projection", self.units, self.projection)
        self.built = True

    def _add_kernel(self, name: str, fan_in: int, fan_out: int) -> Any:
        return self.add_weight(name=name, shape=(fan_in, fan_out), initializer=fan_in_normal(fan_in))

    def variables_by_name(self) -> dict[str, Any]:
        """Returns the Keras variables of the weights under the names that `models.cifg` uses."""
        named = {
            "input_kernel": self.input_kernel,
            "recurrent_kernel": self.recurrent_kernel,
            "bias": self.bias,
        }
        return named if self.projection is None else {**named, "projection": self.projection_kernel}

    def compute_weights(self) -> Mapping[str, tf.Tensor]:
        """Returns the weights by name, cast to the compute dtype of the layer's dtype policy."""
        return {name: as_compute(self, weight) for name, weight in self.variables_by_name().items()}

    def call(self, inputs: tf.Tensor, states: Any, training: bool | None = None) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Takes one time step: inputs `[B, E]`, states (output `[B, R]`, cell `[B, H]`) -> output, new states."""
        del training  # there is no dropout
        weights = self.compute_weights()
        projected = self.recurrence.project_inputs(weights, inputs[tf.newaxis])[0]
        state = self.recurrence.step(weights, projected, CIFGState(*states))
        return state.output, list(state)

    def get_config(self) -> dict[str, Any]:
        own = {"units": self.units, "projection": self.projection, "layer_norm": self.layer_norm}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class CIFGCell(_Cell):
    """Implements the CIFG cell for `keras.layers.RNN`.

    Args:
      units: size H of the cell state, >= 1.
      projection: size R of the recurrent output, >= 1; None makes the hidden state, of size H, the output.
      layer_norm: whether the hidden state is normalised (without scale and offset) before the projection.

    Raises:
      ValueError: `units` or `projection` is not a positive integer.
    """

    kind = "cifg"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SICIFGCell(_Cell):
    """Implements the scale-invariant CIFG cell for `keras.layers.RNN`, with the arguments of `CIFGCell`."""

    kind = "si-cifg"


class _Fused(keras.layers.Layer):
    """Computes the same as `keras.layers.RNN(cell)`, with one matrix product for the inputs of all time steps."""

    cell_type: ClassVar[type[_Cell]]

    def __init__(
        self,
        units: int,
        projection: int | None = None,
        layer_norm: bool = False,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        # `keras.layers.Bidirectional` reads `stateful` and sets `zero_output_for_mask`.
        self.stateful = self.zero_output_for_mask = False
        self.go_backwards = go_backwards
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.cell = self.cell_type(units, projection, layer_norm, dtype=self.dtype_policy, name="cell")

    def build(self, input_shape: Any) -> None:
        self.cell.build(input_shape)
        self.built = True

    def call(
        self,
        inputs: tf.Tensor,
        initial_state: Any = None,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Computes the output `[B, R]`, or `[B, T, R]` with `return_sequences`.

        With `return_state` the result is a list: the output, the last output state `[B, R]` and the last cell state
        `[B, H]`, as from `keras.layers.RNN`.

        Args:
          inputs: `[B, T, E]`.
          initial_state: the output state `[B, R]` and the cell state `[B, H]` to start from; None for zeros.
          mask: bool `[B, T]`. Where it is False, the step does not change the row's state. None: all True.
          training: not used; the layer has no dropout.
        """
        del training  # there is no dropout
        if self.go_backwards:
            inputs, mask = tf.reverse(inputs, [1]), None if mask is None else tf.reverse(mask, [1])
        weights = self.cell.compute_weights()
        start = None if initial_state is None else CIFGState(*initial_state)
        time_major_mask = None if mask is None else tf.transpose(mask)
        states = self.cell.recurrence.states(weights, tf.transpose(inputs, [1, 0, 2]), start, time_major_mask)
        outputs = states.output
        if time_major_mask is not None:
            # keras.layers.RNN gives zeros before a row's first unmasked step, whatever its initial state.
            has_begun = tf.cumsum(tf.cast(time_major_mask, tf.int32)) > 0
            is_shown = time_major_mask if self.zero_output_for_mask else has_begun
            outputs = tf.where(is_shown[..., tf.newaxis], outputs, tf.zeros_like(outputs))
        result = tf.transpose(outputs, [1, 0, 2]) if self.return_sequences else outputs[-1]
        return [result, states.output[-1], states.cell[-1]] if self.return_state else result

    def call_tapped(
        self,
        tap: Callable[[tf.Tensor], tf.Tensor],
        inputs: tf.Tensor,
        initial_state: Any = None,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Runs `call` and describes each example's gradient in closed form, for `privacy.dpsgd.layer_gradients`.

        Returns:
          (outputs, terms) as that module defines them, or None if there is no closed form: with a mask, an initial
          state or `return_state`, or if the number of steps is unknown or more than 64.
        """
        length = inputs.shape[1]
        if (
            mask is not None
            or initial_state is not None
            or self.return_state
            or length is None
            or length > LONGEST_UNROLLED
        ):
            return None
        inputs = tf.reverse(inputs, [1]) if self.go_backwards else inputs
        cell, weights = self.cell, self.cell.compute_weights()
        projected = tap(cell.recurrence.project_inputs(weights, inputs))
        rows = tf.shape(inputs)[0]
        output_tap = tap(tf.zeros([rows, length, cell.output_size], inputs.dtype))
        outputs, hidden = cell.recurrence.tapped_outputs(
            weights, tf.transpose(projected, [1, 0, 2]), tf.transpose(output_tap, [1, 0, 2])
        )
        outputs, hidden = tf.transpose(outputs, [1, 0, 2]), tf.transpose(hidden, [1, 0, 2])

        def terms(d_projected: tf.Tensor, d_outputs: tf.Tensor) -> list[Any]:
            triples = [
                (cell.input_kernel, inputs, d_projected),
                (
                    cell.recurrent_kernel,
                    outputs[:, :-1],
                    d_projected[:, 1:],
                ),  # before the first step the output is zero
                (cell.bias, None, tf.reduce_sum(d_projected, axis=1)),
            ]
            return triples if cell.projection is None else [*triples, (cell.projection_kernel, hidden, d_outputs)]

        return (outputs if self.return_sequences else outputs[:, -1]), terms

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        mask = mask if self.return_sequences else None
        return [mask, None, None] if self.return_state else mask

    def get_config(self) -> dict[str, Any]:
        own = {
            "units": self.cell.units,
            "projection": self.cell.projection,
            "layer_norm": self.cell.layer_norm,
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "go_backwards": self.go_backwards,
        }
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class CIFG(_Fused):
    """Computes the same as `keras.layers.RNN(CIFGCell(...))`, but faster.

    Args:
      units: size H of the cell state, >= 1.
      projection: size R of the recurrent output, >= 1; None makes the hidden state, of size H, the output.
      layer_norm: whether the hidden state is normalised (without scale and offset) before the projection.
      return_sequences: whether to return the output of every step instead of the last one only.
      return_state: whether to return the last states (output, cell) too.
      go_backwards: whether to read the steps, and to return their outputs, from the last to the first.

    Raises:
      ValueError: `units` or `projection` is not a positive integer.
    """

    cell_type = CIFGCell


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SICIFG(_Fused):
    """Computes the same as `keras.layers.RNN(SICIFGCell(...))`, but faster, with the arguments of `CIFG`."""

    cell_type = SICIFGCell


def as_compute(layer: keras.layers.Layer, weight: Any) -> tf.Tensor:
    """Returns a weight as a tensor of the layer's compute dtype."""
    return tf.cast(tf.convert_to_tensor(weight), layer.compute_dtype)


def fan_in_normal(fan_in: int) -> Any:
    """Returns the initializer of the distribution of `RecurrentLanguageModel.init`: normal, variance 1 / fan_in."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)
