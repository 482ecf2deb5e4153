"""Per-example gradients of a Keras model's weights, layer by layer, from one forward and one backward pass.

Each layer with weights is asked for its *taps* (tensors inside it, [B, ...]) and for the `ghost_norms.Term`s that
follow from the loss's gradients there. A layer of one's own has a closed form by a method

    call_tapped(tap, *args, **kwargs) -> (outputs, terms), or None if it has none for this call

with `call`'s arguments, where `tap(tensor)` marks a tap and hands it back, and `terms(*gradients)`, given the gradients
at the taps in their order, returns (weight, left, right) triples. Layers without a closed form are run anew, backwards,
example by example.
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

# Longer sequences through an LSTM go example by example: an unrolled graph takes time to build.
_LONGEST_UNROLLED = 64


def closed_form(layer: keras.layers.Layer) -> Callable[..., Any] | None:
    """The function of (tap, *args, **kwargs) that calls the layer and gives its terms, or None."""
    # A subclass may compute something else than the class that the closed form is of.
    for owner in type(layer).__mro__:
        if "call_tapped" in vars(owner):
            return layer.call_tapped  # type: ignore[no-any-return]
        if "call" in vars(owner):
            break
    stock = {keras.layers.Dense: (_dense, 2), keras.layers.Embedding: (_embedding, 1), keras.layers.LSTM: (_lstm, 3)}
    function: Any
    function, most = stock.get(type(layer), (None, 0))
    if function is None or len(layer.trainable_weights) > most or getattr(layer, "quantization_mode", None):
        return None  # more weights: of an activation with its own, of low-rank adaptation
    return lambda *args, **kwargs: function(layer, *args, **kwargs)


def layers_with_weights(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The innermost models' layers, or models with weights of their own, that hold all weights to be trained."""
    if not layer.trainable_weights:
        return []
    if closed_form(layer) is None and isinstance(layer, keras.Model):
        below = [found for part in layer.layers for found in layers_with_weights(part)]
        held = {id(weight) for part in below for weight in part.trainable_weights}
        if held == {id(weight) for weight in layer.trainable_weights}:
            return list({id(part): part for part in below}.values())
    return [layer]


class Recording:
    """Taps and terms of one forward pass."""

    def __init__(self, tape: tf.GradientTape) -> None:
        self._tape = tape
        self._calls: list[tuple[list[tf.Tensor], Terms]] = []
        self.recomputed: set[str] = set()

    @property
    def taps(self) -> list[tf.Tensor]:
        """All taps, in the order of the calls."""
        return [tap for taps, _ in self._calls for tap in taps]

    def terms(self, gradients: list[Any]) -> list[Term]:
        """From the loss's gradients at `taps`."""
        waiting, found = list(gradients), []
        for taps, terms in self._calls:
            found += [Term(*term) for term in terms(*waiting[: len(taps)])]
            del waiting[: len(taps)]
        return found

    @contextlib.contextmanager
    def of(self, model: keras.layers.Layer) -> Iterator[None]:
        """Within, calls of the model are recorded."""
        layers = layers_with_weights(model)
        for layer in layers:
            object.__setattr__(layer, "call", self._recorded(layer))
        try:
            yield
        finally:
            for layer in layers:
                object.__delattr__(layer, "call")

    def _recorded(self, layer: keras.layers.Layer) -> Callable[..., Any]:
        call, form = layer.call, closed_form(layer)

        def tapped(tap: Tap, args: Any, kwargs: Any) -> Any:
            result = form(tap, *args, **kwargs) if form is not None else None
            if result is None:
                self.recomputed.add(layer.name)
                result = _recomputed(layer, call, tap, args, kwargs)
            return result

        @tf.autograph.experimental.do_not_convert
        def recorded(*args: Any, **kwargs: Any) -> Any:
            taps: list[tf.Tensor] = []

            def tap(tensor: tf.Tensor) -> tf.Tensor:
                self._tape.watch(tensor)
                taps.append(tensor)
                return tensor

            object.__delattr__(layer, "call")  # a closed form may use it
            try:
                outputs, terms = tapped(tap, args, kwargs)
            finally:
                object.__setattr__(layer, "call", recorded)
            self._calls.append((taps, terms))
            return outputs

        return recorded


def _dense(layer: Any, tap: Tap, inputs: tf.Tensor, training: Any = None) -> Any:
    kernel = tf.convert_to_tensor(layer.kernel)
    inputs = tf.convert_to_tensor(inputs)
    z = tf.tensordot(inputs, kernel, 1) if inputs.shape.rank > 2 else tf.matmul(inputs, kernel)
    z = tap(tf.nn.bias_add(z, tf.convert_to_tensor(layer.bias)) if layer.use_bias else z)

    def terms(gradient: tf.Tensor) -> list[Any]:
        left, right = _positions(inputs), _positions(gradient)
        found = [(layer.kernel, left, right)]
        return [*found, (layer.bias, None, tf.reduce_sum(right, axis=1))] if layer.use_bias else found

    return (z if layer.activation is None else layer.activation(z)), terms


def _embedding(layer: Any, tap: Tap, inputs: tf.Tensor) -> Any:
    ids = tf.cast(inputs, tf.int32)
    outputs = tap(tf.gather(tf.convert_to_tensor(layer.embeddings), ids))

    def terms(gradient: tf.Tensor) -> list[Any]:
        right = _positions(gradient)
        return [(layer.embeddings, tf.reshape(ids, [-1, right.shape[1]]), right)]

    return outputs, terms


def _lstm(layer: Any, tap: Tap, inputs: tf.Tensor, mask: Any = None, training: Any = None, **kwargs: Any) -> Any:
    cell = layer.cell
    usual = cell.use_bias and not (
        layer.stateful or layer.go_backwards or layer.return_state or cell.dropout or cell.recurrent_dropout
    )
    length = inputs.shape[1]
    if mask is not None or any(v is not None for v in kwargs.values()) or not usual:
        return None
    if length is None or length > _LONGEST_UNROLLED:
        return None
    kernel, recurrent = tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)
    inputs = tf.convert_to_tensor(inputs)
    projected = tap(tf.tensordot(inputs, kernel, 1) + tf.convert_to_tensor(cell.bias))
    gate, squash = cell.recurrent_activation, cell.activation
    state = c = tf.zeros_like(projected[:, 0, : cell.units])
    trail = []
    for z in tf.unstack(projected, axis=1):
        trail.append(state)
        i, f, g, o = tf.split(z + tf.matmul(state, recurrent), 4, axis=-1)
        c = gate(f) * c + gate(i) * squash(g)
        state = gate(o) * squash(c)
    outputs = tf.stack([*trail[1:], state], axis=1)

    def terms(gradient: tf.Tensor) -> list[Any]:
        return [
            (cell.kernel, inputs, gradient),
            (cell.recurrent_kernel, tf.stack(trail, axis=1), gradient),
            (cell.bias, None, tf.reduce_sum(gradient, axis=1)),
        ]

    return (outputs if layer.return_sequences else state), terms


def _positions(value: tf.Tensor) -> tf.Tensor:
    """[B, ..., N] as [B, T, N]."""
    if value.shape.rank == 3:
        return value
    sizes = value.shape[1:-1]
    positions = sizes.num_elements() if sizes.is_fully_defined() else tf.reduce_prod(tf.shape(value)[1:-1])
    return tf.reshape(value, [tf.shape(value)[0], positions, value.shape[-1]])


def _recomputed(layer: Any, call: Callable[..., Any], tap: Tap, args: Any, kwargs: Any) -> Any:
    """Any layer: its gradient is taken anew for each example alone."""
    # Each output a tensor of its own: one may be another's ancestor.
    outputs = tf.nest.map_structure(lambda value: tap(tf.identity(value)), call(*args, **kwargs))
    rows = tf.nest.flatten(outputs)[0].shape[0]
    weights = [variable(weight) for weight in layer.trainable_weights]
    given = tf.nest.flatten((args, kwargs))
    of_examples = [
        i
        for i, value in enumerate(given)
        if tf.is_tensor(value) and value.shape.rank and value.shape[0] in (None, rows)
    ]

    def of_one(elements: Any) -> list[tf.Tensor]:
        values, gradients = elements
        alone = list(given)
        for i, value in zip(of_examples, values, strict=True):
            alone[i] = value[tf.newaxis]
        one_args, one_kwargs = tf.nest.pack_sequence_as((args, kwargs), alone)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            out = tf.nest.flatten(call(*one_args, **one_kwargs))
        upstream = [gradient[tf.newaxis] for gradient in gradients]
        return tape.gradient(out, weights, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def terms(*gradients: tf.Tensor) -> list[Any]:
        elements = ([given[i] for i in of_examples], list(gradients))
        whole = tf.map_fn(of_one, elements, fn_output_signature=[tf.TensorSpec(w.shape, w.dtype) for w in weights])
        return [(weight, None, part) for weight, part in zip(layer.trainable_weights, whole, strict=True)]

    return outputs, terms


def variable(weight: Any) -> tf.Variable:
    """A Keras weight's TensorFlow variable; Keras 3 wraps it."""
    return weight if isinstance(weight, tf.Variable) else weight.value
