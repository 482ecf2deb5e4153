"""Draws exact noise on the integers.

Every random decision compares integers, never floating-point numbers, so the low-order bits of the noise leak nothing
about the data (Mironov 2012, "On significance of the least significant bits for differential privacy").

All samplers are built from two exact coins, which show heads with probability p and exp(-p) for a fraction p (Canonne,
Kamath and Steinke 2020, "The discrete Gaussian for differential privacy", arXiv:2004.00010, algorithms 1 to 3). Draws
are vectorised: n values take a few passes of NumPy over arrays of about n numbers. The time that a draw takes depends
on the values drawn, so it can leak them to an attacker who measures it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.noise.randomness import Randomness

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LARGEST_SCALE = 2**56
"""Largest scale or standard deviation, in grid steps: magnitudes of 2^63 and more then have a probability below
exp(-127)."""

EXPONENT_BITS = 40
"""Resolution of ε, in bits after the binary point: ε is rounded down to a multiple of 2^-EXPONENT_BITS."""


def uniform(source: Randomness, bound: Any, size: int) -> Ints:
    """Draws uniform integers from 0 to `bound` - 1.

    Args:
      source: source of random bits.
      bound: an int or int64 [size], from 1 to 2^62.
      size: number of values.

    Returns:
      int64 [size].
    """
    # Rejection sampling: draw as many bits as `bound` - 1 has, and draw again where they give `bound` or more.
    if isinstance(bound, int):
        mask: Any = (1 << (bound - 1).bit_length()) - 1
    else:
        mask = bound - 1
        for shift in (1, 2, 4, 8, 16, 32):
            mask = mask | (mask >> shift)
    values = source.words(size).view(np.int64) & mask
    rejected = np.flatnonzero(values >= bound)
    if len(rejected):
        values[rejected] = uniform(source, _select(bound, rejected), len(rejected))
    return values


def _select(value: Any, index: Ints) -> Any:
    return value if isinstance(value, int) else value[index]


def bernoulli(source: Randomness, numerator: Any, denominator: Any, size: int) -> Bools:
    """Draws booleans [size], True with probability numerator / denominator (ints or int64 [size], at most 2^62)."""
    return uniform(source, denominator, size) < numerator


def bernoulli_exp(source: Randomness, numerator: Any, denominator: Any, size: int) -> Bools:
    """Draws booleans [size], True with probability exp(-numerator / denominator), for fractions in [0, 1]."""
    return _bernoulli_exp_of_product(source, ((numerator, denominator),), size)


def _bernoulli_exp_of_product(source: Randomness, fractions: tuple[tuple[Any, Any], ...], size: int) -> Bools:
    """Draws booleans [size], True with probability exp(-x), where x is the product of `fractions`, each in [0, 1].

    Coins that show heads with probability x/1, x/2, x/3, ... are tossed until one shows tails. The number of tosses is
    odd with probability exp(-x). Each factor of x gets a coin of its own, so that no product has to fit 64 bits.
    """
    odd = np.zeros(size, bool)
    pending = np.arange(size)
    step = 1
    while len(pending):
        heads = bernoulli(source, 1, step, len(pending))
        for numerator, denominator in fractions:
            heads &= bernoulli(source, _select(numerator, pending), _select(denominator, pending), len(pending))
        odd[pending[~heads]] = step % 2 == 1
        pending = pending[heads]
        step += 1
    return odd


def _all_heads(source: Randomness, repeats: Ints, toss: Any) -> Bools:
    """Returns bool [size]: for each index i, whether `repeats[i]` tosses in a row show heads.

    `toss(indices)` tosses one coin for each of the indices.
    """
    pending = np.flatnonzero(repeats > 0)
    results = np.ones(len(repeats), bool)
    tossed = 0
    while len(pending):
        heads = toss(pending)
        results[pending[~heads]] = False
        tossed += 1
        pending = pending[heads]
        pending = pending[repeats[pending] > tossed]
    return results


def geometric(source: Randomness, epsilon: int, size: int) -> Ints:
    """Draws geometric numbers v >= 0, P(v) proportional to exp(-v ε).

    Args:
      source: source of random bits.
      epsilon: ε in units of 2^-EXPONENT_BITS, at least 1.
      size: number of values.

    Returns:
      int64 [size].
    """
    block = 2**EXPONENT_BITS // epsilon
    if block > 1:
        # At small ε the loop below would run about 1 / ε times. So v is drawn as u + block * w, where u < `block` comes
        # from rejection sampling and w is geometric with block * ε.
        def propose(count: int) -> tuple[Ints, Bools]:
            low = uniform(source, block, count)
            accepted = bernoulli_exp(source, low * epsilon, 2**EXPONENT_BITS, count)
            return low + block * geometric(source, block * epsilon, count), accepted

        return _accept(propose, size)
    whole, part = divmod(epsilon, 2**EXPONENT_BITS)
    values = np.zeros(size, np.int64)
    pending = np.arange(size)
    while len(pending):
        heads = bernoulli_exp(source, part, 2**EXPONENT_BITS, len(pending))
        heads &= _all_heads(source, np.where(heads, whole, 0), lambda index: bernoulli_exp(source, 1, 1, len(index)))
        pending = pending[heads]
        values[pending] += 1
    return values


def laplace(source: Randomness, scale: int, size: int) -> Ints:
    """Draws discrete Laplace noise, P(x) proportional to exp(-|x| / scale).

    With this noise, an integer sum that one record changes by at most Δ is (Δ / scale)-DP (arXiv:2004.00010, section
    5).

    Args:
      source: source of random bits.
      scale: in grid steps, an integer from 1 to 2^56.
      size: number of values.

    Returns:
      int64 [size].

    Raises:
      ValueError: `scale` is out of range.
    """
    scale = _check_scale(scale)

    def propose(count: int) -> tuple[Ints, Bools]:
        low = uniform(source, scale, count)
        magnitude = low + scale * geometric(source, 2**EXPONENT_BITS, count)
        negative = _toss(source, count)
        # `low` is accepted with probability exp(-low / scale), and zero counts once, not as +0 and as -0.
        accepted = bernoulli_exp(source, low, scale, count) & ~(negative & (magnitude == 0))
        return np.where(negative, -magnitude, magnitude), accepted

    return _accept(propose, size)


def gaussian(source: Randomness, stddev: int, size: int) -> Ints:
    """Draws discrete Gaussian noise, P(x) proportional to exp(-x² / (2 stddev²)).

    With this noise, a vector of integer sums that one record changes by at most Δ in L2 norm is (Δ² / (2 stddev²))-zCDP
    (arXiv:2004.00010, theorem 4).

    Args:
      source: source of random bits.
      stddev: in grid steps, an integer from 1 to 2^56.
      size: number of values.

    Returns:
      int64 [size].

    Raises:
      ValueError: `stddev` is out of range.
    """
    stddev = _check_scale(stddev)

    def propose(count: int) -> tuple[Ints, Bools]:
        values = laplace(source, stddev, count)
        return values, _bernoulli_exp_of_square(source, np.abs(np.abs(values) - stddev), stddev)

    return _accept(propose, size)


def _bernoulli_exp_of_square(source: Randomness, distance: Ints, stddev: int) -> Bools:
    """Draws booleans [n], True with probability exp(-(distance / stddev)² / 2).

    With distance = a stddev + r the exponent is a² / 2 + a r / stddev + (r / stddev)² / 2. Each of the three terms gets
    coins of its own, so that no square has to fit 64 bits.
    """
    whole, rest = np.divmod(distance, stddev)
    heads = _all_heads(source, whole * whole, lambda index: bernoulli_exp(source, 1, 2, len(index)))
    heads &= _all_heads(
        source, np.where(heads, whole, 0), lambda index: bernoulli_exp(source, rest[index], stddev, len(index))
    )
    pending = np.flatnonzero(heads)
    last_term = ((1, 2), (rest[pending], stddev), (rest[pending], stddev))
    heads[pending] = _bernoulli_exp_of_product(source, last_term, len(pending))
    return heads


def staircase(source: Randomness, epsilon: int, sensitivity: int, core: int, size: int) -> Ints:
    """Draws staircase noise, P(x) proportional to exp(-level(x) ε).

    Level 0 is |x| <= core; each further level holds the next `sensitivity` integers on either side (Geng and Viswanath,
    arXiv:1212.1186). A shift by at most `sensitivity` changes the level by at most 1, so an integer sum that one record
    changes by at most `sensitivity` is ε-DP with this noise.

    Args:
      source: source of random bits.
      epsilon: ε in units of 2^-EXPONENT_BITS, at least 1.
      sensitivity: largest change by one record, in grid steps.
      core: half the width of level 0, in grid steps, from 0 to `sensitivity`.
      size: number of values.

    Returns:
      int64 [size].
    """

    def places(level: Any) -> Ints:
        return np.where(level == 0, 2 * core + 1, 2 * sensitivity)

    level = _draw_levels(source, epsilon, 1, places, 2 * sensitivity, size)
    place = uniform(source, places(level), size)
    # Level 0 runs from -core to core. Later levels have `sensitivity` places on the right, then as many on the left.
    magnitude = core + 1 + (level - 1) * sensitivity + place % sensitivity
    outside = np.where(place < sensitivity, magnitude, -magnitude)
    return np.where(level == 0, place - core, outside)


def hourglass(source: Randomness, epsilon: int, sensitivity: int, core: int, size: int) -> Ints:
    """Draws pairs of hourglass noise, for two sums that one record moves by (x, Δ - x), 0 <= x <= Δ = sensitivity.

    The two numbers of a pair (z₁, z₂) add up to k Δ for an integer k. The pair's probability is proportional to
    exp(-L ε), where its level L is the least t >= |k| with t - k even and |z₁ - k Δ/2| <= t Δ/2 + core. One record
    changes L by at most 1, so the pair of sums is ε-DP (Kulesza, Suresh and Wang 2024, "Mean estimation in the
    add-remove model of differential privacy", arXiv:2312.06658; checked by enumeration of small grids in
    tests/privacy/noise/test_exact.py). Either number alone has the distribution of staircase noise.

    Args:
      source: source of random bits.
      epsilon: ε in units of 2^-EXPONENT_BITS, at least 1.
      sensitivity: Δ in grid steps, from 1 to 2^32. The number of pairs of a level then fits 64 bits up to level 2^28,
        which is enough for ε from 2^-20.
      core: half the width of level 0, in grid steps, from 0 to `sensitivity`.
      size: number of pairs.

    Returns:
      int64 [2, size].
    """
    offset = 4 * core + 2 - 2 * sensitivity

    def places(level: Any) -> Ints:
        return np.where(level == 0, 2 * core + 1, 4 * sensitivity * level + offset)

    bound = 4 * sensitivity + max(0, offset - 4 * sensitivity)
    level = _draw_levels(source, epsilon, 2, places, bound, size)
    return _place_in_level(level, uniform(source, places(level), size), sensitivity, core)


def _draw_levels(source: Randomness, epsilon: int, order: int, places: Any, bound: int, size: int) -> Ints:
    """Draws levels t with probability proportional to places(t) exp(-t ε), int64 [size].

    The levels are drawn by rejection. The sum of `order` geometric numbers is t with probability proportional to
    w(t) exp(-t ε), where w(t) is 1 for one number and t + 1 for two. The sum is accepted with probability
    places(t) / (bound w(t)). `bound` is at least places(t) / w(t) for every t >= 1.

    Where ε is large and level 0 has few places, that would reject most proposals. Then exp(-t ε) is split into
    exp(-t ε') and the probability that m t fair coins all show heads, with ε = ε' + m log 2. Only ratios of weights
    matter, so all are multiplied by 2^m: level 0 is accepted 2^m times as often, and a level t >= 1 needs heads from
    m (t - 1) coins.
    """
    fair_coins, slower = _split(epsilon, order, int(places(0)), bound)
    denominator = max(int(places(0)) << fair_coins, bound)

    def propose(count: int) -> tuple[Ints, Bools]:
        level = sum((geometric(source, slower, count) for _ in range(order)), np.zeros(count, np.int64))
        weight = level + 1 if order == 2 else np.ones_like(level)
        numerator = np.where(level == 0, places(0) << fair_coins, places(level))
        accepted = bernoulli(source, numerator, denominator * weight, count)
        coins = np.where(accepted, fair_coins * (level - 1), 0)
        return level, accepted & _all_heads(source, coins, lambda index: _toss(source, len(index)))

    return _accept(propose, size)


def _split(epsilon: int, order: int, first: int, bound: int) -> tuple[int, int]:
    """Returns the (m, ε') for which `_draw_levels` needs the fewest proposals, with `first` = places(0).

    ε' + m log 2 is ε, less at most two units of 2^-EXPONENT_BITS.
    """
    fewest, best = math.inf, (0, epsilon)
    for fair_coins in range(16):
        slower = epsilon if fair_coins == 0 else math.floor(epsilon - fair_coins * math.log(2) * 2**EXPONENT_BITS) - 1
        if slower <= 0:
            break
        proposals = max(first, bound / 2**fair_coins) / (1 - math.exp(-slower / 2**EXPONENT_BITS)) ** order
        if proposals < fewest:
            fewest, best = proposals, (fair_coins, slower)
    return best


def _toss(source: Randomness, size: int) -> Bools:
    """Tosses fair coins."""
    return (source.words(size) & np.uint64(1)).astype(bool)


def _accept(propose: Any, size: int) -> Ints:
    """Returns the first `size` accepted proposals of `propose(count) -> (values, accepted)`."""
    results = np.zeros(size, np.int64)
    done = 0
    while done < size:
        # Ask for more proposals than are still needed, since another pass takes longer than a few unused proposals.
        values, accepted = propose(size - done + (size - done) // 4 + 4)
        values = values[accepted][: size - done]
        results[done : done + len(values)] = values
        done += len(values)
    return results


def _place_in_level(level: Ints, place: Ints, sensitivity: int, core: int) -> Ints:
    """Returns, int64 [2, n], the pair with number `place` in each level.

    Line k holds the pairs with z₁ + z₂ = k Δ. The pairs on the lines k = ±level are numbered first.
    """
    row = level * sensitivity + 2 * core + 1  # pairs on either of the lines k = level and k = -level
    outer = (level == 0) | (place < 2 * row)
    # Lines k = ±level: z₁ runs from min(0, k Δ) - core to max(0, k Δ) + core.
    sign = np.where(place < row, 1, -1)
    outer_k = sign * level
    outer_first = np.minimum(0, outer_k * sensitivity) - core + np.where(place < row, place, place - row)
    # On the lines k = -level + 2, ..., level - 2, a level adds Δ pairs at either end of those of level - 2.
    rest = np.where(outer, 0, place - 2 * row)
    line, within = np.divmod(rest, 2 * sensitivity)
    inner_k = 2 * (line + 1) - level
    half = (level * sensitivity + 2 * core) - 2 * sensitivity  # width of level - 2 on the line
    right = (inner_k * sensitivity + half) // 2 + 1 + within % sensitivity
    mirrored = inner_k * sensitivity - right
    inner_first = np.where(within < sensitivity, right, mirrored)
    k = np.where(outer, outer_k, inner_k)
    first = np.where(outer, outer_first, inner_first)
    return np.stack([first, k * sensitivity - first])


def _check_scale(scale: int) -> int:
    scale = checks.whole("noise scale", scale, 1, "take a finer grid")
    if scale > LARGEST_SCALE:
        raise ValueError(f"noise scale {scale} is above 2^56 grid steps: take a coarser grid, or a larger epsilon")
    return scale
