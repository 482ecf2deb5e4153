"""Computes the error of Toeplitz factorisations A = B C and minimises it over the coefficients of C.

C is lower triangular and Toeplitz. The sums of all rounds are released as C G + Z with independent Gaussian noise Z, so
the model's error is B Z = A C^-1 Z. With standard deviation = sensitivity of C, the loss is the root mean square of the
error over the n rounds: sensitivity(C) ||A C^-1||_F / sqrt(n).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.correlated.participation import Participation
from privacy.correlated.sensitivity import sum_earliest
from privacy.correlated.workload import Workload

_Array = npt.NDArray[np.float64]
_FEW = 64  # up to this number of coefficients, recursion is faster than Fourier transforms


def divide(numerator: _Array, coefficients: _Array) -> _Array:
    """Returns C^-1 v for v = `numerator`, [n], and the Toeplitz matrix C with first column `coefficients`, [m]."""
    from scipy.signal import fftconvolve, lfilter

    coefficients = coefficients[: len(numerator)]
    if len(coefficients) <= _FEW:
        return np.asarray(lfilter([1.0], coefficients, numerator))
    # Newton's iteration on power series doubles the number of correct entries of the first column of C^-1.
    inverse = np.array([1 / coefficients[0]])
    while len(inverse) < len(numerator):
        known = min(2 * len(inverse), len(numerator))
        residual = -fftconvolve(coefficients[:known], inverse)[:known]
        residual = np.pad(residual, (0, known - len(residual)))
        residual[0] += 2
        inverse = fftconvolve(inverse, residual)[:known]
    return np.asarray(fftconvolve(inverse, numerator)[: len(numerator)])


def root_mean_square_error(coefficients: _Array, workload: Workload) -> float:
    """Returns ||A C^-1||_F / sqrt(n), the error of the model's weights for noise of standard deviation 1.

    Args:
      coefficients: first column of C, float64 [m], the first one not 0.
      workload: A.
    """
    return math.sqrt(_Error(workload)(coefficients)[0] / workload.rounds)


class _Error:
    """Computes ||A C^-1||_F² and its gradient by the coefficients of C."""

    def __init__(self, workload: Workload) -> None:
        self._velocity = workload.velocity
        if workload.learning_rates is None:
            # A is Toeplitz. Entry s of its first column is in n - s rounds.
            self._column = divide(self._velocity, np.array([1.0, workload.weight_decay - 1.0]))
            self._counts = np.arange(workload.rounds, 0, -1.0)
        else:
            self._column = self._velocity
            self._quadratic = _schedule_form(workload)

    def __call__(self, coefficients: _Array) -> tuple[float, _Array]:
        """Returns the value and the gradient, [m]."""
        from scipy.signal import fftconvolve

        result = divide(self._column, coefficients)
        weighted = self._counts * result if hasattr(self, "_counts") else self._quadratic @ result
        # d(result)/d(c_k) is -C^-1 result, delayed by k.
        slope = divide(result, coefficients)
        correlation = fftconvolve(weighted[::-1], slope)[: len(result)][::-1]
        return float(result @ weighted), -2 * correlation[: len(coefficients)]


def _schedule_form(workload: Workload) -> _Array:
    """Returns Q, [n, n], with ||A C^-1||_F² = h' Q h, for h the first column of velocities times C^-1.

    Let D be the diagonal of learning rates and S the sums that weight decay shrinks. Then A C^-1 = S D H with H
    Toeplitz, and Q[k, k - d] = shrink^d sum_{u >= k} rate_u rate_{u-d} sum_{j < n - u} shrink^(2 j).
    """
    rounds, shrink = workload.rounds, 1 - workload.weight_decay
    rates = np.array(workload.learning_rates)
    remaining = np.cumsum(np.power(shrink**2, np.arange(rounds)))[::-1]
    form = np.zeros((rounds, rounds))
    for lag in range(rounds):
        products = rates[lag:] * rates[: rounds - lag] * remaining[lag:] * shrink**lag
        np.fill_diagonal(form[lag:], np.cumsum(products[::-1])[::-1])
    return form + np.tril(form, -1).T


class Loss:
    """Computes log(sensitivity²) + log(||A C^-1||_F²) and its gradient by the coefficients of C.

    The sensitivity is that of the pattern of the earliest rounds: it is the sensitivity of C if C has at most
    `min_separation` bands, or non-negative, non-increasing coefficients.
    """

    def __init__(self, workload: Workload, participation: Participation) -> None:
        self._error = _Error(workload)
        self._rounds, self._participation = workload.rounds, participation.within(workload.rounds)

    def __call__(self, coefficients: _Array) -> tuple[float, _Array]:
        """Returns the value and the gradient, [m], for the first m coefficients; the others are 0."""
        error, error_gradient = self._error(coefficients)
        total = sum_earliest(coefficients, self._rounds, self._participation)
        squared = float(total @ total)
        gradient = np.zeros(len(coefficients))
        separation, count = self._participation
        for start in range(0, count * separation, separation):
            part = total[start : start + len(coefficients)]
            gradient[: len(part)] += 2 * part
        return math.log(squared) + math.log(error), gradient / squared + error_gradient / error


def minimise(loss: Callable[[_Array], tuple[float, _Array]], start: _Array, bounds: Any = None) -> tuple[float, _Array]:
    """Returns the least value that L-BFGS-B finds from `start`, and where.

    Args:
      loss: returns value and gradient.
      start: where the search begins, float64 [m].
      bounds: as for `scipy.optimize.minimize`.
    """
    from scipy.optimize import minimize

    result = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13},
    )
    return float(result.fun), np.asarray(result.x)
