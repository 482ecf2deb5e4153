"""Computes keyed random numbers and samples tokens in NumPy, bit for bit as the TensorFlow ops do.

Every step of a draw is either integer arithmetic or a float32 operation whose result IEEE 754 fixes. No step calls
`exp` or `log`: exp is read from a table. The table is computed in float64 when the module is imported, and is then
rounded to float32. It has the same bits on every machine, because no entry is so close to a rounding boundary that an
inexact `exp` could change the rounded value. A product is added to another number only if the product is exact, so a
compiler that fuses the two operations does not change the result. Equal logits therefore give the same token in NumPy,
eager TensorFlow, `tf.function`, XLA and TFLite, whatever kernels run.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = tuple[NDArray[np.int32], NDArray[np.int32]]


class Stream(IntEnum):
    """Names the purposes of random numbers; numbers for different purposes are independent.

    RACE is that of `models.decoding.race`. DARTS and CONSISTENT are those of `keyed_darts` and `keyed_consistent` in
    `models.decoding.couplings`.
    """

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    BONUS = 4
    RACE = 5
    DARTS = 6
    CONSISTENT = 7


# Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA
ROUNDS = 20

# Sampling weights are integers, at most 2**44 (for the likeliest token), so that a sum over 2**18 tokens is at most
# 2**62 and fits into int64.
WEIGHT_BITS = 44
LARGEST_VOCABULARY = 1 << 18
BLOCK = 64
# exp is read from a table with this many entries per nat. Between two entries a rational function approximates it.
ENTRIES_PER_NAT = 128
LOWEST = 30.5  # a token this many nats or more below the likeliest one has weight zero: exp(-30.5) < 2**-44
# Processed logit of a token that is never drawn: the lowest float32, since newer TFLite converters replace -inf by it.
LEFT_OUT = float(np.finfo(np.float32).min)


def _make_table() -> NDArray[np.int32]:
    entries = np.exp(-np.arange(int(LOWEST * ENTRIES_PER_NAT) + 1) / ENTRIES_PER_NAT) * 2.0**WEIGHT_BITS
    entries[-1] = 0
    return entries.astype(np.float32).view(np.int32)


# The float32 values are held as int32 bits, because converters shrink float constants to 16 or 8 bits but not integers.
TABLE_BITS = _make_table()


def seed_words(seed: int) -> NDArray[np.int32]:
    """Returns a seed from 0 to 2**64 - 1 as int32 `[2]`, low word first."""
    return np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32).view(np.int32)


def threefry_2x32(
    key: tuple[NDArray[np.uint32], NDArray[np.uint32]], counter: tuple[NDArray[np.uint32], NDArray[np.uint32]]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Computes twenty rounds of Threefry-2x32 on uint32 arrays, which broadcast."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(PARITY))
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for i in range(ROUNDS):
        rotation = ROTATIONS[i % 8]
        x0 = x0 + x1
        x1 = ((x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))) ^ x0
        if i % 4 == 3:
            step = i // 4 + 1
            x0 = x0 + schedule[step % 3]
            x1 = x1 + schedule[(step + 1) % 3] + np.uint32(step)
    return x0, x1


def random_words(
    seed: ArrayLike, stream: Stream, request: ArrayLike, positions: ArrayLike, index: ArrayLike | None = None
) -> Words:
    """Computes the same words as `models.decoding.prng.random_words`, in NumPy."""
    shape = np.broadcast_shapes(np.shape(request), np.shape(positions), np.shape(0 if index is None else index))
    seed = _as_uint32(seed)
    key = threefry_2x32((seed[:1], seed[1:]), (_as_uint32([stream]), _as_uint32(request)))
    second = _as_uint32([0]) if index is None else _as_uint32(index) + np.uint32(1)
    words = threefry_2x32(key, (_as_uint32(positions), second))
    return words[0].view(np.int32).reshape(shape), words[1].view(np.int32).reshape(shape)


def uniforms(word: NDArray[np.int32]) -> NDArray[np.float32]:
    """Computes the same numbers as `models.decoding.prng.uniforms`, in NumPy."""
    bits = np.asarray(word, np.int32).view(np.uint32)
    high = (bits >> np.uint32(16)).astype(np.float32) * np.float32(2.0**-16)
    low = ((bits & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return np.minimum(high + low, np.float32(1 - 2.0**-24))


def weights(processed: NDArray[np.float32]) -> NDArray[np.int64]:
    """Computes the same weights as `models.decoding.sampling.weights`, in NumPy."""
    below = np.where(processed > -LOWEST, -processed, np.float32(LOWEST))
    entry = (below * np.float32(ENTRIES_PER_NAT)).astype(np.int32)
    half = (below - entry.astype(np.float32) * np.float32(1 / ENTRIES_PER_NAT)) * np.float32(0.5)
    ratio = (np.float32(1) - half) / (np.float32(1) + half)
    return (TABLE_BITS[entry].view(np.float32) * ratio).astype(np.int64)


def sample(processed: NDArray[np.float32], words: Words) -> NDArray[np.int32]:
    """Draws the same tokens as `models.decoding.sampling.sample`, in NumPy."""
    sums = np.cumsum(weights(processed), axis=-1)
    fraction = [(np.asarray(word).view(np.uint32) >> np.uint32(1)).astype(np.int64) for word in words]
    threshold = scale(sums[..., -1], fraction[0], fraction[1])
    return np.sum(sums <= threshold[..., np.newaxis], axis=-1).astype(np.int32)


def scale(total: NDArray[np.int64], high: NDArray[np.int64], low: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns exactly floor(total * (high * 2**31 + low) / 2**62), for total <= 2**62 and high, low < 2**31."""
    total_high, total_low = total >> 31, total & 0x7FFFFFFF
    return total_high * high + ((total_high * low + total_low * high + ((total_low * low) >> 31)) >> 31)


def _as_uint32(x: ArrayLike) -> NDArray[np.uint32]:
    """Converts to uint32 with at least one axis: NumPy warns when scalars overflow, and wrapping is intended here."""
    return np.atleast_1d(np.asarray(x).astype(np.int64).astype(np.uint32))
