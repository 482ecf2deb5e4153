"""Keras holders of the CIFG recurrences: cells for `keras.layers.RNN`, and fused layers equal to RNN(cell).

They run on Keras 2.14 and Keras 3 (TensorFlow backend). All arithmetic is in `models.cifg`; see there for the
equations, the gate order and the shapes of the weights.
"""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any, ClassVar

import keras
import tensorflow as tf

from models.cifg import LONGEST_UNROLLED, CIFGState, Recurrence

_PACKAGE = "fedspeak"


class _Cell(keras.layers.Layer):
    """The weights of one recurrence, and one step of it."""

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
        """The weights' variables as `models.cifg` names them."""
        named = {
            "input_kernel": self.input_kernel,
            "recurrent_kernel": self.recurrent_kernel,
            "bias": self.bias,
        }
        return named if self.projection is None else {**named, "projection": self.projection_kernel}

    def compute_weights(self) -> Mapping[str, tf.Tensor]:
        """The weights in the compute dtype of the layer's dtype policy."""
        return {name: as_compute(self, weight) for name, weight in self.variables_by_name().items()}

    def call(self, inputs: tf.Tensor, states: Any, training: bool | None = None) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """One time step: inputs `[B, E]`, states (output `[B, R]`, cell `[B, H]`) -> output, new states."""
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
    """A CIFG cell for `keras.layers.RNN`.

    Args:
      units: H, the size of the cell.
      projection: R, the size of the recurrent output; without it the output is the hidden state, of size H.
      layer_norm: whether the hidden state is normalised (no scale, no offset) before the projection.
    """

    kind = "cifg"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SICIFGCell(_Cell):
    """A scale-invariant CIFG cell for `keras.layers.RNN`; arguments as for `CIFGCell`."""

    kind = "si-cifg"


class _Fused(keras.layers.Layer):
    """`keras.layers.RNN(cell)` with the input projection of all time steps as one matrix product."""

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
        # `keras.layers.Bidirectional` asks for the first and sets the second.
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
        """Inputs `[B, T, E]`, mask bool `[B, T]` -> output `[B, R]`, or `[B, T, R]` with return_sequences.

        With return_state also the last output state `[B, R]` and cell state `[B, H]`, as `keras.layers.RNN`.
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
            # As keras.layers.RNN: until its first real step a row's output is zero, whatever its start.
            seen = tf.cumsum(tf.cast(time_major_mask, tf.int32)) > 0
            shown = time_major_mask if self.zero_output_for_mask else seen
            outputs = tf.where(shown[..., tf.newaxis], outputs, tf.zeros_like(outputs))
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
        """`call`, and each example's gradient of the weights in closed form: see `privacy.dpsgd.layer_gradients`.

        None with a mask, a start of one's own or the states asked for, and for more than 64 or unknown steps.
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
        moved = tap(tf.zeros([rows, length, cell.output_size], inputs.dtype))
        outputs, hidden = cell.recurrence.tapped_outputs(
            weights, tf.transpose(projected, [1, 0, 2]), tf.transpose(moved, [1, 0, 2])
        )
        outputs, hidden = tf.transpose(outputs, [1, 0, 2]), tf.transpose(hidden, [1, 0, 2])

        def terms(d_projected: tf.Tensor, d_outputs: tf.Tensor) -> list[Any]:
            found = [
                (cell.input_kernel, inputs, d_projected),
                (cell.recurrent_kernel, outputs[:, :-1], d_projected[:, 1:]),  # the first step starts at zero
                (cell.bias, None, tf.reduce_sum(d_projected, axis=1)),
            ]
            return found if cell.projection is None else [*found, (cell.projection_kernel, hidden, d_outputs)]

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
    """A CIFG layer, equal to `keras.layers.RNN(CIFGCell(...))` and faster.

    Args:
      units: H, the size of the cell.
      projection: R, the size of the recurrent output; without it the output is the hidden state, of size H.
      layer_norm: whether the hidden state is normalised (no scale, no offset) before the projection.
      return_sequences: whether the result is the output of every step, not of the last alone.
      return_state: whether the last states (output, cell) are returned too.
      go_backwards: whether the steps are taken, and returned, from the last to the first.
    """

    cell_type = CIFGCell


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SICIFG(_Fused):
    """A scale-invariant CIFG layer, equal to `keras.layers.RNN(SICIFGCell(...))`; arguments as for `CIFG`."""

    cell_type = SICIFGCell


def as_compute(layer: keras.layers.Layer, weight: Any) -> tf.Tensor:
    """A layer's weight as a tensor of its compute dtype."""
    return tf.cast(tf.convert_to_tensor(weight), layer.compute_dtype)


def fan_in_normal(fan_in: int) -> Any:
    """Normal with variance 1 / fan_in, as `RecurrentLanguageModel.init` draws."""
    return keras.initializers.RandomNormal(stddev=fan_in**-0.5)
