"""Computes confidence intervals: by the bootstrap over clients, and of shares of independent trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_CHUNK = 1 << 22


class Interval(NamedTuple):
    """Holds an estimate and the ends of its confidence interval, all in the same unit."""

    estimate: float
    low: float
    high: float


def mean_interval(loss: NDArray[Any], units: NDArray[Any], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Returns the mean loss per unit with a percentile bootstrap interval over clients.

    The estimate is the sum of all losses divided by the sum of all units. The interval comes from resampling whole
    clients with replacement.

    Args:
      loss: float [clients], each client's sum of losses.
      units: integers [clients], each client's number of units (tokens or characters), ≥ 0.
      confidence: coverage of the interval, in (0, 1).
      seed: seed of the resampling; equal seeds give equal intervals.

    Raises:
      ValueError: shapes differ, all units are 0, a loss is not finite, or `confidence` is out of range.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    loss, units = np.asarray(loss, np.float64), np.asarray(units, np.float64)
    if loss.ndim != 1 or loss.shape != units.shape:
        raise ValueError(
            f"losses of shape {loss.shape} and units of shape {units.shape}: give one loss and one number of units per "
            "client"
        )
    # Clients without units change no sum. Without them, every resample has at least one unit to divide by.
    loss, units = loss[units > 0], units[units > 0]
    if not len(units):
        raise ValueError("no client has a token: the mean is undefined, give clients with text")
    if not np.isfinite(loss).all():
        raise ValueError(
            f"the losses of {np.count_nonzero(~np.isfinite(loss))} clients are not finite: the model has diverged"
        )
    generator = np.random.default_rng(seed)
    clients = len(units)
    rows = max(_CHUNK // clients, 1)
    ratios = []
    for begin in range(0, _RESAMPLES, rows):
        sample = generator.integers(clients, size=(min(rows, _RESAMPLES - begin), clients))
        ratios.append(loss[sample].sum(axis=1) / units[sample].sum(axis=1))
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
    """Returns the mean loss difference a - b per unit with a bootstrap interval over clients.

    Values below zero mean that model a is better. Both models predict the same tokens of the same clients, so the
    difficulty of a client's text cancels, which usually makes the interval narrower than those of the single means.

    Args:
      a_loss: float [clients], each client's sum of losses under model a.
      b_loss: float [clients], each client's sum of losses under model b.
      units: integers [clients], each client's number of units (tokens or characters), ≥ 0.
      confidence: coverage of the interval, in (0, 1).
      seed: seed of the resampling; equal seeds give equal intervals.

    Raises:
      ValueError: shapes differ, all units are 0, a loss is not finite, or `confidence` is out of range.
    """
    if np.shape(a_loss) != np.shape(b_loss):
        raise ValueError(
            f"losses of shape {np.shape(a_loss)} and {np.shape(b_loss)}: give the losses of both models on the same "
            "clients"
        )
    return mean_interval(np.subtract(a_loss, b_loss), units, confidence=confidence, seed=seed)


def bits_per_character(nats: float, characters: float) -> float:
    """Returns the loss in bits per character.

    Args:
      nats: total loss in nats.
      characters: total number of characters, > 0.

    Raises:
      ValueError: `characters` is not positive.
    """
    if not characters > 0:
        raise ValueError(f"{characters} characters: bits per character need at least one")
    return nats / (characters * math.log(2))


def share_interval(hits: int, trials: int) -> Interval:
    """Returns the share of hits among independent trials with its 95 % Wilson interval.

    Args:
      hits: number of hits, from 0 to `trials`.
      trials: number of trials, > 0.

    Reference: Brown, Cai and DasGupta 2001, Interval Estimation for a Binomial Proportion.
    """
    share, z = hits / trials, 1.959964
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def format_interval(interval: Mapping[str, float], digits: int, sign: str = "") -> str:
    """Returns estimate and bounds as text, for example "1.50 [1.40, 1.60]"; `sign` "+" shows the sign of all."""
    estimate, low, high = (f"{interval[key]:{sign}.{digits}f}" for key in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"
