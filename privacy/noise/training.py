"""Gaussian noise for training: fast, floating-point, and within a stated distance of exact Gaussian noise.

A release with noise that only looks Gaussian is not (ε, δ)-differentially private at the δ of Gaussian noise: where the
noise has an end, what lies beyond it identifies a record with certainty. So each sampler here promises a *coupling*:
there are independent, exact standard normal numbers such that each number drawn is within `DISTANCE` * (1 + R) of its
own, R being the length of the pair it belongs to, except with probability `FAILURE` for all numbers of one release.
Accounting counts the exception into δ: `exact_delta` and `with_failures`.

The coupling is that of Box and Muller (1958): a pair is R (cos A, sin A) with R = sqrt(-2 log U), U uniform on (0, 1]
and A a uniform angle. Words of random bits give the leading bits of U and A; where U is so small, or so near 1, that
the missing bits would move R by more than the distance, more are drawn, 896 in all. Not covered: that the words come
from a pseudo-random generator (Philox); and that a number is near its exact one and not equal to it, and is rounded
when it is added to data ("not hardened"; for noise without that gap see `privacy.noise` and `privacy.noise.rounded`).
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

DISTANCE = 2.0**-20
"""Largest distance to exact Gaussian noise, in standard deviations, over 1 + the length of the pair."""

MOST_NUMBERS = 10**12
"""Largest number of noise values in one release (a round, a step)."""

FAILURE = 1e-252
"""Probability that one release of at most `MOST_NUMBERS` values has one farther from exact noise than the distance: the
896 further bits of some radius are all but zero (2^-878 for each pair)."""

RESERVED = 1e-9
"""Share of δ that accounting keeps for such failures."""

MOST_EPSILON = 500.0
"""Largest ε to calibrate noise for. Up to here `RESERVED` is enough at any δ from 1e-12 and any number of releases."""

_FIRST_BITS = 32  # of U
NEAR_ZERO, NEAR_ONE = 2**20, 2**10
"""Cells of 2^-32 at either end of (0, 1] in which U gets more bits."""

FURTHER_WORDS = 14
"""Words of 64 further bits."""

_PAIRS = 2**14  # whose numbers a processor's cache holds


def exact_delta(delta: float) -> float:
    """Returns the δ that is left for exact Gaussian noise, at which ε is computed."""
    return (1 - RESERVED) * delta


def with_failures(epsilon: float, delta: float, releases: int) -> float:
    """Returns the ε at `delta` with the noise here, from the ε at `exact_delta(delta)` with exact noise.

    Noise that stays within `DISTANCE` of exact noise except with probability η, on either of two neighbouring data
    sets, costs (1 + e^ε) η more δ (and the distance, which is outside the proof, see the module); that is what
    `RESERVED` is for.

    Args:
      epsilon: at least 0, or inf.
      delta: δ of the claim, in (0, 1).
      releases: rounds or steps, each of at most `MOST_NUMBERS` values.

    Returns:
      `epsilon`; inf if the failures cost more than the reserve.
    """
    log_cost = np.logaddexp(0.0, epsilon) + math.log(max(releases, 1)) + math.log(FAILURE)
    return epsilon if log_cost <= math.log(RESERVED) + math.log(delta) else math.inf


def secure_generator() -> np.random.Generator:
    """Returns a Philox generator whose 256-bit seed comes from the operating system."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def standard_normal(generator: np.random.Generator, size: int, dtype: Any) -> npt.NDArray[Any]:
    """Draws `size` standard normal numbers, coupled to exact ones as the module's text says.

    Args:
      generator: NumPy generator whose bit generator gives 64-bit words: any but MT19937.
      size: number of values, from 0 to `MOST_NUMBERS`.
      dtype: float32 or float64.

    Returns:
      Array [size] of `dtype`.

    Raises:
      ValueError: the bit generator gives words of 32 bits.
    """
    if isinstance(generator.bit_generator, np.random.MT19937):
        raise ValueError("generator is of MT19937, whose words have 32 bits: take numpy.random.default_rng")
    pairs = (size + 1) // 2
    found = np.empty(2 * pairs, dtype)
    for first in range(0, pairs, _PAIRS):
        count = min(_PAIRS, pairs - first)
        leading, angles = generator.bit_generator.random_raw(count).view(np.uint32).reshape(2, count)
        radius = _radii(generator, leading).astype(dtype)
        angle = angles.view(np.int32).astype(dtype)
        angle *= np.asarray(math.pi * 2.0**-31, dtype)
        part = found[2 * first : 2 * (first + count)].reshape(2, count)
        np.multiply(radius, np.cos(angle), out=part[0])
        np.multiply(radius, np.sin(angle), out=part[1])
    return found[:size]


def _radii(generator: np.random.Generator, leading: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Returns sqrt(-2 log U), float64 [n], of uniform U with these leading bits [n]."""
    uniform = leading + 0.5
    # One comparison finds both ends: the sum wraps around.
    ends = np.flatnonzero(leading + np.uint32(NEAR_ONE) < np.uint32(NEAR_ZERO + NEAR_ONE))
    further = generator.bit_generator.random_raw(FURTHER_WORDS * len(ends)).reshape(FURTHER_WORDS, len(ends))
    scales = 2.0 ** (-64 * np.arange(1, FURTHER_WORDS + 1))
    uniform[ends] = leading[ends] + (scales @ further + 0.5 * scales[-1])
    uniform *= 2.0**-_FIRST_BITS
    np.log(uniform, out=uniform)
    uniform *= -2
    return np.sqrt(uniform, out=uniform)
