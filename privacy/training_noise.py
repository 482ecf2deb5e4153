"""Gaussian noise for training: floating-point, from bits that nobody can foresee, and as fast as they come.

It is not hardened: attacks on the low-order bits of what it is added to are not covered. For exact noise see
`privacy.noise`.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

_FINE = 2**12  # one in a million
_PAIRS = 2**14  # whose numbers a processor's cache holds


def secure_generator() -> np.random.Generator:
    """A Philox generator whose 256-bit seed is the operating system's."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(secrets.randbits(256))))


def standard_normal(generator: np.random.Generator, size: int, dtype: Any) -> npt.NDArray[Any]:
    """Independent standard normal numbers [size], float32 or float64.

    In float32 by the transform of Box and Muller (1958) on whole arrays, at less than half of the time of NumPy's own
    sampler. None is beyond 9.4: the radius has 64 bits where it is large, since a bound that noise never passes tells
    for certain what lies beyond it.
    """
    if dtype != np.float32:
        return generator.standard_normal(size, dtype)
    pairs = (size + 1) // 2
    found = np.empty(2 * pairs, np.float32)
    for first in range(0, pairs, _PAIRS):
        count = min(_PAIRS, pairs - first)
        radius, angle = generator.bit_generator.random_raw(count).view(np.uint32).reshape(2, count).astype(np.float32)
        far = np.flatnonzero(radius < _FINE)
        # Bits below the first 32, for the few whose rounding would show.
        radius[far] += (generator.bit_generator.random_raw(len(far)) >> np.uint64(32)) * 2.0**-32
        np.maximum(radius, np.float32(2.0**-32), out=radius)  # no logarithm of zero
        radius *= np.float32(2.0**-32)
        np.log(radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        angle *= np.float32(2 * np.pi * 2.0**-32)
        part = found[2 * first : 2 * (first + count)].reshape(2, count)
        np.multiply(radius, np.cos(angle), out=part[0])
        np.multiply(radius, np.sin(angle), out=part[1])
    return found[:size]
