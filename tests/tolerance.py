"""How far two ways of computing one thing may differ by the rounding of floating-point arithmetic, on any processor.

Kernels of other processors add in another order, fuse products with sums and approximate exp and tanh by other
polynomials. What they all keep to is the standard model of arithmetic: an operation's result is exact but for a
relative error of at most u = eps / 2. From it follow the bounds here (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, sections 1.5, 2.2 and 3.1), to first order in u; many errors add up as independent ones do
(Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, SIAM J. Sci. Comput. 41, 2019).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

FUNCTION = 16
"""Operations that a call of exp, log, tanh or sigmoid counts for: kernels are within 8 units in the last place."""

_CHANGE = 2.0**-18
"""Relative change by which `condition` measures: above float32's rounding, yet so small that it seldom moves a value
across a kink of relu or of a largest entry."""


def rounding(operations: float, magnitude: float, dtype: Any = np.float32) -> float:
    """Returns the largest difference between two ways of computing a value: min(n, 6√n)·eps·magnitude, n operations.

    A sum of n terms, in whatever order, is within n·u·Σ|terms| of the exact one; two such sums are within twice that,
    n·eps·Σ|terms|. The same holds of any chain of n operations, if `magnitude` bounds what an early relative error can
    do to the result: the largest Σ|terms| of a sum or product, or the `condition` of a longer computation. Errors that
    are independent with mean 0 stay below 6√n·eps·magnitude but with probability 2·exp(-18) = 3e-8.

    Args:
      operations: roundings on the longest way from the given values to the result; n for a sum of n terms or of n
        products.
      magnitude: of what is rounded, in the unit of the result.
      dtype: in which both ways compute.
    """
    return min(operations, 6 * math.sqrt(operations)) * float(np.finfo(dtype).eps) * magnitude


def model_operations(model: Any, terms: int) -> int:
    """Returns the operations of a Keras model's loss and gradient, as `rounding` takes them.

    Forward a sum over the rows of each weight, a function for each layer and one for the loss; backward twice that.

    Args:
      terms: examples times positions that a weight's gradient is summed over.
    """
    rows = sum(int(np.prod(weight.shape[:-1])) for weight in model.trainable_weights)
    return 3 * (rows + FUNCTION * (len(model.layers) + 1)) + terms


def condition(function: Callable[[dict[Any, np.ndarray]], list[Any]], values: dict[Any, np.ndarray]) -> float:
    """Returns the largest of the `conditions`."""
    return max(conditions(function, values))


def conditions(function: Callable[[dict[Any, np.ndarray]], list[Any]], values: dict[Any, np.ndarray]) -> list[float]:
    """Returns, for each result, the largest change of an entry for each unit of relative change in the values.

    Rounding acts as if the values had been changed relatively by n·u in the course of n operations, so that a result is
    off by at most n·u times its condition. Measured with four random patterns of signs.

    Args:
      function: takes values, returns arrays.
      values: arrays of floating-point numbers.
    """
    generator, plain = np.random.default_rng(0), [np.asarray(part) for part in function(values)]
    largest = [0.0] * len(plain)
    for _ in range(4):
        signs = {name: generator.choice([-1.0, 1.0], np.shape(value)) for name, value in values.items()}
        changed = {name: (value * (1 + _CHANGE * signs[name])).astype(value.dtype) for name, value in values.items()}
        for i, (found, before) in enumerate(zip(function(changed), plain, strict=True)):
            largest[i] = max(largest[i], float(np.max(np.abs(np.asarray(found) - before), initial=0.0)) / _CHANGE)
    return largest


def weights_conditions(model: Any, results: Callable[[], Any]) -> list[float]:
    """Returns the `conditions` of what a Keras model gives in the weights of the model, which keeps its own."""
    held = model.get_weights()

    def with_weights(values: dict[Any, np.ndarray]) -> list[Any]:
        model.set_weights(list(values.values()))
        return [*results()]

    try:
        return conditions(with_weights, dict(enumerate(held)))
    finally:
        model.set_weights(held)
