"""Computes how far one client can move the encoded sums C G of all rounds, in L2 norm, in units of the clip norm.

Row s of G is the sum of the clipped updates of round s. If the data of one client become empty, the rows of the rounds
that it is in change by vectors of L2 norm at most the clip norm; the rounds themselves, which are public, and all other
clients stay the same (zero-out). The sensitivity is the largest L2 norm of C times such a change over all patterns of
rounds that `Participation` allows. If the client's data are replaced by other data instead (replace-one), it is twice
as large.

Each result says how it was obtained, and whether it is the sensitivity itself or an upper bound on it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.correlated.participation import Participation, worst_sum

MAX_DENSE = 2048
"""Maximum number of rounds for `of_matrix`, which needs a matrix of that size."""


class Sensitivity(NamedTuple):
    """Holds a sensitivity.

    Attributes:
      value: the sensitivity or an upper bound on it, in units of the clip norm.
      is_exact: whether `value` is the sensitivity itself.
      method: how it was computed, in words.
    """

    value: float
    is_exact: bool
    method: str


COLUMN_NORMS = "column norms (bands at most the separation)"
EARLIEST = "earliest rounds (non-negative, non-increasing Toeplitz coefficients)"
ROW_SUMS = "upper bound by absolute inner products of columns"


def of_toeplitz(coefficients: npt.NDArray[np.float64], rounds: int, participation: Participation) -> Sensitivity:
    """Returns the sensitivity of the lower triangular Toeplitz matrix C with a given first column.

    * If at most `min_separation` coefficients are not 0, the columns of a pattern are orthogonal. The sensitivity is
      then the root of the largest sum of their squared norms (Choquette-Choo et al. 2023, arXiv:2306.08153, section 3).
    * Otherwise, if the coefficients are non-negative and non-increasing, it is the norm of the sum of the columns of
      the earliest rounds 0, b, 2 b, ... (Kalinin and Lampert 2024, arXiv:2405.13763, theorem 2).
    * Otherwise the bound of `of_matrix` is returned.

    Args:
      coefficients: first column of C, float64 [m]; zeros follow if m is below `rounds`.
      rounds: number n of rounds, at least 1.
      participation: limits on one client's rounds.

    Raises:
      ValueError: neither theorem holds, and there are more than 2,048 rounds; `rounds` is out of range, or a
        coefficient is not finite.
    """
    rounds = checks.whole("rounds", rounds, 1, "count the rounds")
    if not np.isfinite(coefficients).all():
        raise ValueError("a coefficient is infinite or NaN: give finite numbers")
    column = np.trim_zeros(np.asarray(coefficients, np.float64)[:rounds], "b")
    if len(column) <= participation.min_separation:
        squares = np.concatenate([np.cumsum(column**2), np.full(rounds - len(column), np.sum(column**2))])
        return Sensitivity(math.sqrt(worst_sum(squares[::-1], participation)), True, COLUMN_NORMS)
    if np.all(column >= 0) and np.all(np.diff(column) <= 0):
        return Sensitivity(float(np.linalg.norm(sum_earliest(column, rounds, participation))), True, EARLIEST)
    if rounds > MAX_DENSE:
        raise ValueError(
            f"the coefficients have more bands than min_separation {participation.min_separation} and are not "
            f"non-negative and non-increasing: no sensitivity is proved for {rounds} rounds, use fewer bands"
        )
    lag = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    column = np.pad(column, (0, rounds - len(column)))
    return of_matrix(np.where(lag >= 0, column[np.maximum(lag, 0)], 0.0), participation)


def of_matrix(matrix: npt.NDArray[np.float64], participation: Participation) -> Sensitivity:
    """Returns the sensitivity of any matrix C, or an upper bound on it.

    It is exact if columns that are at least `min_separation` apart are orthogonal. Otherwise, for changes u_i of norm
    at most 1, ||C u||² = sum_ij <c_i, c_j> <u_i, u_j> <= sum_i max_pattern sum_j |<c_i, c_j>|, and the outer sum is
    taken over the worst pattern, too. The inner sum is bounded by that over patterns with any number of rounds, and by
    that of the largest entries wherever they are.

    Args:
      matrix: C, float64 [m, n], with n at most 2,048 rounds.
      participation: limits on one client's rounds.
    """
    gram = np.abs(matrix.T @ matrix)
    lag = np.abs(np.subtract.outer(np.arange(len(gram)), np.arange(len(gram))))
    if not np.any(gram[lag >= participation.min_separation]):
        return Sensitivity(math.sqrt(worst_sum(np.diagonal(gram), participation)), True, COLUMN_NORMS)
    separation, count = participation.within(len(gram))
    of_any_number = worst_sum(gram, Participation(separation, len(gram)))
    of_largest = np.partition(gram, len(gram) - count, axis=1)[:, len(gram) - count :].sum(axis=1)
    bound = worst_sum(np.minimum(of_any_number, of_largest), participation)
    return Sensitivity(math.sqrt(bound), False, ROW_SUMS)


def sum_earliest(column: npt.NDArray[np.float64], rounds: int, participation: Participation) -> npt.NDArray[np.float64]:
    """Returns the sum of columns 0, b, 2 b, ... of a Toeplitz matrix, for b = `min_separation`, float64 [rounds]."""
    separation, count = participation.within(rounds)
    total = np.zeros(rounds)
    for start in range(0, count * separation, separation):
        length = min(len(column), rounds - start)
        total[start : start + length] += column[:length]
    return total
