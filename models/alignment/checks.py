"""Checks arguments, and raises errors of one line that name the argument, its value and the fix."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def require_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns an integer as Python's own; raises ValueError unless least <= value <= most."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        allowed = f"from {least} to {most}" if most is not None else f">= {least}"
        raise ValueError(f"{name} = {value!r}: must be an integer {allowed}")
    return int(value)


def require_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, exclude_least: bool = False
) -> float:
    """Returns a finite number as a float; raises ValueError unless least <= value <= most.

    Args:
      name: what it is, for the message.
      value: the number.
      least: its minimum.
      most: its maximum.
      exclude_least: whether the minimum itself is refused too.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and least <= number <= most and not (exclude_least and number == least):
            return number
    low = "" if math.isinf(least) else f" {'>' if exclude_least else '>='} {least:g}"
    high = "" if math.isinf(most) else f"{' and' if low else ''} <= {most:.12g}"
    raise ValueError(f"{name} = {value!r}: must be a finite number{low}{high}")


def read_numbers(name: str, values: ArrayLike) -> Array:
    """Returns a float64 array of its own, of any shape; raises ValueError unless `values` are numbers."""
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is not an array of numbers: give one number for each outcome") from None


def require_vector(name: str, values: ArrayLike, length: int | None = None) -> Array:
    """Returns finite numbers as a float64 vector.

    Args:
      name: what they are, for the message.
      values: the numbers, `[K]` with K >= 1.
      length: K, or None for any.

    Raises:
      ValueError: `values` has another shape, or holds what is not a finite number.
    """
    vector = read_numbers(name, values)
    wanted = "[K], K >= 1" if length is None else f"[{length}]"
    if vector.ndim != 1 or not len(vector) or (length is not None and len(vector) != length):
        raise ValueError(f"{name} has shape {list(vector.shape)}: must have shape {wanted}")
    finite = np.isfinite(vector)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise ValueError(f"{name}[{bad}] = {vector[bad]}: must be a finite number; leave that outcome out")
    return vector


def require_distribution(name: str, values: ArrayLike, length: int | None = None) -> Array:
    """Returns probabilities as a float64 vector that sums to 1.

    Args:
      name: what they are, for the message.
      values: the probabilities, `[K]`; their sum may be off by 1e-6.
      length: K, or None for any.

    Raises:
      ValueError: one is negative or not finite, they do not sum to 1, or their shape is another.
    """
    vector = require_vector(name, values, length)
    if not (vector >= 0).all():
        bad = int(np.argmin(vector))
        raise ValueError(f"{name}[{bad}] = {vector[bad]}: must be a probability >= 0; pass the softmax of logits")
    total = vector.sum()
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"{name} sums to {total:.9g}: must sum to 1 within 1e-6; divide it by its sum")
    return np.asarray(vector / total)


def require_log_probabilities(name: str, values: ArrayLike, length: int | None = None) -> Array:
    """Returns natural logarithms of probabilities as a float64 vector; what rounding left above 0 becomes 0.

    Args:
      name: what they are, for the message.
      values: the logarithms, `[K]`, in nats.
      length: K, or None for any.

    Raises:
      ValueError: one is above 1e-6 or not finite, or their shape is another.
    """
    vector = require_vector(name, values, length)
    if not (vector <= 1e-6).all():
        bad = int(np.argmax(vector))
        raise ValueError(
            f"{name}[{bad}] = {vector[bad]}: must be the logarithm of a probability, <= 0; sum log-softmax"
        )
    return np.minimum(vector, 0.0)
