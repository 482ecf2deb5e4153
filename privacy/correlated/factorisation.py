"""Finds the coefficients of banded and BLT matrices with the least error, by L-BFGS-B with exact gradients.

Minimised is the logarithm of sensitivity(C)² ||A C^-1||_F² (`toeplitz.Loss`). The problem is not convex in the
coefficients, so the search has several starts. The result is a plan's data, written to the ledger with all its digits:
a resumed run and a report read it from there and never search again.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.correlated.mechanisms import BLT, MAX_BANDS, MAX_BUFFERS, Banded
from privacy.correlated.participation import Participation
from privacy.correlated.toeplitz import Loss, divide, minimise
from privacy.correlated.workload import Workload

MAX_HORIZON = 4096
"""Maximum number of rounds of a workload to optimise for; the mechanism may then run for more."""
BUFFERS = 4
"""Default maximum number of buffers of a BLT."""
_STARTS = 4  # number of time constants at which the search for one more buffer begins
_WORTHWHILE = 2e-4  # least decrease of the logarithm of the squared error for which more buffers or bands are kept
_SUM = 1 - 1e-9  # largest sum of a BLT's weights, so that rounding cannot lift it above 1


def optimize_banded(bands: int, workload: Workload, participation: Participation) -> Banded:
    """Returns the Toeplitz matrix with at most `bands` bands that has the least error for a workload.

    The search begins at the square root of the workload, which is near the optimum if each client takes part once
    (Kalinin and Lampert 2024, https://arxiv.org/abs/2405.13763), and at no correlation.

    Args:
      bands: maximum number of bands, 1 to 4,096.
      workload: what the server computes.
      participation: limits on one client's rounds. More bands than `min_separation` are used only if they lower the
        error by at least 0.01 %; the coefficients are then non-negative and non-increasing, so that the sensitivity is
        known exactly.

    Raises:
      ValueError: the number of bands or of the workload's rounds is out of range.
    """
    _check_horizon(workload)
    bands = checks.whole("bands", bands, 1, "1 band is independent noise")
    if bands > MAX_BANDS:
        raise ValueError(f"bands must be at most {MAX_BANDS:,}, got {bands:,}: use a BLT")
    return _optimize_banded(min(bands, workload.rounds), workload, participation)


@functools.lru_cache(maxsize=32)
def _optimize_banded(bands: int, workload: Workload, participation: Participation) -> Banded:
    loss = Loss(workload, participation)
    found = _search_free(loss, workload, min(bands, participation.min_separation))
    if bands > participation.min_separation:
        longer = _search_falling(loss, workload, bands)
        if longer[0] < found[0] - _WORTHWHILE:
            found = longer
    return Banded(tuple(found[1]), workload.describe())


_Found = tuple[float, npt.NDArray[np.float64]]
"""The logarithm of the squared error, and the coefficients."""


def _search_free(loss: Loss, workload: Workload, bands: int) -> _Found:
    """Searches coefficients of any sign, for at most as many bands as the separation."""
    if bands == 1:
        return loss(np.ones(1))[0], np.ones(1)

    def free(rest: npt.NDArray[np.float64]) -> _Found:
        value, gradient = loss(np.concatenate([[1.0], rest]))
        return value, gradient[1:]

    starts = [_square_root(workload)[1:bands], np.zeros(bands - 1)]
    value, rest = min((minimise(free, start) for start in starts), key=lambda found: found[0])
    return value, np.concatenate([[1.0], rest])


def _search_falling(loss: Loss, workload: Workload, bands: int) -> _Found:
    """Searches non-negative, non-increasing coefficients."""

    # Coefficient i is 1 minus the sum of the first i drops; each drop is a share of what is left.
    def falling(shares: npt.NDArray[np.float64]) -> _Found:
        column = np.concatenate([[1.0], np.cumprod(shares)])
        value, gradient = loss(column)
        tail = np.cumsum((gradient * column)[::-1])[::-1]
        return value, tail[1:] / shares

    root = np.maximum(_square_root(workload)[:bands], 1e-6)
    starts = [np.clip(root[1:] / root[:-1], 1e-3, 1.0), np.full(bands - 1, 0.5)]
    limits = [(1e-9, 1.0)] * (bands - 1)
    value, shares = min((minimise(falling, start, limits) for start in starts), key=lambda found: found[0])
    return value, np.concatenate([[1.0], np.cumprod(shares)])


def optimize_blt(max_buffers: int, workload: Workload, participation: Participation) -> BLT:
    """Returns the BLT with up to `max_buffers` buffers that has the least error for a workload.

    Decays are searched as logistic functions, and weights as shares of 1, so that every candidate has non-negative,
    non-increasing coefficients. Buffers are added one by one to the best BLT with one buffer fewer, as long as each
    lowers the error by at least 0.01 %.

    Args:
      max_buffers: maximum number of buffers, 1 to 16; 4 are enough for up to a few thousand rounds.
      workload: what the server computes.
      participation: limits on one client's rounds.

    Raises:
      ValueError: the number of buffers or of the workload's rounds is out of range.
    """
    _check_horizon(workload)
    max_buffers = checks.whole("max_buffers", max_buffers, 1, f"{BUFFERS} are usual")
    if max_buffers > MAX_BUFFERS:
        raise ValueError(f"max_buffers must be at most {MAX_BUFFERS}, got {max_buffers}: {BUFFERS} are usual")
    return _optimize_blt(max_buffers, workload, participation)


@functools.lru_cache(maxsize=32)
def _optimize_blt(max_buffers: int, workload: Workload, participation: Participation) -> BLT:
    loss = Loss(workload, participation)
    exponents = np.arange(max(workload.rounds - 1, 0))

    def of_parameters(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        decays, weights = _unpack(point)
        powers = decays[:, None] ** exponents
        value, gradient = loss(np.concatenate([[1.0], weights @ powers]))
        by_weight = powers @ gradient[1:]
        by_decay = weights * ((powers[:, :-1] * exponents[1:]) @ gradient[2:])
        # Chain rule through weight_j = _SUM e^p_j / (1 + sum e^p) and decay_j = 1 / (1 + e^-p_j).
        share = weights / _SUM
        by_weight = weights * (by_weight - share @ by_weight)
        return value, np.concatenate([by_decay * decays * (1 - decays), by_weight])

    # Each further buffer begins at one of several time constants, and small beside those that are there.
    longest = min(workload.rounds, participation.min_separation * participation.max_participations)
    best, point = math.inf, np.zeros(0)
    for size in range(1, max_buffers + 1):
        trials = []
        for time in np.geomspace(0.5, max(longest, 2) / 2, _STARTS):
            decay = math.exp(-1 / time)
            logits, logs = np.split(point, 2)
            start = np.concatenate([logits, [math.log(decay / (1 - decay))], logs, [-3.0]])
            limits = [(-12.0, 18.0)] * size + [(-25.0, 12.0)] * size
            trials.append(minimise(of_parameters, start, limits))
        value, candidate = min(trials, key=lambda trial: trial[0])
        if not value < best - _WORTHWHILE:
            break
        best, point = value, candidate
    decays, weights = _unpack(point)
    order = np.argsort(-decays)
    return BLT(tuple(decays[order]), tuple(weights[order]), workload.describe())


def _unpack(point: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns decays and weights of a search point."""
    logits, logs = np.split(point, 2)
    scaled = np.exp(logs)
    return 1 / (1 + np.exp(-logits)), _SUM * scaled / (1 + scaled.sum())


def _square_root(workload: Workload) -> npt.NDArray[np.float64]:
    """Returns the first column of the Toeplitz square root of the workload, without its learning rates, [n].

    It is the product of the series (1 - x)^-1/2 of prefix sums, or of those that weight decay shrinks, and of momentum.
    """
    column = np.concatenate([[1.0], np.zeros(workload.rounds - 1)])
    for pole in (1 - workload.weight_decay, workload.momentum):
        i = np.arange(1, workload.rounds)
        # The coefficients of (1 - pole x)^1/2, by which the column is divided.
        column = divide(column, np.concatenate([[1.0], np.cumprod((i - 1.5) / i * pole)]))
    return column


def _check_horizon(workload: Workload) -> None:
    if workload.rounds > MAX_HORIZON:
        raise ValueError(f"a horizon of {workload.rounds:,} rounds is too long to optimise for: give {MAX_HORIZON:,}")
