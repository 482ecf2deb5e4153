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

_LARGEST_CHANGE = 0.01
"""Largest change of a result by which `conditions` measures, relative to its largest entry: 2,600 times the relative
change of the values. The models and trainings of the tests reach 180 times; what moves further has jumped."""


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

    Raises:
      ValueError: `operations` or `magnitude` is not finite, or negative: such a tolerance would let anything pass, or
        nothing.
    """
    if not (0 <= operations < math.inf and 0 <= magnitude < math.inf):
        raise ValueError(f"rounding of {operations} operations at magnitude {magnitude}: both must be finite and >= 0")
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

    Raises:
      ValueError: a result is not finite, or it jumps: an entry moves by more than 1 % of the result's largest entry,
        and by more than the values do relative to the largest entry of all results (a gradient that is 0 in theory
        moves by what cancels in it). Then there is no condition: the quotient bounds no smaller change.
    """
    generator, plain = np.random.default_rng(0), [_as_finite(part) for part in function(values)]
    largest = [0.0] * len(plain)
    sizes = [float(np.max(np.abs(part), initial=0.0)) for part in plain]
    for _ in range(4):
        signs = {name: generator.choice([-1.0, 1.0], np.shape(value)) for name, value in values.items()}
        changed = {name: (value * (1 + _CHANGE * signs[name])).astype(value.dtype) for name, value in values.items()}
        for i, (found, before) in enumerate(zip(function(changed), plain, strict=True)):
            change = float(np.max(np.abs(_as_finite(found) - before), initial=0.0))
            if change > max(_LARGEST_CHANGE * sizes[i], _CHANGE * max(sizes)):
                raise ValueError(
                    f"result {i}, of entries up to {sizes[i]:g}, changes by {change:g} if the values change "
                    f"by {_CHANGE:.1g} of themselves: it jumps and has no condition; choose values away from the jump"
                )
            largest[i] = max(largest[i], change / _CHANGE)
    return largest


def _as_finite(result: Any) -> np.ndarray:
    """Returns a result as float64; raises ValueError unless all of it is finite."""
    array = np.asarray(result).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a result is not finite, so it has no condition: choose smaller values")
    return array


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
