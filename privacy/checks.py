"""Checks numbers in arguments and raises errors that name the argument, its value, the allowed range and a fix.

Each comparison has the form `not value > bound`. Every comparison with NaN is false, so NaN fails each check. In all
checks, `name` is the argument as the caller typed it, and `fix` says what to do instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterable
from typing import Any

NOISE_MULTIPLIERS = (1e-6, 1e8)
"""Smallest and largest noise multiplier allowed. Outside, ε is infinite or smaller than its rounding error."""


def plain_numbers(settings: Any) -> None:
    """Replaces the numbers in a frozen dataclass by Python's own int and float.

    JSON cannot hold NumPy scalars, and arithmetic with float16 or float32 scalars would keep their low precision. Call
    this function first in `__post_init__`.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # the check of that field reports it
                object.__setattr__(
                    settings, field.name, int(value) if isinstance(value, numbers.Integral) else float(value)
                )


def positive(name: str, value: float, fix: str) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number above 0."""
    number = _number(name, value, fix)
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}: {fix}")
    return number


def non_negative(name: str, value: float, fix: str) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number of at least 0."""
    number = _number(name, value, fix)
    if not number >= 0 or math.isinf(number):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}: {fix}")
    return number


def between(name: str, value: float, low: float, high: float, fix: str, *, closed_high: bool = False) -> float:
    """Returns `value` as a float; raises ValueError unless low < value < high (value <= high if `closed_high`)."""
    number = _number(name, value, fix)
    if not (number > low and (number < high or (closed_high and number == high))):
        bracket = "]" if closed_high else ")"
        raise ValueError(f"{name} must lie in ({low:g}, {high:g}{bracket}, got {value!r}: {fix}")
    return number


def noise_multiplier(value: float, fix: str, name: str = "noise_multiplier") -> float:
    """Returns `value` as a float; raises ValueError unless it lies in [1e-6, 1e8].

    Outside this range every ε is infinite or smaller than its rounding error.
    """
    number = positive(name, value, fix)
    if not NOISE_MULTIPLIERS[0] <= number <= NOISE_MULTIPLIERS[1]:
        raise ValueError(f"{name} must lie in [1e-6, 1e8], got {value!r}: {fix}")
    return number


def bounds(lower: float, upper: float) -> tuple[float, float]:
    """Returns both bounds as floats; raises ValueError unless they are finite and `lower` is below `upper`."""
    low = between("lower", lower, -math.inf, math.inf, "give a finite bound that is public")
    high = between("upper", upper, -math.inf, math.inf, "give a finite bound that is public")
    if not low < high:
        raise ValueError(f"lower {low:g} is not below upper {high:g}: exchange them")
    return low, high


def whole(name: str, value: int, low: int, fix: str) -> int:
    """Returns `value` as an int; raises ValueError unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not value >= low:
        raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}: {fix}")
    return int(value)


def reals(name: str, values: Iterable[float], fix: str) -> tuple[float, ...]:
    """Returns `values` as a tuple of floats; raises ValueError unless it is a sequence of numbers."""
    try:
        entries = tuple(values)
    except TypeError:
        raise ValueError(f"{name} must be a list of numbers, got {values!r}: {fix}") from None
    return tuple(_number(name, value, fix) for value in entries)


def _number(name: str, value: float, fix: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}: {fix}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a double can hold: {fix}") from None
