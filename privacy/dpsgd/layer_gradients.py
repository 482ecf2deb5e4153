"""Computes per-example gradients of a Keras model's weights from one forward and one backward pass.

Each layer with weights marks *taps* (tensors inside it, [B, ...]) and gives the `ghost_norms.Term`s that follow from
the loss's gradients at the taps. A layer has a *closed form* if its terms need no further pass through the layer.
Dense, Embedding and LSTM have one here. A custom layer gets one by a method

    call_tapped(tap, *args, **kwargs) -> (outputs, terms), or None if there is no closed form for this call

`args` and `kwargs` are the arguments of `call`. `tap(tensor)` marks a tap and returns the tensor. `terms(*gradients)`
takes the gradients at the taps, in the order in which the taps were marked, and returns (weight, left, right) triples.
The gradients of a layer without a closed form are computed example by example, by another pass through the layer for
each example.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from privacy.dpsgd.ghost_norms import Term

Tap = Callable[[tf.Tensor], tf.Tensor]
Terms = Callable[..., list[Any]]

# Longer sequences through an LSTM are computed example by example: building the unrolled graph would take long.
_LONGEST_UNROLLED = 64


def closed_form(layer: keras.layers.Layer) -> Callable[..., Any] | None:
    """Returns the layer's function `call_tapped(tap, *args, **kwargs)`, or None if the layer has no closed form."""
    # A class's closed form does not hold for a subclass that overrides `call`.
    for owner in type(layer).__mro__:
        if "call_tapped" in vars(owner):
            return layer.call_tapped  # type: ignore[no-any-return]
        if "call" in vars(owner):
            break
    stock = {
        keras.layers.Dense: (_call_dense, 2),
        keras.layers.Embedding: (_call_embedding, 1),
        keras.layers.LSTM: (_call_lstm, 3),
    }
    function: Any
    function, max_weights = stock.get(type(layer), (None, 0))
    if function is None or len(layer.trainable_weights) > max_weights or getattr(layer, "quantization_mode", None):
        return None  # further weights belong to an activation or to low-rank adaptation
    return lambda *args, **kwargs: function(layer, *args, **kwargs)


def layers_with_weights(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the innermost layers (or models that have weights of their own) that hold all trainable weights."""
    if not layer.trainable_weights:
        return []
    if closed_form(layer) is None and isinstance(layer, keras.Model):
        below = [inner for part in layer.layers for inner in layers_with_weights(part)]
        held = {id(weight) for part in below for weight in part.trainable_weights}
        if held == {id(weight) for weight in layer.trainable_weights}:
            return list({id(part): part for part in below}.values())
    return [layer]


class Recording:
    """Records the taps and terms of one forward pass.

    Attributes:
      recomputed: names of the layers without a closed form, whose gradients are computed example by example.
    """

    def __init__(self, tape: tf.GradientTape) -> None:
        self._tape = tape
        self._calls: list[tuple[list[tf.Tensor], Terms]] = []
        self.recomputed: set[str] = set()

    @property
    def taps(self) -> list[tf.Tensor]:
        """Returns all taps, in the order of the calls."""
        return [tap for taps, _ in self._calls for tap in taps]

    def terms(self, gradients: list[Any]) -> list[Term]:
        """Returns the terms of all calls, given the loss's gradients at `taps`."""
        remaining, results = list(gradients), []
        for taps, terms in self._calls:
            results += [Term(*term) for term in terms(*remaining[: len(taps)])]
            del remaining[: len(taps)]
        return results

    @contextlib.contextmanager
    def of(self, model: keras.layers.Layer) -> Iterator[None]:
        """Records the model's calls inside `with`."""
        layers = layers_with_weights(model)
        for layer in layers:
            object.__setattr__(layer, "call", self._recording_call(layer))
        try:
            yield
        finally:
            for layer in layers:
                object.__delattr__(layer, "call")

    def _recording_call(self, layer: keras.layers.Layer) -> Callable[..., Any]:
        call, form = layer.call, closed_form(layer)

        def call_with_taps(tap: Tap, args: Any, kwargs: Any) -> Any:
            result = form(tap, *args, **kwargs) if form is not None else None
            if result is None:
                self.recomputed.add(layer.name)
                result = _call_and_recompute(layer, call, tap, args, kwargs)
            return result

        @tf.autograph.experimental.do_not_convert
        def recorded(*args: Any, **kwargs: Any) -> Any:
            taps: list[tf.Tensor] = []

            def tap(tensor: tf.Tensor) -> tf.Tensor:
                self._tape.watch(tensor)
                taps.append(tensor)
                return tensor

            object.__delattr__(layer, "call")  # a closed form may call the layer's own `call`
            try:
                outputs, terms = call_with_taps(tap, args, kwargs)
            finally:
                object.__setattr__(layer, "call", recorded)
            self._calls.append((taps, terms))
            return outputs

        return recorded


def _call_dense(layer: Any, tap: Tap, inputs: tf.Tensor, training: Any = None) -> Any:
    kernel = tf.convert_to_tensor(layer.kernel)
    inputs = tf.convert_to_tensor(inputs)
    z = tf.tensordot(inputs, kernel, 1) if inputs.shape.rank > 2 else tf.matmul(inputs, kernel)
    z = tap(tf.nn.bias_add(z, tf.convert_to_tensor(layer.bias)) if layer.use_bias else z)

    def terms(gradient: tf.Tensor) -> list[Any]:
        left, right = _flatten_positions(inputs), _flatten_positions(gradient)
        triples = [(layer.kernel, left, right)]
        return [*triples, (layer.bias, None, tf.reduce_sum(right, axis=1))] if layer.use_bias else triples

    return (z if layer.activation is None else layer.activation(z)), terms


def _call_embedding(layer: Any, tap: Tap, inputs: tf.Tensor) -> Any:
    ids = tf.cast(inputs, tf.int32)
    outputs = tap(tf.gather(tf.convert_to_tensor(layer.embeddings), ids))

    def terms(gradient: tf.Tensor) -> list[Any]:
        right = _flatten_positions(gradient)
        return [(layer.embeddings, tf.reshape(ids, [-1, right.shape[1]]), right)]

    return outputs, terms


def _call_lstm(layer: Any, tap: Tap, inputs: tf.Tensor, mask: Any = None, training: Any = None, **kwargs: Any) -> Any:
    cell = layer.cell
    supported = cell.use_bias and not (
        layer.stateful or layer.go_backwards or layer.return_state or cell.dropout or cell.recurrent_dropout
    )
    length = inputs.shape[1]
    if mask is not None or any(v is not None for v in kwargs.values()) or not supported:
        return None
    if length is None or length > _LONGEST_UNROLLED:
        return None
    kernel, recurrent = tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)
    inputs = tf.convert_to_tensor(inputs)
    projected = tap(tf.tensordot(inputs, kernel, 1) + tf.convert_to_tensor(cell.bias))
    gate, squash = cell.recurrent_activation, cell.activation
    state = c = tf.zeros_like(projected[:, 0, : cell.units])
    states_before = []  # the state that each step begins with
    for z in tf.unstack(projected, axis=1):
        states_before.append(state)
        i, f, g, o = tf.split(z + tf.matmul(state, recurrent), 4, axis=-1)
        c = gate(f) * c + gate(i) * squash(g)
        state = gate(o) * squash(c)
    outputs = tf.stack([*states_before[1:], state], axis=1)

    def terms(gradient: tf.Tensor) -> list[Any]:
        return [
            (cell.kernel, inputs, gradient),
            (cell.recurrent_kernel, tf.stack(states_before, axis=1), gradient),
            (cell.bias, None, tf.reduce_sum(gradient, axis=1)),
        ]

    return (outputs if layer.return_sequences else state), terms


def _flatten_positions(value: tf.Tensor) -> tf.Tensor:
    """Reshapes [B, ..., N] to [B, T, N]."""
    if value.shape.rank == 3:
        return value
    sizes = value.shape[1:-1]
    positions = sizes.num_elements() if sizes.is_fully_defined() else tf.reduce_prod(tf.shape(value)[1:-1])
    return tf.reshape(value, [tf.shape(value)[0], positions, value.shape[-1]])


def _call_and_recompute(layer: Any, call: Callable[..., Any], tap: Tap, args: Any, kwargs: Any) -> Any:
    """Calls a layer without a closed form. Its terms are computed by another pass through it for each example alone."""
    # `identity` makes each output a tensor of its own, since one output may be computed from another.
    outputs = tf.nest.map_structure(lambda value: tap(tf.identity(value)), call(*args, **kwargs))
    rows = tf.nest.flatten(outputs)[0].shape[0]
    weights = [variable(weight) for weight in layer.trainable_weights]
    arguments = tf.nest.flatten((args, kwargs))
    batched = [
        i
        for i, value in enumerate(arguments)
        if tf.is_tensor(value) and value.shape.rank and value.shape[0] in (None, rows)
    ]

    def gradients_of_one(elements: Any) -> list[tf.Tensor]:
        values, gradients = elements
        alone = list(arguments)
        for i, value in zip(batched, values, strict=True):
            alone[i] = value[tf.newaxis]
        one_args, one_kwargs = tf.nest.pack_sequence_as((args, kwargs), alone)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            out = tf.nest.flatten(call(*one_args, **one_kwargs))
        upstream = [gradient[tf.newaxis] for gradient in gradients]
        return tape.gradient(out, weights, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def terms(*gradients: tf.Tensor) -> list[Any]:
        elements = ([arguments[i] for i in batched], list(gradients))
        signature = [tf.TensorSpec(w.shape, w.dtype) for w in weights]
        parts = tf.map_fn(gradients_of_one, elements, fn_output_signature=signature)
        return [(weight, None, part) for weight, part in zip(layer.trainable_weights, parts, strict=True)]

    return outputs, terms


def variable(weight: Any) -> tf.Variable:
    """Returns a Keras weight's TensorFlow variable, which Keras 3 wraps."""
    return weight if isinstance(weight, tf.Variable) else weight.value
