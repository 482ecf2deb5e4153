"""Holds what the tests need of each group: its number of rows, sum and sum of squares.

For losses of 0 or 1 the number of rows N_g and the sum S_g of each group are enough. For scores between two bounds the
sum of squares Q_g is needed too. Sums of several parts of the data add up, so that no row need leave its place.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclasses.dataclass(frozen=True)
class GroupSums:
    """Holds the sums of a loss or score over the rows of each group. Make it by `from_counts` or `from_rows`.

    Attributes:
      counts: float64 [groups], the number of rows N_g.
      sums: float64 [groups], S_g, the sum of the values, scaled so that `low` becomes 0 and `high` becomes 1.
      squares: float64 [groups], Q_g, the sum of the squares of the scaled values.
      low: least possible value.
      high: largest possible value.
      cubes: float64 [groups], the sum of the third powers of the scaled values; None if it is not known.
      fourths: float64 [groups], the sum of the fourth powers; None if it is not known.
    """

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: float = 0.0
    high: float = 1.0
    cubes: NDArray[np.float64] | None = None
    fourths: NDArray[np.float64] | None = None

    @property
    def is_binary(self) -> bool:
        """Returns whether every value is `low` or `high`: only then is the sum of squares equal to the sum."""
        return np.array_equal(self.sums, self.squares)

    @property
    def means(self) -> NDArray[np.float64]:
        """Returns each group's mean value in the user's unit; NaN for groups without rows."""
        with np.errstate(invalid="ignore"):
            return self.low + (self.high - self.low) * self.sums / self.counts

    def select(self, groups: NDArray[Any]) -> GroupSums:
        """Returns the sums of the groups that a mask or index array [groups] selects."""
        chosen = {
            name: values[groups]
            for name in ("counts", "sums", "squares", "cubes", "fourths")
            if (values := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **chosen)


def from_counts(
    counts: ArrayLike,
    sums: ArrayLike,
    squares: ArrayLike | None = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> GroupSums:
    """Returns the sums of groups whose rows were counted and summed before.

    Args:
      counts: integers [groups], number of rows; groups without rows are allowed.
      sums: float [groups], sum of the values of each group's rows.
      squares: float [groups], sum of their squares. None: the values are 0 or 1, so that the sums are integers.
      bounds: least and largest possible value of a row.

    Raises:
      ValueError: shapes differ, a number is not finite or negative, there are fewer than two groups or no rows, or no
        values within the bounds have these sums.
    """
    low, high = check_bounds(bounds)
    numbers = [_finite("counts", counts), _finite("sums", sums)]
    if squares is None and (low, high) != (0.0, 1.0):
        raise ValueError(f"squares are missing: values between {low:g} and {high:g} need the sum of their squares")
    numbers.append(_finite("squares", squares) if squares is not None else numbers[1])
    n, s, q = numbers
    if not n.shape == s.shape == q.shape:
        raise ValueError(f"counts have shape {n.shape}, sums {s.shape}, squares {q.shape}: give one of each per group")
    if len(n) < 2:
        raise ValueError(f"there is {len(n)} group: at least two are needed")
    if (wrong := (n < 0) | (n != np.floor(n))).any():
        raise ValueError(f"counts hold {n[wrong][0]:g}: a number of rows must be an integer of at least 0")
    if not n.sum() > 0:
        raise ValueError("no group has a row: give at least two rows of each group")
    if squares is None and (wrong := s != np.floor(s)).any():
        raise ValueError(f"sums hold {s[wrong][0]:g}: values of 0 or 1 have integer sums; give squares for scores")
    width = high - low
    scaled = (s - low * n) / width
    scaled_squares = scaled if squares is None else (q - 2 * low * s + low**2 * n) / width**2
    # Rounding, relative to the largest term that was subtracted.
    slack = 1e-9 * n * (1 + max(abs(low), abs(high)) / width) ** 2
    wrong = (scaled < -slack) | (scaled > n + slack) | (scaled_squares > scaled + slack)
    wrong |= scaled_squares * n < scaled**2 - slack * n
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"group {at} has {n[at]:g} rows, sum {s[at]:g} and squares {q[at]:g}: no values between {low:g} and "
            f"{high:g} add up to these"
        )
    return GroupSums(n, np.clip(scaled, 0, n), np.clip(scaled_squares, 0, n), low, high)


def from_rows(
    values: ArrayLike, codes: NDArray[np.int64], groups: int, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> GroupSums:
    """Returns the sums of the rows of each group.

    Args:
      values: float [rows], each row's loss or score.
      codes: int64 [rows], each row's group, from 0 to `groups` - 1.
      groups: number of groups; some may have no row.
      bounds: least and largest possible value of a row.

    Raises:
      ValueError: a value is not finite or outside `bounds`, there are fewer than two groups, or there is no row.
    """
    low, high = check_bounds(bounds)
    array = np.asarray(values, np.float64)
    if groups < 2:
        raise ValueError(f"the rows form {groups} group: at least two are needed")
    if array.shape != codes.shape:
        raise ValueError(f"values have shape {array.shape} and groups {codes.shape}: give one of each for every row")
    if not len(array):
        raise ValueError("there is no row: give at least two rows of each group")
    if not np.isfinite(array).all():
        wrong = ~np.isfinite(array)
        raise ValueError(f"{wrong.sum()} of {len(array)} values are {array[wrong][0]}: leave these rows out")
    if (wrong := (array < low) | (array > high)).any():
        raise ValueError(
            f"{wrong.sum()} of {len(array)} values lie outside [{low:g}, {high:g}], such as {array[wrong][0]:g}: give "
            "the least and the largest possible value as bounds"
        )
    scaled = (array - low) / (high - low)
    counts, *powers = (np.bincount(codes, scaled**power, minlength=groups).astype(np.float64) for power in range(5))
    return GroupSums(counts, powers[0], powers[1], low, high, *powers[2:])


def check_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    """Returns the bounds as floats; raises ValueError unless they are finite and the first is the smaller."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds {bounds!r} are wrong: give the least and the largest possible value") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"bounds ({low:g}, {high:g}) are wrong: give the least and the largest possible value")
    return low, high


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} have shape {array.shape}: give one number for each group")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold {array[~np.isfinite(array)][0]}: every number must be finite")
    return array
