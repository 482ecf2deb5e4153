"""Detects whether a Keras model draws random numbers, restores their state, and silences its random layers."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.dpsgd.examples import Examples, Losses

_RANDOM_OPERATIONS = re.compile("Random|Rng|Multinomial|Shuffle|PyFunc")
# Keras' random layers that change each number of their inputs, or each channel of an example, independently.
_SILENCED = (
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("AlphaDropout", "GaussianDropout", "GaussianNoise"),
)


def trace(losses: Losses, data: Examples) -> tuple[Any, bool]:
    """Returns the losses as a graph function, as in training, and whether computing them draws random numbers."""
    before = _python_state()
    function = tf.function(lambda x, y: losses(x, y), data.signature(), autograph=False)
    concrete = function.get_concrete_function()
    python_draws = _python_state() != before
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return function, any(_RANDOM_OPERATIONS.search(node.op) for node in nodes) or python_draws


def _python_state() -> Any:
    """Returns the state of Python's and NumPy's global generators in a form that can be compared."""
    _, key, position, *_ = np.random.get_state()
    return random.getstate(), np.asarray(key).tobytes(), position


def is_random_state(v: tf.Variable) -> bool:
    """Returns whether the variable holds the state of a generator, judged by its name."""
    return v.dtype.is_integer and ("seed" in v.name or "StateVar" in v.name)


class RandomState:
    """Sets, inside `with`, all state that a model's random numbers can come from, and puts it back afterwards."""

    def __init__(self, model: Any) -> None:
        self._variables: list[tuple[tf.Variable, npt.NDArray[Any]]] = []
        # In Keras 2, a layer with a seed uses the next integer as seed at each call.
        generators: list[Any] = [getattr(layer, "_random_generator", None) for layer in model._flatten_layers()]
        self._counts = [(each, each._seed) for each in generators if isinstance(getattr(each, "_seed", None), int)]

    def __enter__(self) -> RandomState:
        context = _eager_context()
        rng = vars(context).get("_rng")  # gives operations their seeds, once a global seed is set
        self._before = random.getstate(), np.random.get_state(), context._seed, rng, rng and rng.getstate()
        return self

    def add(self, variables: list[tf.Variable]) -> None:
        """Adds the variables that hold the state of the model's generators."""
        self._variables += [(v, v.numpy()) for v in variables]

    def restore(self, number: int) -> None:
        """Sets the state with this number, an integer from 0; the same number always sets the same state."""
        seed = 12_345 + 7_919 * number
        tf.random.set_seed(seed)  # for operations that use no generator
        random.seed(seed)
        np.random.seed(seed)
        self._set(number)

    def _set(self, number: int) -> None:
        for v, value in self._variables:
            v.assign(value + np.asarray(number, value.dtype))
        for each, count in self._counts:
            each._seed = count + number

    def __exit__(self, *error: object) -> None:
        context = _eager_context()
        python, numpy, context._seed, context._rng, rng_state = self._before
        if rng_state:
            context._rng.setstate(rng_state)
        random.setstate(python)
        np.random.set_state(numpy)
        self._set(0)


def _eager_context() -> Any:
    """Returns TensorFlow's eager context, which holds the global seed; there is no public way to read it."""
    from tensorflow.python.eager import context

    return context.context()


@contextlib.contextmanager
def silenced(model: Any) -> Iterator[None]:
    """Makes Keras' own dropout and noise layers in the model return their inputs, inside `with`."""
    kinds = {getattr(keras.layers, name) for name in _SILENCED}
    layers = {id(layer): layer for layer in model._flatten_layers() if type(layer) in kinds}

    @tf.autograph.experimental.do_not_convert
    def return_inputs(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return inputs

    for layer in layers.values():
        object.__setattr__(layer, "call", return_inputs)
    try:
        yield
    finally:
        for layer in layers.values():
            object.__delattr__(layer, "call")
