"""Computes keyed random numbers, processes logits and samples tokens in NumPy, bit for bit as the TensorFlow ops do.

Every step of a draw is either integer arithmetic or a float32 operation whose result IEEE 754 fixes. No step calls
`exp` or `log`: exp is read from a table. The table is computed in float64 when the module is imported, and is then
rounded to float32. It has the same bits on every machine, because no entry is so close to a rounding boundary that an
inexact `exp` could change the rounded value. A product is added to another number only if the product is exact, so a
compiler that fuses the two operations does not change the result. Equal logits therefore give the same token in NumPy,
eager TensorFlow, `tf.function`, XLA and TFLite, whatever kernels run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = tuple[NDArray[np.int32], NDArray[np.int32]]


class Stream(IntEnum):
    """Names the purposes of random numbers; numbers for different purposes are independent.

    RACE is that of `models.decoding.race`, DARTS that of `models.decoding.couplings.keyed_darts`.
    """

    SAMPLE = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    BONUS = 4
    RACE = 5
    DARTS = 6


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
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


def _make_table() -> NDArray[np.int32]:
    entries = np.exp(-np.arange(int(LOWEST * ENTRIES_PER_NAT) + 1) / ENTRIES_PER_NAT) * 2.0**WEIGHT_BITS
    entries[-1] = 0
    return entries.astype(np.float32).view(np.int32)


# The float32 values are held as int32 bits, because converters shrink float constants to 16 or 8 bits but not integers.
TABLE_BITS = _make_table()


@dataclass(frozen=True)
class Choices:
    """Holds the options of one request for tokens.

    Attributes:
      max_new_tokens: maximum number of tokens to draw, 1 to 2**31 - 1.
      temperature: number that the logits are divided by, 1e-6 to 1e6; or 0, which always draws the likeliest token.
      top_k: number of likeliest tokens to draw from, 1 to 2**31 - 1; 0 draws from all.
      seed: seed of the random numbers, 0 to 2**64 - 1.
      request: number that identifies the request, 0 to 2**31 - 1. Different requests with the same seed draw
        independently. A draw depends only on the logits, the position, the seed, the request, temperature and top_k.
      stop: id of the token to end after, 0 to 2**31 - 1 (the token itself is drawn); -1 for none.

    Raises:
      ValueError: a value is outside its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0
    request: int = 0
    stop: int = -1

    def __post_init__(self) -> None:
        ranges = (
            ("max_new_tokens", 1, 31),
            ("top_k", 0, 31),
            ("seed", 0, 64),
            ("request", 0, 31),
            ("stop", -1, 31),
        )
        for name, least, bits in ranges:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << bits:
                raise ValueError(f"{name} = {value!r}: must be an integer from {least} to 2^{bits} - 1")
        # Written so that NaN, for which every comparison is False, is refused.
        if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE):
            raise ValueError(
                f"temperature = {self.temperature!r}: must be 0 (greedy) or a number from {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}"
            )


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
    seed: ArrayLike, stream: Stream, request: ArrayLike, positions: ArrayLike, tokens: ArrayLike | None = None
) -> Words:
    """Computes the same words as `models.decoding.prng.random_words`, in NumPy."""
    shape = np.broadcast_shapes(np.shape(request), np.shape(positions), np.shape(0 if tokens is None else tokens))
    seed = _as_uint32(seed)
    key = threefry_2x32((seed[:1], seed[1:]), (_as_uint32([stream]), _as_uint32(request)))
    ids = _as_uint32([0]) if tokens is None else _as_uint32(tokens) + np.uint32(1)
    first, second = threefry_2x32(key, (_as_uint32(positions), ids))
    return first.view(np.int32).reshape(shape), second.view(np.int32).reshape(shape)


def uniforms(word: NDArray[np.int32]) -> NDArray[np.float32]:
    """Computes the same numbers as `models.decoding.prng.uniforms`, in NumPy."""
    bits = np.asarray(word, np.int32).view(np.uint32)
    high = (bits >> np.uint32(16)).astype(np.float32) * np.float32(2.0**-16)
    low = ((bits & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return np.minimum(high + low, np.float32(1 - 2.0**-24))


def process(logits: NDArray[np.float32], temperature: float, top_k: int) -> NDArray[np.float32]:
    """Computes the same logits as `models.decoding.processing.process`, in NumPy."""
    logits = np.asarray(logits, np.float32)
    largest = logits.max(axis=-1, keepdims=True)
    size = logits.shape[-1]
    if not temperature > 0:
        kept = np.arange(size) == logits.argmax(axis=-1)[..., np.newaxis]
    elif 0 < top_k < size:
        kept = logits >= np.partition(logits, size - top_k, axis=-1)[..., size - top_k, np.newaxis]
    else:
        kept = np.ones_like(logits, bool)
    sharpness = np.float32(1) / np.float32(max(temperature, MIN_TEMPERATURE) if temperature > 0 else 1)
    return np.where(kept, (logits - largest) * sharpness, np.float32(LEFT_OUT))


def weights(processed: NDArray[np.float32]) -> NDArray[np.int64]:
    """Computes the same weights as `models.decoding.sampling.weights`, in NumPy."""
    below = np.minimum(-processed, np.float32(LOWEST))
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


def draw(
    step: Callable[[int, Any], tuple[NDArray[np.float32], Any]],
    logits: NDArray[np.float32],
    state: Any,
    position: int,
    choices: Choices,
) -> Iterator[int]:
    """Yields one token after another, as `models.decoding.loop.generate` draws them in one graph.

    Args:
      step: the model as a function from (token, state) to (logits `[V]`, new state).
      logits: the logits `[V]` after the prompt.
      state: the state after the prompt.
      position: number of tokens in the prompt, begin token included.
      choices: how to draw, and how many tokens at most.

    Raises:
      ValueError: the logits are not finite.
    """
    seed = seed_words(choices.seed)
    block: Words = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    for i in range(choices.max_new_tokens):
        if i % BLOCK == 0:  # words of many positions at once: the cost of a call does not depend on their number
            block = random_words(seed, Stream.SAMPLE, choices.request, position + i + np.arange(BLOCK))
        if not np.isfinite(logits).all():
            raise ValueError(f"logits at position {position + i} are not finite: the model is damaged or diverged")
        words = block[0][i % BLOCK], block[1][i % BLOCK]
        token = int(sample(process(logits, choices.temperature, choices.top_k), words))
        yield token
        if token == choices.stop or i + 1 == choices.max_new_tokens:
            return
        logits, state = step(token, state)


def scale(total: NDArray[np.int64], high: NDArray[np.int64], low: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns exactly floor(total * (high * 2**31 + low) / 2**62), for total <= 2**62 and high, low < 2**31."""
    total_high, total_low = total >> 31, total & 0x7FFFFFFF
    return total_high * high + ((total_high * low + total_low * high + ((total_low * low) >> 31)) >> 31)


def _as_uint32(x: ArrayLike) -> NDArray[np.uint32]:
    """Converts to uint32 with at least one axis: NumPy warns when scalars overflow, and wrapping is intended here."""
    return np.atleast_1d(np.asarray(x).astype(np.int64).astype(np.uint32))
