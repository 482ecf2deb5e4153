"""Draws tokens by an exponential race with keyed noise, in NumPy, bit for bit as `models.decoding.race` does.

Every (seed, request, position, token id) has a standard Gumbel number g. The token with the largest sum of processed
logit and g is drawn. Two models that draw with the same numbers draw the same token as often as
`models.decoding.couplings.race_agreement` says.

**From words to g.** One call of Threefry-2x32 gives the words of two tokens. A token's own word k, an integer from 0 to
2**32 - 1, and its partner's word w, one from -2**31 to 2**31 - 1, make v = (k + |w| / 2**32) / 2**32, raised to 2**-34
if it is below, and g = -ln(-ln(1 - v)). The partner's word only tells apart numbers with equal k. So g is never
infinite, from -3.14 to 23.57.

**Ties.** In uniform logits over 2**18 tokens, the largest two sums are equal with probability below 1e-6. With k alone
it would be 6e-5, and draws would lean to small token ids.

**Error.** |g - exact| is below 1.7e-6 where g < 16, and below 2.6e-6 above (one number of 9 million). A token's
probability has a relative error below 1e-5, twice that of a sum, plus an absolute one of 2**-32. A token whose
processed logit is below -27 is never drawn.

**Equal bits.** No `log` is called for a draw: g is read from a table of lines, each for a segment of v (near 0) or of
1 - v (near 0). A slope has 11 bits and the distance from a segment's middle 13, so that their product is exact and a
fused multiply-add gives the same result. The table has the same bits for every `log` with a relative error below 1e-12.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.decoding.numpy_ops import Stream, Words, random_words

# Token ids come in blocks of 512: the first 256 of a block get the first words of 256 calls, the others the second.
HALF_BLOCK = 256
SEGMENT_BITS = 14  # a segment of the table covers 2**14 adjacent float32 numbers, so that an octave has 512
# A number z in [1/4, 2**31] stands for v = z / 2**32. A number in [-2**31, -1/2] stands for 1 - v = -z / 2**32, and is
# looked up at -z * 2**33, above all of the former.
LOWEST_LOOKED_UP = 0.25
UPPER_SCALE = 2.0**33
FIRST_SEGMENT = int(np.float32(LOWEST_LOOKED_UP).view(np.int32)) >> SEGMENT_BITS
_SEGMENTS = (int(np.float32(2.0**64).view(np.int32)) >> SEGMENT_BITS) + 1 - FIRST_SEGMENT
_SLOPE_BITS = 11
_GRID = 2.0**-22
# Added to all numbers before they are rounded to the grid, so that none of them lies near a rounding boundary.
_OFFSET = 711 * 2.0**-36
_CHUNK = 16_384  # calls of Threefry at a time: their arrays stay in the cache


def exact_gumbel(looked_up: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns -ln(-ln(1 - v)) in float64, and its derivative, for the numbers by which the table is read."""
    is_lower = looked_up < 2.0**32
    v = np.where(is_lower, looked_up, 2.0**30) * 2.0**-32
    rest = np.where(is_lower, 2.0**64, looked_up) * (2.0**-32 / UPPER_SCALE)
    exponential = np.where(is_lower, -np.log1p(-v), -np.log(rest))
    derivative = np.where(is_lower, -(2.0**-32) / (1 - v), 1 / looked_up) / exponential
    return -np.log(exponential), derivative


def build_table() -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Returns the bits of float32 values: the lines' heights in the segments' middles, and their slopes.

    A slope's unit is one float32 number, so that the distance from the middle is an integer.
    """
    size = 1 << SEGMENT_BITS
    bits = (np.arange(_SEGMENTS, dtype=np.int64) + FIRST_SEGMENT) * size
    low, high = ((bits + end).astype(np.int32).view(np.float32).astype(np.float64) for end in (0, size))
    # No number above 2**31 and below 2**32 is looked up.
    unused = (low > 2.0**31) & (low < 2.0**32)
    low, high = np.where(unused, 1.0, low), np.where(unused, 2.0, high)
    (left, _), (middle, derivative), (right, _) = (exact_gumbel(x) for x in (low, (low + high) / 2, high))
    fraction, exponent = np.frexp(derivative * (high - low) / size)
    slopes = np.ldexp(np.round(fraction * 2**_SLOPE_BITS), exponent - _SLOPE_BITS)
    # The line lies halfway between the chord and the tangent.
    middles = np.round(((left + 2 * middle + right) / 4 + _OFFSET) / _GRID) * _GRID
    return middles.astype(np.float32).view(np.int32), slopes.astype(np.float32).view(np.int32)


MIDDLE_BITS, SLOPE_BITS = build_table()


def gumbels(seed: ArrayLike, request: ArrayLike, positions: ArrayLike, size: int) -> NDArray[np.float32]:
    """Returns the Gumbel numbers of all tokens, as `models.decoding.race.gumbels` does.

    Args:
      seed: int32 `[2]`, any bits; `models.decoding.numpy_ops.seed_words` makes it.
      request: int32 `[...]`, number that identifies the request.
      positions: int32 `[...]`, number of tokens before the one that is drawn; broadcasts with request.
      size: number of tokens V, > 0. A token's number does not depend on it.

    Returns:
      float32 `[..., V]`.
    """
    request, positions = np.broadcast_arrays(np.asarray(request), np.asarray(positions))
    calls = -(-size // (2 * HALF_BLOCK)) * HALF_BLOCK
    noise = np.empty((request.size, calls // HALF_BLOCK, 2, HALF_BLOCK), np.float32)
    rows_at_once, calls_at_once = max(_CHUNK // calls, 1), min(_CHUNK, calls)
    for row in range(0, request.size, rows_at_once):
        rows = slice(row, row + rows_at_once)
        keys = request.reshape(-1, 1)[rows], positions.reshape(-1, 1)[rows]
        for call in range(0, calls, calls_at_once):
            pairs = np.arange(call, min(call + calls_at_once, calls))
            first, second = random_words(seed, Stream.RACE, *keys, pairs)
            blocks = slice(call // HALF_BLOCK, (call + len(pairs)) // HALF_BLOCK)
            shape = (len(first), -1, HALF_BLOCK)
            noise[rows, blocks, 0] = from_words((first, second)).reshape(shape)
            noise[rows, blocks, 1] = from_words((second, first)).reshape(shape)
    return noise.reshape(*request.shape, -1)[..., :size]


def gumbels_of(seed: ArrayLike, request: ArrayLike, positions: ArrayLike, tokens: ArrayLike) -> NDArray[np.float32]:
    """Returns the Gumbel numbers of some tokens, as `models.decoding.race.gumbels_of` does.

    Args:
      seed: int32 `[2]`, any bits.
      request: int32, number that identifies the request; broadcasts with positions and tokens.
      positions: int32, number of tokens before the one that is drawn.
      tokens: int32, token ids >= 0.

    Returns:
      float32 of the common shape of request, positions and tokens.
    """
    tokens = np.asarray(tokens, np.int32)
    half, block = tokens // HALF_BLOCK, tokens // (2 * HALF_BLOCK)
    call = block * HALF_BLOCK + tokens - half * HALF_BLOCK
    first, second = random_words(seed, Stream.RACE, request, positions, call)
    is_second = half - 2 * block == 1
    return from_words((np.where(is_second, second, first), np.where(is_second, first, second)))


def from_words(words: Words) -> NDArray[np.float32]:
    """Returns the Gumbel numbers of tokens from their own words and their partners', two int32 arrays of one shape."""
    own, partner = (word.astype(np.float32) for word in words)
    z = own + np.abs(partner) * np.float32(2.0**-32)
    looked_up = np.maximum(np.maximum(z, z * np.float32(-UPPER_SCALE)), np.float32(LOWEST_LOOKED_UP))
    bits = looked_up.view(np.int32)
    segment = bits >> SEGMENT_BITS
    distance = (bits - segment * (1 << SEGMENT_BITS) - (1 << (SEGMENT_BITS - 1))).astype(np.float32)
    segment = segment - FIRST_SEGMENT
    return MIDDLE_BITS[segment].view(np.float32) + SLOPE_BITS[segment].view(np.float32) * distance


def race(processed: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.int32]:
    """Draws the same tokens as `models.decoding.race.race`, in NumPy."""
    return np.argmax(np.asarray(processed, np.float32) + noise, axis=-1).astype(np.int32)
