"""Draws Gaussian noise that is rounded to integers exactly.

Each value is the integer nearest to an exact Gaussian number. A sum of integers plus this noise is therefore the
rounded output of the Gaussian mechanism. Every (ε, δ) guarantee of continuous Gaussian noise holds for this sum by
post-processing, and no floating-point error weakens the guarantee. (The discrete Gaussian of
`privacy.noise.exact.gaussian` has the same zCDP. But its (ε, δ), with or without Poisson sampling, differ from those of
continuous noise, and drawing it takes forty times as long.)

Box and Muller (1958) turn a uniform U and a uniform angle A into the Gaussian pair R cos A, R sin A, with
R = sqrt(-2 log U). The key determines two unlimited streams of bits, those of U and those of A. The first 64 bits of
each give a floating-point value, which is used only if its error bound leaves no doubt which integer is nearest. The
few other values are computed from more bits, in decimal arithmetic with as many digits as they need. So the result
depends on the key, `stddev` and the value's index alone, and is the same on every processor.
"""

from __future__ import annotations

import decimal
import hashlib
import math
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from privacy import checks

LARGEST_STDDEV = 2.0**34
"""Largest standard deviation, in grid steps: beyond it floating-point arithmetic would leave too many values in
doubt."""

_PAIRS = 2**14  # computed at once: as many as a processor's cache holds
_FURTHER_BITS = 256
# Bounds on the relative error of a computed R cos A and on the absolute error of a computed log U: at least 32 times
# the usual error bounds of float64 functions.
_ERROR, _LOG_ERROR = 2.0**-44, 2.0**-50


def rounded_gaussian(key: bytes, stddev: float, size: int) -> npt.NDArray[np.int64]:
    """Draws Gaussian numbers of mean 0, each rounded to the nearest integer.

    Let one client change a sum of integer vectors by at most Δ in L2 norm. The sum plus these numbers is then a
    post-processing of the Gaussian mechanism with noise multiplier `stddev` / Δ.

    Args:
      key: secret of at least 16 bytes that is used for nothing else; the same key gives the same values everywhere.
      stddev: standard deviation before rounding, in grid steps (the sums' integers), from 1 to 2^34.
      size: number of values, at least 0.

    Returns:
      int64 [size].

    Raises:
      ValueError: an argument is out of range.
    """
    if len(key) < 16:
        raise ValueError(f"key has {len(key)} bytes: at least 16 are needed")
    checks.positive("stddev", stddev, "give it in grid steps")
    if not 1 <= stddev <= LARGEST_STDDEV:
        raise ValueError(f"stddev must lie in [1, 2^34] grid steps, got {stddev:g}: use another noise multiplier")
    checks.whole("size", size, 0, "give the number of values")
    pairs = (size + 1) // 2
    values = np.empty(2 * pairs, np.int64)
    for first in range(0, pairs, _PAIRS):
        count = min(_PAIRS, pairs - first)
        words = np.frombuffer(_derive_bytes(key, b"words", first, 16 * count), "<u8").reshape(2, count)
        part = values[2 * first : 2 * (first + count)].reshape(2, count)
        part[:], doubt = _round_fast(words, stddev)
        for index in np.flatnonzero(doubt):
            part[:, index] = _round_exactly(key, first + int(index), words[:, index], stddev)
    return values[:size]


def _derive_bytes(key: bytes, purpose: bytes, index: int, size: int) -> bytes:
    """Derives pseudo-random bytes from a key by SHAKE-128 (FIPS 202), one stream for each purpose and index."""
    message = len(key).to_bytes(8, "big") + key + purpose + b"\0" + index.to_bytes(16, "big")
    return hashlib.shake_128(message).digest(size)


def _round_fast(words: npt.NDArray[np.uint64], stddev: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Returns rounded pairs, int64 [2, n], and which of them are in doubt, bool [n]. Pairs in doubt are zeros.

    `words` are the first 64 bits of U and of A, uint64 [2, n].
    """
    leading = words[0].astype(np.float64) + 0.5
    radius = np.sqrt(-2 * np.log(leading * 2.0**-64))
    angle = words[1].view(np.int64) * (math.pi * 2.0**-63)
    values = stddev * radius * np.stack([np.cos(angle), np.sin(angle)])
    nearest = np.rint(values)
    with np.errstate(divide="ignore"):
        # |dR| = |d(log U)| / R; the bits of U beyond the first 64 move log U by at most 1 / (2 leading).
        error = stddev * (_ERROR * radius + (_LOG_ERROR + 0.5 / leading) / radius)
    doubt = ~(np.abs(values - nearest) + error < 0.5).all(axis=0) | (leading < 2.0**20) | (radius < 2.0**-20)
    return np.where(doubt, 0, nearest).astype(np.int64), doubt


def _round_exactly(key: bytes, pair: int, words: npt.NDArray[np.uint64], stddev: float) -> list[int]:
    """Computes a rounded pair from as many bits as are needed to leave no doubt which integers are nearest."""
    bits = _FURTHER_BITS
    while True:
        # A longer output of SHAKE begins with the shorter one, so more bits never change those that were used before.
        further = [int.from_bytes(_derive_bytes(key, name, pair, bits // 8), "big") for name in (b"U", b"A")]
        leading, angle = ((int(word) << bits) + part for word, part in zip(words, further, strict=True))
        with decimal.localcontext(decimal.Context(prec=bits // 2, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)):
            unit = Decimal(2) ** (64 + bits)
            radius = (-2 * ((leading + Decimal(0.5)) / unit).ln()).sqrt()
            turn = 2 * _pi() * (angle + Decimal(0.5)) / unit
            values = [Decimal(stddev) * radius * function for function in _cos_sin(turn)]
            nearest = [int(value.to_integral_value(decimal.ROUND_HALF_EVEN)) for value in values]
            error = Decimal(2) ** (-bits // 4)
            sure = leading >> (bits - bits // 4) and all(
                abs(value - integer) + error < Decimal(0.5) for value, integer in zip(values, nearest, strict=True)
            )
        if sure:
            return nearest
        bits *= 2


def _pi() -> Decimal:
    """Computes π by Machin's formula, to the precision of the decimal context."""

    def arctan_of_inverse(x: int) -> Decimal:
        total, power, n = Decimal(0), Decimal(1) / x, 0
        while power:
            step = power / (2 * n + 1)
            if total + step == total:
                break
            total += step if n % 2 == 0 else -step
            power, n = power / (x * x), n + 1
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))


def _cos_sin(angle: Decimal) -> tuple[Decimal, Decimal]:
    """Computes cosine and sine by their series, for an angle from 0 to 2 π."""
    cosine, sine, term, n = Decimal(0), Decimal(0), Decimal(1), 0
    while n < 20 or abs(term) > Decimal(10) ** -decimal.getcontext().prec:
        match n % 4:
            case 0:
                cosine += term
            case 1:
                sine += term
            case 2:
                cosine -= term
            case 3:
                sine -= term
        n += 1
        term *= angle / n
    return cosine, sine
