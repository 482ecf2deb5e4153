"""Draws Gaussian noise for training: fast, in floating point, within a proved distance of exact Gaussian noise.

Noise that only resembles a Gaussian is not (ε, δ)-differentially private at the δ of Gaussian noise: if the noise is
bounded, for example, an output beyond the bound identifies a record with certainty. So each sampler here guarantees a
*coupling*: there are independent, exact standard normal numbers such that each number drawn is within
`DISTANCE` * (1 + R) of its exact one, where R is the L2 norm of the pair that the number belongs to. The probability
that this fails for any of the numbers of one release is at most `FAILURE`. Accounting reserves a share of δ for such
failures (`exact_delta`) and states ε as infinite if the share is too small (`with_failures`).

The coupling is that of Box and Muller (1958): a pair is R (cos A, sin A) with R = sqrt(-2 log U), U uniform on (0, 1]
and A a uniform angle. Random words give the leading bits of U and A. Where U is so near to 0 or 1 that the missing bits
would move R by more than the distance, 896 further bits of U are drawn.

The coupling does not cover two things. The words come from a pseudo-random generator (Philox). And a number is near its
exact one but not equal to it, and its sum with data is rounded. Because of the second, reports call such noise "not
hardened" against floating-point attacks. The noise of `privacy.noise.exact` and `privacy.noise.rounded` consists of
integers, and adding them to integers is exact.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

DISTANCE = 2.0**-20
"""Largest distance to exact Gaussian noise, in standard deviations, divided by 1 + the L2 norm of the pair."""

MAX_VALUES = 10**12
"""Maximum number of noise values in one release (a round or a step)."""

FAILURE = 1e-252
"""Upper bound on the probability that one release of at most `MAX_VALUES` values holds a value farther from exact
noise than `DISTANCE` allows. That happens only if nearly all of the 896 further bits of some U are zero (probability
2^-878 for each pair)."""

RESERVED = 1e-9
"""Share of δ that accounting reserves for failures of the coupling."""

MAX_EPSILON = 500.0
"""Maximum ε to calibrate noise for. Up to it, `RESERVED` is enough at any δ from 1e-12 and for up to 10^13 releases."""

NOT_STATED = f"above about {MAX_EPSILON:g}, epsilon is not stated: use more noise"
"""Explanation of an infinite ε, for messages and reports."""

_FIRST_BITS = 32  # leading bits of U
NEAR_ZERO, NEAR_ONE = 2**20, 2**10
"""Numbers of cells of width 2^-32 at the lower and the upper end of (0, 1]: a U in these cells gets further bits."""

FURTHER_WORDS = 14
"""Number of 64-bit words of further bits for each such U."""

_PAIRS = 2**14  # drawn at once: as many as a processor's cache holds


def exact_delta(delta: float) -> float:
    """Returns the δ at which the ε of exact Gaussian noise is computed: `delta` less the reserve for failures."""
    return (1 - RESERVED) * delta


def with_failures(epsilon: float, delta: float, releases: int) -> float:
    """Returns the ε at `delta` of this module's noise, given the ε of exact noise at `exact_delta(delta)`.

    If noise stays within `DISTANCE` of exact noise except with probability η, on either of two neighbouring data sets,
    that exception adds (1 + e^ε) η to δ. `RESERVED` covers the sum over all releases. The proof does not cover what the
    remaining difference from exact noise, or the rounding of its sum with data, could reveal (see the module).

    Args:
      epsilon: ε of exact noise, at least 0, or inf.
      delta: δ of the claim, in (0, 1).
      releases: number of rounds or steps, each of at most `MAX_VALUES` values.

    Returns:
      `epsilon`, or inf if the failures cost more than the reserve.
    """
    log_cost = np.logaddexp(0.0, epsilon) + math.log(max(releases, 1)) + math.log(FAILURE)
    return epsilon if log_cost <= math.log(RESERVED) + math.log(delta) else math.inf


def secure_generator() -> np.random.Generator:
    """Returns a Philox generator whose 256-bit seed comes from the operating system."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def standard_normal(generator: np.random.Generator, size: int, dtype: Any) -> npt.NDArray[Any]:
    """Draws `size` standard normal numbers, coupled to exact ones as the module describes.

    Args:
      generator: NumPy generator whose bit generator returns 64-bit words: any but MT19937.
      size: number of values, from 0 to `MAX_VALUES`.
      dtype: float32 or float64.

    Returns:
      Array [size] of `dtype`.

    Raises:
      ValueError: the bit generator returns 32-bit words.
    """
    if isinstance(generator.bit_generator, np.random.MT19937):
        raise ValueError("generator uses MT19937, whose words have 32 bits: use numpy.random.default_rng()")
    pairs = (size + 1) // 2
    values = np.empty(2 * pairs, dtype)
    for first in range(0, pairs, _PAIRS):
        count = min(_PAIRS, pairs - first)
        leading, angles = generator.bit_generator.random_raw(count).view(np.uint32).reshape(2, count)
        radius = _draw_radii(generator, leading).astype(dtype)
        angle = angles.view(np.int32).astype(dtype)
        angle *= np.asarray(math.pi * 2.0**-31, dtype)
        part = values[2 * first : 2 * (first + count)].reshape(2, count)
        np.multiply(radius, np.cos(angle), out=part[0])
        np.multiply(radius, np.sin(angle), out=part[1])
    return values[:size]


def _draw_radii(generator: np.random.Generator, leading: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Returns sqrt(-2 log U), float64 [n], for uniform U whose first 32 bits are `leading`, [n]."""
    uniform = leading + 0.5
    # One comparison finds both ends of (0, 1], since the unsigned sum wraps around.
    ends = np.flatnonzero(leading + np.uint32(NEAR_ONE) < np.uint32(NEAR_ZERO + NEAR_ONE))
    further = generator.bit_generator.random_raw(FURTHER_WORDS * len(ends)).reshape(FURTHER_WORDS, len(ends))
    scales = 2.0 ** (-64 * np.arange(1, FURTHER_WORDS + 1))
    uniform[ends] = leading[ends] + (scales @ further + 0.5 * scales[-1])
    uniform *= 2.0**-_FIRST_BITS
    np.log(uniform, out=uniform)
    uniform *= -2
    return np.sqrt(uniform, out=uniform)
