"""Gaussian noise rounded to integers, exactly.

Each number is what an exact Gaussian number rounds to, so that a sum of integers with this noise is the rounded output
of the Gaussian mechanism: every (ε, δ) of continuous Gaussian noise holds for it, by post-processing, with no bit of
floating point in between. (A discrete Gaussian, `privacy.noise.gaussian`, has the same zCDP, but its (ε, δ) and what
Poisson sampling makes of it are not those of the continuous one; and it takes forty times as long.)

A Gaussian number is given by the endless bits of a key: R cos A and R sin A of Box and Muller (1958), with
R = sqrt(-2 log U). Floating-point arithmetic looks at the first 64 bits of U and of A, and decides only where its error
bound leaves no doubt what the number rounds to; the few others are taken from more bits, in decimal arithmetic of any
precision. So the result depends on the key alone, whatever the processor.
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
"""In grid steps: beyond it floating point would leave too much in doubt."""

_PAIRS = 2**14  # whose numbers a processor's cache holds
_FURTHER_BITS = 256
# Relative error of a computed R cos A, and absolute error of log U: 32 times what float64 functions promise, and more.
_ERROR, _LOG_ERROR = 2.0**-44, 2.0**-50


def rounded_gaussian(key: bytes, stddev: float, size: int) -> npt.NDArray[np.int64]:
    """Draws Gaussian numbers of mean 0, each rounded to the nearest integer.

    A sum of integer vectors that one client changes by at most Δ in L2 norm is, with it, a post-processing of the
    Gaussian mechanism of noise multiplier `stddev` / Δ.

    Args:
      key: secret, of 16 bytes at least, and of no other use; the same key gives the same numbers on every machine.
      stddev: standard deviation before rounding, in steps of the integers' grid, from 1 to 2^34.
      size: number of values, at least 0.

    Returns:
      int64 [size].

    Raises:
      ValueError: an argument is out of range.
    """
    if len(key) < 16:
        raise ValueError(f"key has {len(key)} bytes: at least 16 are needed")
    checks.positive("noise stddev", stddev, "give it in grid steps")
    if not 1 <= stddev <= LARGEST_STDDEV:
        raise ValueError(
            f"noise stddev must lie in [1, 2^34] grid steps, got {stddev:g}: take another noise multiplier"
        )
    checks.whole("size", size, 0, "count the values")
    pairs = (size + 1) // 2
    found = np.empty(2 * pairs, np.int64)
    for first in range(0, pairs, _PAIRS):
        count = min(_PAIRS, pairs - first)
        words = np.frombuffer(_bits(key, b"words", first, 16 * count), "<u8").reshape(2, count)
        part = found[2 * first : 2 * (first + count)].reshape(2, count)
        part[:], doubt = _rounded(words, stddev)
        for index in np.flatnonzero(doubt):
            part[:, index] = _exactly(key, first + int(index), words[:, index], stddev)
    return found[:size]


def _bits(key: bytes, purpose: bytes, index: int, size: int) -> bytes:
    """Pseudo-random bytes of a key: SHAKE-128 (FIPS 202), each purpose and index a stream of its own."""
    named = len(key).to_bytes(8, "big") + key + purpose + b"\0" + index.to_bytes(16, "big")
    return hashlib.shake_128(named).digest(size)


def _rounded(words: npt.NDArray[np.uint64], stddev: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Pairs, int64 [2, n], from the first 64 bits of U and A, uint64 [2, n]; and which are in doubt, bool [n]."""
    leading = words[0].astype(np.float64) + 0.5
    radius = np.sqrt(-2 * np.log(leading * 2.0**-64))
    angle = words[1].view(np.int64) * (math.pi * 2.0**-63)
    values = stddev * radius * np.stack([np.cos(angle), np.sin(angle)])
    nearest = np.rint(values)
    with np.errstate(divide="ignore"):
        # dR = d(log U) / R; the bits of U that are not looked at move its logarithm by at most 1 / (2 leading).
        error = stddev * (_ERROR * radius + (_LOG_ERROR + 0.5 / leading) / radius)
    doubt = ~(np.abs(values - nearest) + error < 0.5).all(axis=0) | (leading < 2.0**20) | (radius < 2.0**-20)
    return np.where(doubt, 0, nearest).astype(np.int64), doubt


def _exactly(key: bytes, pair: int, words: npt.NDArray[np.uint64], stddev: float) -> list[int]:
    """The pair with so many bits that there is no doubt left."""
    bits = _FURTHER_BITS
    while True:
        # Each a stream that goes on: with more bits, the first are the same.
        halves = [int.from_bytes(_bits(key, name, pair, bits // 8), "big") for name in (b"U", b"A")]
        leading, angle = ((int(word) << bits) + half for word, half in zip(words, halves, strict=True))
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
    """Computes π by Machin's formula, in the precision of the context."""

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
