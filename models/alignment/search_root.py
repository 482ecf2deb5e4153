"""Finds where an increasing function reaches a value."""

import math
from collections.abc import Callable

_LEAST_WIDTH = 1e-300


def increasing_root(function: Callable[[float], float], value: float) -> float:
    """Returns an x >= 0 at which the function passes the value, or infinity if it does not reach it.

    The upper end doubles from 1 until the function reaches the value. Brent's method then narrows the interval to some
    units in the last place of x, with some ten calls of a smooth function.

    Args:
      function: does not decrease on [0, ∞).
      value: value to reach.
    """
    from scipy.optimize import brentq  # takes longer to load than the rest of the package

    low, high = 0.0, 1.0
    while function(high) < value:
        low, high = high, 2 * high
        if math.isinf(high):
            return high
    if not function(low) < value:
        return low
    return float(brentq(lambda x: function(x) - value, low, high, xtol=_LEAST_WIDTH, rtol=8.9e-16, maxiter=2000))
