"""Whether a Keras model, with its loss, is one in which clipping each example's gradient protects it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.dpsgd import ghost_norms
from privacy.dpsgd.batch_checks import LARGEST_BATCH, Batches, pairs_stay, rounding_of, rows_stay, same
from privacy.dpsgd.examples import Examples, Losses, one_line
from privacy.dpsgd.layer_gradients import Recording, variable
from privacy.dpsgd.random_states import RandomState, is_random_state, silenced, trace

_PROBED = 7  # examples
_ZERO = tf.UnconnectedGradients.ZERO
_RANDOM_STATES = 5  # from which a model that draws random numbers is tried in all ways
# From which it is tried on the data if others than Keras' own dropout and noise layers draw: a branch that is taken
# with probability 0.1 is missed with probability 0.9^44 < 0.01.
_OWN_RANDOM_STATES = 44


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


def check_apart(model: Any, losses: Losses, data: Examples, largest: int = LARGEST_BATCH) -> set[str]:
    """Tries the model on a few made-up examples and on batches of the data, extreme rows among them.

    Clipping is only worth something if a weight acts on each example alone, through the layer that holds it, and if
    nothing but the weights remembers the examples. Gradients are taken of made-up examples: real numbers from 0 to 1,
    integers from the data. Losses are compared on these and on rows of the data (see `privacy.dpsgd.batch_checks`). The
    weights are moved away from their first values, at which much is hidden, and put back; on the data the losses are
    compared at the first values too. All passes are of the model as it trains. Of a model that draws random numbers
    they are compared with Keras' own dropout and noise layers silenced, and again with all random state restored before
    each pass; it is put back at the end.

    Args:
      model: built and compiled.
      losses: the model's, of `losses_of`.
      data: what it is to be trained on.
      largest: number of examples, at least 1, that a step takes at once; batches of the data are of at most
        `LARGEST_BATCH`.

    Returns:
      Names of the layers whose gradients have no closed form and are taken example by example.

    Raises:
      ValueError: it is not so, in one line that says what to change.
    """
    with RandomState(model) as state:
        return _check_apart(model, losses, data, state, largest)


def _check_apart(model: Any, losses: Losses, data: Examples, state: RandomState, largest: int) -> set[str]:
    weights = list(model.trainable_weights)
    kept = _Kept(model, losses, data)
    state.add(kept.generators)
    if [id(weight) for weight in model.trainable_weights] != [id(weight) for weight in weights]:
        raise ValueError(f"model {model.name} was not built whole: call it, or model.build, before it is compiled")
    try:
        with one_line():
            check_values(model, losses, data)
            generator = np.random.default_rng(0)
            kept.move(generator)
            probe = _Probe(model, losses, data, generator, state, kept)
            if not probe.is_finite:
                kept.put_back()
            probe.check_forward()
            recomputed = probe.check_gradients(weights)
            kept.check()
            own = _OnData(model, losses, data, largest, generator, state, kept)
            own.check(probe.draws)
            kept.check()
    finally:
        kept.put_back()
    return recomputed


class _Kept:
    """All variables that the model's calls touch, and what was in them."""

    def __init__(self, model: Any, losses: Losses, data: Examples) -> None:
        with one_line():
            self.traced, self.draws = trace(losses, data)
        self._model = model
        self._weights = [variable(weight) for weight in model.trainable_weights]
        found = {
            id(v): v
            for v in [*map(variable, model.non_trainable_weights), *self.traced.get_concrete_function().graph.variables]
        }
        trained = {id(weight) for weight in self._weights}
        self._others = [v for key, v in found.items() if key not in trained and not is_random_state(v)]
        self.generators = [v for key, v in found.items() if key not in trained and is_random_state(v)]
        self._before = [(v, v.numpy()) for v in [*self._weights, *self._others]]
        self.variables = [v for v, _ in self._before]

    def move(self, generator: np.random.Generator) -> None:
        """Away from weights at which a branch is closed or a gradient zero."""
        for weight in self._weights:
            weight.assign_add(tf.constant(0.1 * generator.normal(size=weight.shape), weight.dtype))

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


class _Probe:
    def __init__(
        self,
        model: Any,
        losses: Losses,
        data: Examples,
        generator: np.random.Generator,
        state: RandomState,
        kept: _Kept,
    ) -> None:
        self._model, self._losses, self._generator, self._state = model, losses, generator, state
        self._x, self._y = self._drawn(data)
        self._others = self._drawn(data)
        self.is_finite = bool(np.isfinite(losses(self._x, self._y)).all())
        self._variables = kept.variables
        self.draws = kept.draws or not self._repeats(_nothing)

    def _repeats(self, prepare: Callable[[], None], training: bool = True) -> bool:
        """Whether two passes over the same examples give the same losses, each after a call of `prepare`."""
        found = []
        for _ in range(2):
            prepare()
            found.append(self._losses(self._x, self._y, training=training).numpy())
        return np.array_equal(found[0], found[1], equal_nan=True)

    def _drawn(self, data: Examples) -> Any:
        rows = self._generator.integers(0, len(data.y), _PROBED)

        def drawn(part: npt.NDArray[Any]) -> tf.Tensor:
            if part.dtype.kind == "f":
                return tf.constant(self._generator.random((_PROBED, *part.shape[1:])), part.dtype)
            return tf.convert_to_tensor(part[rows])

        return tf.nest.map_structure(drawn, (data.x, data.y))

    def _forward(self, x: Any, y: Any, training: bool = True) -> npt.NDArray[Any]:
        found = self._losses(x, y, training=training)
        if found.shape != (len(y),):
            raise ValueError(f"the loss gives shape {list(found.shape)} for {len(y)} examples: give one for each")
        losses: npt.NDArray[Any] = found.numpy()
        return losses

    def check_forward(self) -> None:
        """An example's loss must not change when all others do, or go, nor when it is recorded."""
        found = self._forward(self._x, self._y)
        if not np.isfinite(found).all():
            raise ValueError(
                f"model {self._model.name}: the loss is not finite on made-up data from 0 to 1: look at its layers"
            )
        if self._model.losses:
            raise ValueError(f"model {self._model.name} adds regularisation losses: use the optimizer's weight_decay")
        if not self.draws:
            self._compare()
            return
        for number in range(_RANDOM_STATES):

            def restore(number: int = number) -> None:
                self._state.restore(number)

            if not self._repeats(restore):
                raise ValueError(
                    f"model {self._model.name} draws random numbers that cannot be drawn again, so that nothing shows "
                    "whether it keeps examples apart: draw them by tf.random or by Keras' layers"
                )
            self._compare(restore, others_go=number == 0)
        with silenced(self._model):
            for training in (True, False):
                if self._repeats(_nothing, training):
                    self._compare(training=training)
                    return

    def _compare(
        self, restore: Callable[[], None] | None = None, others_go: bool = True, training: bool = True
    ) -> None:
        """Raises ValueError unless the losses of the first and the last example are theirs alone.

        Args:
          restore: called before each pass of a model that draws random numbers. Then an example is compared with itself
            at the same place in the batch alone: numbers are drawn in the order of the examples.
          others_go: whether to try it alone too, and recorded.
          training: as the model's calls take it.
        """

        def forward(x: Any, y: Any) -> npt.NDArray[Any]:
            (restore or _nothing)()
            return self._forward(x, y, training)

        found = forward(self._x, self._y)
        within = rounding_of(found, self._x, self._y, forward, self._variables, self._generator)
        for alone in (0, _PROBED - 1):
            only = np.arange(_PROBED) == alone

            def mixed(part: tf.Tensor, other: tf.Tensor, only: npt.NDArray[Any] = only) -> tf.Tensor:
                return tf.where(only.reshape(-1, *[1] * (part.shape.rank - 1)), part, other)

            changed = forward(*tf.nest.map_structure(mixed, (self._x, self._y), self._others))
            if not same(changed[alone], found[alone], within[alone]):
                raise _mixes(self._model.name)
            if not others_go:
                continue
            first = found[alone]
            if restore and alone:
                first = forward(*tf.nest.map_structure(lambda part: tf.reverse(part, [0]), (self._x, self._y)))[0]
            x, y = tf.nest.map_structure(lambda part, row=alone: part[row : row + 1], (self._x, self._y))
            if not same(forward(x, y)[0], first, within[alone]):
                raise _mixes(self._model.name)
        if not others_go:
            return
        with tf.GradientTape() as tape, Recording(tape).of(self._model):
            recorded = forward(self._x, self._y)
        if not same(recorded, found, within):
            raise ValueError(
                f"model {self._model.name}: a layer's call_tapped computes something else than its call: fix it, or "
                "leave it out"
            )

    def check_gradients(self, weights: list[Any]) -> set[str]:
        """Each example's gradient must follow from the layers' calls, and reach no other example."""
        if self.draws:
            self._state.restore(0)
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


class _OnData:
    """Compares losses between batches of the data."""

    def __init__(
        self,
        model: Any,
        losses: Losses,
        data: Examples,
        largest: int,
        generator: np.random.Generator,
        state: RandomState,
        kept: _Kept,
    ) -> None:
        self._model, self._losses, self._data, self._state, self._kept = model, losses, data, state, kept
        self._generator = generator
        self._batches = Batches(data, largest, generator)

    def check(self, draws: bool) -> None:
        """Raises ValueError unless each example's loss is its own. Puts the weights' first values back on the way."""
        traced, own = self._kept.traced, False
        if draws:
            with silenced(self._model):
                traced, own = trace(self._losses, self._data)
            self._compare_pairs(_OWN_RANDOM_STATES if own else _RANDOM_STATES)
        if own:
            return
        for put_back in (_nothing, self._kept.put_back):
            put_back()
            if not rows_stay(self._batches, lambda x, y: traced(x, y).numpy(), self._kept.variables, self._generator):
                raise _mixes(self._model.name)

    def _compare_pairs(self, states: int) -> None:
        for number in range(states):

            def forward(x: Any, y: Any, number: int = number) -> npt.NDArray[Any]:
                self._state.restore(number)
                losses: npt.NDArray[Any] = self._losses(x, y).numpy()
                return losses

            for large in (False, True) if number < _RANDOM_STATES else (False,):
                if not pairs_stay(self._batches, forward, number, large):
                    raise _mixes(self._model.name)


def _nothing() -> None:
    pass


def _mixes(name: str) -> ValueError:
    return ValueError(
        f"model {name} mixes examples: the loss of one depends on others, or on their number, so that no clipping "
        "protects them (batch normalisation does this, group normalisation does not)"
    )
