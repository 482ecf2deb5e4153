"""Intervals over clients: how far a figure would move if other clients had been drawn."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_CHUNK = 1 << 22


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, all in the same unit."""

    estimate: float
    low: float
    high: float


def mean_interval(loss: NDArray[Any], units: NDArray[Any], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean loss a unit with a bootstrap interval over clients.

    Args:
      loss: float [clients], each client's sum of losses.
      units: int [clients], what to divide by: its number of tokens, or of characters. A client may have none.
      confidence: coverage of the interval, in (0, 1).
      seed: of the resampling; equal seeds, equal intervals.

    Returns:
      The sum of all losses over that of all units, and its percentile interval (Efron and Tibshirani 1993,
      §13.3) when whole clients are drawn with replacement.

    Raises:
      ValueError: shapes differ, there is no unit, a loss is not finite, or `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    loss, units = np.asarray(loss, np.float64), np.asarray(units, np.float64)
    if loss.ndim != 1 or loss.shape != units.shape:
        raise ValueError(f"losses of shape {loss.shape} and units of shape {units.shape}: not one of each a client")
    # A client without a unit changes no sum; without it, no resample is empty.
    loss, units = loss[units > 0], units[units > 0]
    if not len(units):
        raise ValueError("no token to take the mean over")
    if not np.isfinite(loss).all():
        raise ValueError(f"the losses of {np.count_nonzero(~np.isfinite(loss))} clients are not finite")
    generator = np.random.default_rng(seed)
    clients = len(units)
    rows = max(_CHUNK // clients, 1)
    ratios = []
    for begin in range(0, _RESAMPLES, rows):
        drawn = generator.integers(clients, size=(min(rows, _RESAMPLES - begin), clients))
        ratios.append(loss[drawn].sum(axis=1) / units[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Interval(float(loss.sum() / units.sum()), float(low), float(high))


def paired_interval(
    a_loss: NDArray[Any],
    b_loss: NDArray[Any],
    units: NDArray[Any],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of a - b a unit with a bootstrap interval over clients: below zero, `a` is the better model.

    The two models predict the same tokens of the same clients, so what makes a client hard cancels.

    Args:
      a_loss: float [clients], each client's sum of losses under the one model.
      b_loss: float [clients], the same under the other.
      units: int [clients], as in `mean_interval`.
      confidence: coverage of the interval, in (0, 1).
      seed: of the resampling.

    Raises:
      ValueError: as `mean_interval`.
    """
    if np.shape(a_loss) != np.shape(b_loss):
        raise ValueError(f"losses of shape {np.shape(a_loss)} and {np.shape(b_loss)}: not the same clients")
    return mean_interval(np.subtract(a_loss, b_loss), units, confidence=confidence, seed=seed)


def bits_per_character(nats: float, characters: float) -> float:
    """Nats in total, over characters in total, as bits a character.

    Raises:
      ValueError: `characters` is not positive.
    """
    if not characters > 0:
        raise ValueError(f"{characters} characters: there is nothing to divide by")
    return nats / (characters * math.log(2))
