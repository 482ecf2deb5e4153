"""Validators that NaN cannot pass: each compares with `not value > bound`, because `nan <= bound` is false
too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from typing import Any


def plain_numbers(settings: Any) -> None:
    """Makes the numbers in a frozen dataclass Python's own: JSON takes no NumPy ones, and products with small ones are
    small too. To be called first.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # left to the check of that field
                object.__setattr__(
                    settings, field.name, int(value) if isinstance(value, numbers.Integral) else float(value)
                )


def positive(name: str, value: float, mend: str) -> float:
    """Returns `value` as a float; raises ValueError unless it is a finite number above zero."""
    number = _number(name, value, mend)
    if not number > 0 or math.isinf(number):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}: {mend}")
    return number


def non_negative(name: str, value: float, mend: str) -> float:
    """Returns `value` as a float; raises ValueError unless it is finite and at least zero."""
    number = _number(name, value, mend)
    if not number >= 0 or math.isinf(number):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}: {mend}")
    return number


def between(name: str, value: float, low: float, high: float, mend: str, *, closed_high: bool = False) -> float:
    """Returns `value` as a float; raises ValueError unless low < value < high (or <= high if
    `closed_high`).
    """
    number = _number(name, value, mend)
    if not (number > low and (number < high or (closed_high and number == high))):
        bracket = "]" if closed_high else ")"
        raise ValueError(f"{name} must lie in ({low:g}, {high:g}{bracket}, got {value!r}: {mend}")
    return number


def noise_multiplier(value: float, mend: str) -> float:
    """Returns `value` as a float; raises ValueError unless it is a number from 1e-6 to 1e8: beyond, every figure is
    infinite, or less than its rounding.
    """
    number = positive("noise multiplier", value, mend)
    if not 1e-6 <= number <= 1e8:
        raise ValueError(f"noise multiplier must lie in [1e-6, 1e8], got {value!r}: {mend}")
    return number


def bounds(lower: float, upper: float) -> tuple[float, float]:
    """Returns both as floats; raises ValueError unless they are finite numbers and `lower` is below `upper`."""
    low = between("lower", lower, -math.inf, math.inf, "give a finite bound that is public")
    high = between("upper", upper, -math.inf, math.inf, "give a finite bound that is public")
    if not low < high:
        raise ValueError(f"lower {low:g} is not below upper {high:g}: exchange them")
    return low, high


def whole(name: str, value: int, low: int, mend: str) -> int:
    """Returns `value` as an int; raises ValueError unless it is an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not value >= low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}: {mend}")
    return int(value)


def _number(name: str, value: float, mend: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}: {mend}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a double can hold: {mend}") from None
