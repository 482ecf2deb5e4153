"""Whether a Keras model, with its loss, is one in which clipping each example's gradient protects it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy import ghost_norms
from privacy.examples import Examples, Losses, one_line
from privacy.layer_gradients import Recording, variable

_PROBED = 7  # examples
_ZERO = tf.UnconnectedGradients.ZERO


def check_values(model: Any, losses: Losses, data: Examples) -> None:
    """Raises ValueError, in one line, if a label or a row that is looked up is out of range."""
    name = (
        model.loss if isinstance(model.loss, str) else getattr(model.loss, "name", getattr(model.loss, "__name__", ""))
    )
    parts = tf.nest.flatten((data.x, data.y))  # whatever their type: a real number may be looked up too
    extremes = {int(np.argmin(part) // (part.size // len(part))) for part in parts}
    extremes |= {int(np.argmax(part) // (part.size // len(part))) for part in parts}
    rows = np.array(sorted(extremes | {0}))
    with one_line():
        if "sparse_categorical" in name and getattr(model.loss, "ignore_class", None) is None:
            classes = model(data.take(rows)[0]).shape[-1]
            if data.y.min() < 0 or data.y.max() >= classes:
                raise ValueError(f"labels go from {data.y.min():g} to {data.y.max():g}: 0 to {classes - 1} are needed")
        losses(*data.take(rows), training=False)


def check_apart(model: Any, losses: Losses, data: Examples) -> set[str]:
    """Tries the model on a few examples, and on the extremes of what is looked up.

    Clipping is only worth something if a weight acts on each example alone, through the layer that holds it, and if
    nothing but the weights remembers the examples. Real numbers of the examples are made up, whole ones taken from the
    data; the weights are moved away from their first values, at which much is hidden, and put back.

    Returns:
      Names of the layers whose gradients have no closed form and are taken example by example.

    Raises:
      ValueError: it is not so, in one line that says what to change.
    """
    weights = list(model.trainable_weights)
    kept = _Kept(model, losses, data)
    if [id(weight) for weight in model.trainable_weights] != [id(weight) for weight in weights]:
        raise ValueError(f"model {model.name} was not built whole: call it, or model.build, before it is compiled")
    try:
        with one_line():
            check_values(model, losses, data)
            random = np.random.default_rng(0)
            kept.move(random)
            probe = _Probe(model, losses, data, random)
            if not probe.is_finite:
                kept.put_back()
            probe.check_forward()
            recomputed = probe.check_gradients(weights)
            kept.check()
    finally:
        kept.put_back()
    return recomputed


class _Kept:
    """All variables that the model's calls touch, and what was in them."""

    def __init__(self, model: Any, losses: Losses, data: Examples) -> None:
        with one_line():
            traced = tf.function(losses, autograph=False).get_concrete_function(*data.signature())
        self._model = model
        self._weights = [variable(weight) for weight in model.trainable_weights]
        found = {id(v): v for v in [*map(variable, model.non_trainable_weights), *traced.graph.variables]}
        trained = {id(weight) for weight in self._weights}
        self._others = [v for key, v in found.items() if key not in trained and not _is_random_state(v)]
        self._before = [(v, v.numpy()) for v in [*self._weights, *self._others]]

    def move(self, random: np.random.Generator) -> None:
        """Away from weights at which a branch is closed or a gradient zero."""
        for weight in self._weights:
            weight.assign_add(tf.constant(0.1 * random.normal(size=weight.shape), weight.dtype))

    def check(self) -> None:
        """Raises ValueError if anything but the weights has changed."""
        others = {id(v) for v in self._others}
        for v, value in self._before:
            if id(v) in others and not np.array_equal(v.numpy(), value):
                raise ValueError(
                    f"model {self._model.name} keeps {v.name} of the examples without noise (a running average, a "
                    "metric?): take a layer that does not, such as GroupNormalization"
                )

    def put_back(self) -> None:
        for v, value in self._before:
            v.assign(value)


def _is_random_state(v: tf.Variable) -> bool:
    return v.dtype.is_integer and ("seed" in v.name or "StateVar" in v.name)


class _Probe:
    def __init__(self, model: Any, losses: Losses, data: Examples, random: np.random.Generator) -> None:
        self._model, self._losses, self._random = model, losses, random
        self._x, self._y = self._drawn(data)
        self._others = self._drawn(data)
        self.is_finite = bool(np.isfinite(losses(self._x, self._y)).all())
        # A model that draws random numbers (dropout) is looked at as it predicts.
        self._training = self._repeats(training=True)
        self._compares = self._training or self._repeats(training=False)

    def _repeats(self, training: bool) -> bool:
        first, second = (self._losses(self._x, self._y, training=training).numpy() for _ in range(2))
        return np.array_equal(first, second, equal_nan=True)

    def _drawn(self, data: Examples) -> Any:
        rows = self._random.integers(0, len(data.y), _PROBED)

        def drawn(part: npt.NDArray[Any]) -> tf.Tensor:
            if part.dtype.kind == "f":
                return tf.constant(self._random.random((_PROBED, *part.shape[1:])), part.dtype)
            return tf.convert_to_tensor(part[rows])

        return tf.nest.map_structure(drawn, (data.x, data.y))

    def _forward(self, x: Any, y: Any) -> npt.NDArray[Any]:
        found = self._losses(x, y, training=self._training)
        if found.shape != (len(y),):
            raise ValueError(f"the loss gives shape {list(found.shape)} for {len(y)} examples: give one for each")
        losses: npt.NDArray[Any] = found.numpy()
        return losses

    def check_forward(self) -> None:
        """An example's loss must not change when all others do, or go, nor when it is recorded."""
        name, found = self._model.name, self._forward(self._x, self._y)
        if not np.isfinite(found).all():
            raise ValueError(f"model {name}: the loss is not finite on made-up data from 0 to 1: look at its layers")
        if self._model.losses:
            raise ValueError(f"model {name} adds regularisation losses: use the optimizer's weight_decay")
        if not self._compares:
            return
        for alone in (0, _PROBED - 1):
            only = np.arange(_PROBED) == alone

            def mixed(part: tf.Tensor, other: tf.Tensor, only: npt.NDArray[Any] = only) -> tf.Tensor:
                return tf.where(only.reshape(-1, *[1] * (part.shape.rank - 1)), part, other)

            changed = self._forward(*tf.nest.map_structure(mixed, (self._x, self._y), self._others))
            x, y = tf.nest.map_structure(lambda part, first=alone: part[first : first + 1], (self._x, self._y))
            single = self._forward(x, y)
            if not (_equal(changed[alone], found[alone]) and _equal(single[0], found[alone])):
                raise _mixes(name)
        with tf.GradientTape() as tape, Recording(tape).of(self._model):
            recorded = self._forward(self._x, self._y)
        if not _equal(recorded, found):
            raise ValueError(
                f"model {name}: a layer's call_tapped computes something else than its call: mend it, or leave it out"
            )

    def check_gradients(self, weights: list[Any]) -> set[str]:
        """Each example's gradient must follow from the layers' calls, and reach no other example."""
        inputs = [part for part in tf.nest.flatten(self._x) if part.dtype.is_floating]
        with tf.GradientTape(persistent=True) as tape:
            recording = Recording(tape)
            tape.watch(inputs)
            with recording.of(self._model):
                losses = self._losses(self._x, self._y)
            each = tf.unstack(losses)
        for alone in (0, _PROBED - 1):
            for found in tape.gradient(each[alone], [*recording.taps, *inputs], unconnected_gradients=_ZERO):
                if np.delete(found.numpy(), alone, axis=0).any():
                    raise _mixes(self._model.name)
        gradients = tape.gradient(losses, recording.taps, unconnected_gradients=_ZERO)
        groups = ghost_norms.by_weight(recording.terms(gradients))
        variables = [variable(weight) for weight in weights]
        for number, loss in enumerate(each):
            one_hot = tf.one_hot(number, _PROBED, dtype=losses.dtype)
            mine = ghost_norms.in_order(weights, groups, one_hot)
            true = [part.numpy() for part in map(tf.convert_to_tensor, tape.gradient(loss, variables, None, _ZERO))]
            largest = max(float(np.abs(part).max(initial=0)) for part in true)
            for weight, found, its in zip(variables, mine, true, strict=True):
                within = max(1e-3 * float(np.abs(its).max(initial=0)), 1e-6 * largest)
                if not np.allclose(found.numpy(), its, rtol=1e-3, atol=within):
                    raise ValueError(
                        f"model {self._model.name}: the gradient of {weight.name} does not follow from its layer's "
                        "calls: use a weight only in its own layer, and randomness only in layers without weights"
                    )
        return recording.recomputed


def _equal(first: Any, second: Any) -> bool:
    return np.allclose(first, second, rtol=1e-5, atol=1e-6)


def _mixes(name: str) -> ValueError:
    return ValueError(
        f"model {name} mixes examples: the loss of one depends on others, or on their number, so that no clipping "
        "protects them (batch normalisation does this, group normalisation does not)"
    )
