"""Checks that a Keras model and its loss keep examples apart, so that clipping each example's gradient protects it."""

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

_PROBED = 7  # made-up examples
_ZERO = tf.UnconnectedGradients.ZERO
_RANDOM_STATES = 5  # number of random states for the checks on made-up examples and on batches of both sizes
# Random states from which a model is checked on the data if layers other than Keras' own dropout and noise layers draw
# numbers: a branch that is taken with probability 0.1 is missed with probability 0.9^44 < 0.01.
_OWN_RANDOM_STATES = 44


def check_values(model: Any, losses: Losses, data: Examples) -> None:
    """Raises ValueError if a label or an index into an embedding is out of range."""
    name = (
        model.loss if isinstance(model.loss, str) else getattr(model.loss, "name", getattr(model.loss, "__name__", ""))
    )
    parts = tf.nest.flatten((data.x, data.y))  # of every dtype, since floats may be indices too
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
    """Checks on a few made-up examples and on batches of the data that the model keeps examples apart.

    Clipping protects an example only if each weight acts on each example alone, through the layer that holds it, and if
    nothing but the weights keeps information about the examples. Gradients are checked on made-up examples: floats from
    0 to 1, integers from the data. Losses are compared on these and on rows of the data, extreme ones among them (see
    `privacy.dpsgd.batch_checks`).

    The weights are moved away from their initial values, at which mixing may not show, and put back at the end. On the
    data the losses are compared at the initial values too. The model runs as in training. If it draws random numbers,
    losses are compared with Keras' own dropout and noise layers silenced, and also without silencing, with all random
    state restored before each pass. The random state is put back at the end.

    Args:
      model: built and compiled.
      losses: the model's losses, from `losses_of`.
      data: data that the model is to be trained on.
      largest: number of examples that a step takes at once, at least 1; batches of the data hold at most
        `LARGEST_BATCH`.

    Returns:
      Names of the layers whose gradients have no closed form and are computed example by example.

    Raises:
      ValueError: the model does not keep examples apart; the message says what to change.
    """
    with RandomState(model) as state:
        return _check_apart(model, losses, data, state, largest)


def _check_apart(model: Any, losses: Losses, data: Examples, state: RandomState, largest: int) -> set[str]:
    weights = list(model.trainable_weights)
    variables = _Variables(model, losses, data)
    state.add(variables.generators)
    if [id(weight) for weight in model.trainable_weights] != [id(weight) for weight in weights]:
        raise ValueError(f"model {model.name} was not built completely: call model.build before model.compile")
    try:
        with one_line():
            check_values(model, losses, data)
            generator = np.random.default_rng(0)
            variables.move(generator)
            probe = _Probe(model, losses, data, generator, state, variables)
            if not probe.is_finite:
                variables.put_back()
            probe.check_forward()
            recomputed = probe.check_gradients(weights)
            variables.check()
            data_check = _DataCheck(model, losses, data, largest, generator, state, variables)
            data_check.check(probe.draws)
            variables.check()
    finally:
        variables.put_back()
    return recomputed


class _Variables:
    """Holds all variables that the model's calls read or change, with their values at the beginning."""

    def __init__(self, model: Any, losses: Losses, data: Examples) -> None:
        with one_line():
            self.traced, self.draws = trace(losses, data)
        self._model = model
        self._weights = [variable(weight) for weight in model.trainable_weights]
        by_id = {
            id(v): v
            for v in [*map(variable, model.non_trainable_weights), *self.traced.get_concrete_function().graph.variables]
        }
        trained = {id(weight) for weight in self._weights}
        self._others = [v for key, v in by_id.items() if key not in trained and not is_random_state(v)]
        self.generators = [v for key, v in by_id.items() if key not in trained and is_random_state(v)]
        self._before = [(v, v.numpy()) for v in [*self._weights, *self._others]]
        self.variables = [v for v, _ in self._before]

    def move(self, generator: np.random.Generator) -> None:
        """Moves the weights at random, since at the initial values a branch may be inactive or a gradient zero."""
        for weight in self._weights:
            weight.assign_add(tf.constant(0.1 * generator.normal(size=weight.shape), weight.dtype))

    def check(self) -> None:
        """Raises ValueError if a variable has changed that is neither a weight nor a random generator's state."""
        others = {id(v) for v in self._others}
        for v, value in self._before:
            if id(v) in others and not np.array_equal(v.numpy(), value):
                raise ValueError(
                    f"model {self._model.name} stores information about the examples in {v.name} without noise (a "
                    "running average, a metric?): use a layer that does not, such as GroupNormalization"
                )

    def put_back(self) -> None:
        for v, value in self._before:
            v.assign(value)


class _Probe:
    """Checks losses and gradients on made-up examples.

    Attributes:
      is_finite: whether the losses of the made-up examples are finite.
      draws: whether the model draws random numbers.
    """

    def __init__(
        self,
        model: Any,
        losses: Losses,
        data: Examples,
        generator: np.random.Generator,
        state: RandomState,
        variables: _Variables,
    ) -> None:
        self._model, self._losses, self._generator, self._state = model, losses, generator, state
        self._x, self._y = self._draw_examples(data)
        self._others = self._draw_examples(data)
        self.is_finite = bool(np.isfinite(losses(self._x, self._y)).all())
        self._variables = variables.variables
        self.draws = variables.draws or not self._is_repeatable(_do_nothing)

    def _is_repeatable(self, prepare: Callable[[], None], training: bool = True) -> bool:
        """Returns whether two passes over the same examples, each after `prepare()`, give the same losses."""
        results = []
        for _ in range(2):
            prepare()
            results.append(self._losses(self._x, self._y, training=training).numpy())
        return np.array_equal(results[0], results[1], equal_nan=True)

    def _draw_examples(self, data: Examples) -> Any:
        rows = self._generator.integers(0, len(data.y), _PROBED)

        def draw(part: npt.NDArray[Any]) -> tf.Tensor:
            if part.dtype.kind == "f":
                return tf.constant(self._generator.random((_PROBED, *part.shape[1:])), part.dtype)
            return tf.convert_to_tensor(part[rows])

        return tf.nest.map_structure(draw, (data.x, data.y))

    def _forward(self, x: Any, y: Any, training: bool = True) -> npt.NDArray[Any]:
        result = self._losses(x, y, training=training)
        if result.shape != (len(y),):
            raise ValueError(
                f"the loss has shape {list(result.shape)} for {len(y)} examples: it must return one value for "
                f"each example, shape [{len(y)}]"
            )
        losses: npt.NDArray[Any] = result.numpy()
        return losses

    def check_forward(self) -> None:
        """Raises ValueError if an example's loss depends on other examples, or differs in a recorded forward pass.

        A recorded pass is one under `Recording`, from which the gradients are computed. ValueError is also raised if
        there is not one finite loss per example, if the model adds regularisation losses, or if its random numbers
        cannot be drawn again.
        """
        losses = self._forward(self._x, self._y)
        if not np.isfinite(losses).all():
            raise ValueError(
                f"model {self._model.name}: the loss is not finite on made-up data from 0 to 1: check its layers"
            )
        if self._model.losses:
            raise ValueError(f"model {self._model.name} adds regularisation losses: use the optimizer's weight_decay")
        if not self.draws:
            self._compare()
            return
        for number in range(_RANDOM_STATES):

            def restore(number: int = number) -> None:
                self._state.restore(number)

            if not self._is_repeatable(restore):
                raise ValueError(
                    f"model {self._model.name} draws random numbers that cannot be drawn again, so that it cannot be "
                    "checked whether it keeps examples apart: draw them by tf.random or by Keras' layers"
                )
            self._compare(restore, others_go=number == 0)
        with silenced(self._model):
            for training in (True, False):
                if self._is_repeatable(_do_nothing, training):
                    self._compare(training=training)
                    return

    def _compare(
        self, restore: Callable[[], None] | None = None, others_go: bool = True, training: bool = True
    ) -> None:
        """Raises ValueError if the first or the last example's loss depends on another example.

        Args:
          restore: called before each pass of a model that draws random numbers. An example is then compared only with
            itself at the same place in the batch, since numbers are drawn in the order of the examples.
          others_go: whether to compare the loss also with the example's loss in a batch of one, and all losses with
            those of a recorded pass.
          training: Keras' argument of the model's calls.
        """

        def forward(x: Any, y: Any) -> npt.NDArray[Any]:
            (restore or _do_nothing)()
            return self._forward(x, y, training)

        losses = forward(self._x, self._y)
        within = rounding_of(losses, self._x, self._y, forward, self._variables, self._generator)
        for alone in (0, _PROBED - 1):
            only = np.arange(_PROBED) == alone

            def mixed(part: tf.Tensor, other: tf.Tensor, only: npt.NDArray[Any] = only) -> tf.Tensor:
                return tf.where(only.reshape(-1, *[1] * (part.shape.rank - 1)), part, other)

            changed = forward(*tf.nest.map_structure(mixed, (self._x, self._y), self._others))
            if not same(changed[alone], losses[alone], within[alone]):
                raise _mixing_error(self._model.name)
            if not others_go:
                continue
            first = losses[alone]
            if restore and alone:
                first = forward(*tf.nest.map_structure(lambda part: tf.reverse(part, [0]), (self._x, self._y)))[0]
            x, y = tf.nest.map_structure(lambda part, row=alone: part[row : row + 1], (self._x, self._y))
            if not same(forward(x, y)[0], first, within[alone]):
                raise _mixing_error(self._model.name)
        if not others_go:
            return
        with tf.GradientTape() as tape, Recording(tape).of(self._model):
            recorded = forward(self._x, self._y)
        if not same(recorded, losses, within):
            raise ValueError(
                f"model {self._model.name}: a layer's call_tapped and call compute different outputs: fix call_tapped, "
                "or remove it"
            )

    def check_gradients(self, weights: list[Any]) -> set[str]:
        """Raises ValueError unless each example's gradient follows from the layers' calls and reaches no other example.

        Returns:
          Names of the layers whose gradients are computed example by example.
        """
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
            for gradient in tape.gradient(each[alone], [*recording.taps, *inputs], unconnected_gradients=_ZERO):
                if np.delete(gradient.numpy(), alone, axis=0).any():
                    raise _mixing_error(self._model.name)
        gradients = tape.gradient(losses, recording.taps, unconnected_gradients=_ZERO)
        groups = ghost_norms.by_weight(recording.terms(gradients))
        variables = [variable(weight) for weight in weights]
        for number, loss in enumerate(each):
            one_hot = tf.one_hot(number, _PROBED, dtype=losses.dtype)
            ours = ghost_norms.in_order(weights, groups, one_hot)
            true = [part.numpy() for part in map(tf.convert_to_tensor, tape.gradient(loss, variables, None, _ZERO))]
            largest = max(float(np.abs(part).max(initial=0)) for part in true)
            for weight, our_part, true_part in zip(variables, ours, true, strict=True):
                within = max(1e-3 * float(np.abs(true_part).max(initial=0)), 1e-6 * largest)
                if not np.allclose(our_part.numpy(), true_part, rtol=1e-3, atol=within):
                    raise ValueError(
                        f"model {self._model.name}: the per-example gradients of {weight.name}, computed from the "
                        "calls of its layer, differ from TensorFlow's: use a weight only inside its own layer, use "
                        "randomness only in layers without weights, and correct the layer's call_tapped if it has one"
                    )
        return recording.recomputed


class _DataCheck:
    """Compares losses between batches of the data."""

    def __init__(
        self,
        model: Any,
        losses: Losses,
        data: Examples,
        largest: int,
        generator: np.random.Generator,
        state: RandomState,
        variables: _Variables,
    ) -> None:
        self._model, self._losses, self._data, self._state, self._variables = model, losses, data, state, variables
        self._generator = generator
        self._batches = Batches(data, largest, generator)

    def check(self, draws: bool) -> None:
        """Raises ValueError unless each example's loss depends on that example alone.

        Losses are compared at the moved weights, and then at the initial weights, which this method restores. If layers
        other than Keras' own dropout and noise layers draw random numbers, losses are compared at the moved weights
        only.
        """
        traced, still_draws = self._variables.traced, False
        if draws:
            with silenced(self._model):
                traced, still_draws = trace(self._losses, self._data)
            self._compare_pairs(_OWN_RANDOM_STATES if still_draws else _RANDOM_STATES)
        if still_draws:
            return
        for prepare in (_do_nothing, self._variables.put_back):
            prepare()
            if not rows_stay(
                self._batches, lambda x, y: traced(x, y).numpy(), self._variables.variables, self._generator
            ):
                raise _mixing_error(self._model.name)

    def _compare_pairs(self, states: int) -> None:
        for number in range(states):

            def forward(x: Any, y: Any, number: int = number) -> npt.NDArray[Any]:
                self._state.restore(number)
                losses: npt.NDArray[Any] = self._losses(x, y).numpy()
                return losses

            for large in (False, True) if number < _RANDOM_STATES else (False,):
                if not pairs_stay(self._batches, forward, number, large):
                    raise _mixing_error(self._model.name)


def _do_nothing() -> None:
    pass


def _mixing_error(name: str) -> ValueError:
    return ValueError(
        f"model {name} mixes examples: the loss of one depends on others, or on their number, so that no clipping "
        "protects them. Use layers that do not (batch normalisation mixes, group normalisation does not)"
    )
