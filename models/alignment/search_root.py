"""Finds where an increasing function reaches a value."""

import math
from collections.abc import Callable


def increasing_root(function: Callable[[float], float], value: float) -> float:
    """Returns the least float x >= 0 that bisection finds with function(x) >= value, or infinity if it finds none.

    The upper end doubles from 1 until the function reaches the value; then the interval is halved until no float is
    left between its ends.

    Args:
      function: does not decrease on [0, ∞).
      value: value to reach.
    """
    low, high = 0.0, 1.0
    while function(high) < value:
        low, high = high, 2 * high
        if math.isinf(high):
            return high
    while low < (middle := (low + high) / 2) < high:
        if function(middle) < value:
            low = middle
        else:
            high = middle
    return high
