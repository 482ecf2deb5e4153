"""Exact noise on the integers: no floating-point number decides what is drawn, so no low-order bit can give it away
(Mironov 2012, "On significance of the least significant bits for differential privacy").

Everything comes from coins that are exact: a fraction's, and that of exp(-fraction) (Canonne, Kamath and Steinke 2020,
"The discrete Gaussian for differential privacy", arXiv:2004.00010, algorithms 1 to 3). Draws are vectorised: an array
of n noises costs a few passes of NumPy over n. Timing of single draws is not hidden.
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
"""Of noise in grid steps: its tails then stay below 2^63 but with probability exp(-127)."""

EXPONENT_BITS = 40
"""Of ε: it is taken as a multiple of 2^-40, rounded down."""


def uniform(source: Randomness, bound: Any, size: int) -> Ints:
    """Whole numbers from 0 to below `bound` (an int or int64 [size], 1 to 2^62), each equally likely. int64 [size]."""
    # The smallest number of bits that holds the bound, and another draw where they exceed it.
    if isinstance(bound, int):
        mask: Any = (1 << (bound - 1).bit_length()) - 1
    else:
        mask = bound - 1
        for shift in (1, 2, 4, 8, 16, 32):
            mask = mask | (mask >> shift)
    found = source.words(size).view(np.int64) & mask
    left = np.flatnonzero(found >= bound)
    if len(left):
        found[left] = uniform(source, _at(bound, left), len(left))
    return found


def _at(value: Any, index: Ints) -> Any:
    return value if isinstance(value, int) else value[index]


def bernoulli(source: Randomness, numerator: Any, denominator: Any, size: int) -> Bools:
    """True with probability numerator / denominator (ints or int64 [size], up to 2^62). bool [size]."""
    return uniform(source, denominator, size) < numerator


def bernoulli_exp(source: Randomness, numerator: Any, denominator: Any, size: int) -> Bools:
    """True with probability exp(-numerator / denominator), for a fraction from 0 to 1. bool [size]."""
    return _bernoulli_exp_of_product(source, ((numerator, denominator),), size)


def _bernoulli_exp_of_product(source: Randomness, fractions: tuple[tuple[Any, Any], ...], size: int) -> Bools:
    """exp(-x) where x is the product of fractions from 0 to 1, so that no product must fit 64 bits.

    The number of coins x/1, x/2, x/3, ... until one fails is odd with probability exp(-x).
    """
    found = np.zeros(size, bool)
    left = np.arange(size)
    step = 1
    while len(left):
        won = bernoulli(source, 1, step, len(left))
        for numerator, denominator in fractions:
            won &= bernoulli(source, _at(numerator, left), _at(denominator, left), len(left))
        found[left[~won]] = step % 2 == 1
        left = left[won]
        step += 1
    return found


def _all_of(source: Randomness, repeats: Ints, coin: Any) -> Bools:
    """Whether the coin `coin(indices)` comes up `repeats` times in a row, for each index. bool [size]."""
    left = np.flatnonzero(repeats > 0)
    found = np.ones(len(repeats), bool)
    done = 0
    while len(left):
        won = coin(left)
        found[left[~won]] = False
        done += 1
        left = left[won]
        left = left[repeats[left] > done]
    return found


def geometric(source: Randomness, epsilon: int, size: int) -> Ints:
    """Numbers from 0 with P(v) proportional to exp(-v ε), ε = epsilon / 2^EXPONENT_BITS > 0. int64 [size]."""
    block = 2**EXPONENT_BITS // epsilon
    if block > 1:
        # Small ε: v = u + block w, with u below `block` by rejection, so that there are few turns.
        def propose(count: int) -> tuple[Ints, Bools]:
            low = uniform(source, block, count)
            kept = bernoulli_exp(source, low * epsilon, 2**EXPONENT_BITS, count)
            return low + block * geometric(source, block * epsilon, count), kept

        return _accepted(propose, size)
    whole, part = divmod(epsilon, 2**EXPONENT_BITS)
    found = np.zeros(size, np.int64)
    left = np.arange(size)
    while len(left):
        won = bernoulli_exp(source, part, 2**EXPONENT_BITS, len(left))
        won &= _all_of(source, np.where(won, whole, 0), lambda index: bernoulli_exp(source, 1, 1, len(index)))
        left = left[won]
        found[left] += 1
    return found


def laplace(source: Randomness, scale: int, size: int) -> Ints:
    """Discrete Laplace noise, P(x) proportional to exp(-|x| / scale). int64 [size].

    A sum of integers that one record changes by at most Δ is (Δ / scale)-DP with it (arXiv:2004.00010, section 5).

    Raises:
      ValueError: `scale` is not a whole number from 1 to 2^56.
    """
    scale = _checked_scale(scale)

    def propose(count: int) -> tuple[Ints, Bools]:
        low = uniform(source, scale, count)
        drawn = low + scale * geometric(source, 2**EXPONENT_BITS, count)
        negative = _coin(source, count)
        # exp(-low / scale) by rejection; and there is one zero only.
        kept = bernoulli_exp(source, low, scale, count) & ~(negative & (drawn == 0))
        return np.where(negative, -drawn, drawn), kept

    return _accepted(propose, size)


def gaussian(source: Randomness, stddev: int, size: int) -> Ints:
    """Discrete Gaussian noise, P(x) proportional to exp(-x² / (2 stddev²)). int64 [size].

    Sums of integers whose vector one record changes by at most Δ in L2 norm are (Δ² / (2 stddev²))-zCDP with it
    (arXiv:2004.00010, theorem 4).

    Raises:
      ValueError: `stddev` is not a whole number from 1 to 2^56.
    """
    stddev = _checked_scale(stddev)

    def propose(count: int) -> tuple[Ints, Bools]:
        drawn = laplace(source, stddev, count)
        return drawn, _bernoulli_exp_of_square(source, np.abs(np.abs(drawn) - stddev), stddev)

    return _accepted(propose, size)


def _bernoulli_exp_of_square(source: Randomness, distance: Ints, stddev: int) -> Bools:
    """True with probability exp(-(distance / stddev)² / 2): with distance = a stddev + r, by the three terms of a
    binomial, so that no square must fit 64 bits.
    """
    whole, rest = np.divmod(distance, stddev)
    rest_of = lambda index: rest[index]  # noqa: E731
    won = _all_of(source, whole * whole, lambda index: bernoulli_exp(source, 1, 2, len(index)))
    won &= _all_of(
        source, np.where(won, whole, 0), lambda index: bernoulli_exp(source, rest_of(index), stddev, len(index))
    )
    last = np.flatnonzero(won)
    third = ((1, 2), (rest[last], stddev), (rest[last], stddev))
    won[last] = _bernoulli_exp_of_product(source, third, len(last))
    return won


def staircase(source: Randomness, epsilon: int, sensitivity: int, core: int, size: int) -> Ints:
    """Staircase noise: exp(-level ε), where |x| <= core is level 0 and each further level has `sensitivity` steps on
    either side (Geng and Viswanath, arXiv:1212.1186). int64 [size].

    A sum of integers that one record changes by at most `sensitivity` is ε-DP with it: no move of that length passes
    more than one level.

    Args:
      source: of randomness.
      epsilon: ε in units of 2^-EXPONENT_BITS, at least 1.
      sensitivity: largest change, in grid steps.
      core: half width of level 0, in grid steps, from 0 to `sensitivity`.
      size: numbers to draw.
    """

    def places(level: Any) -> Ints:
        return np.where(level == 0, 2 * core + 1, 2 * sensitivity)

    level = _levels(source, epsilon, 1, places, 2 * sensitivity, size)
    place = uniform(source, places(level), size)
    # Level 0: -core to core. Later ones: `sensitivity` places on the right, then as many on the left.
    away = core + 1 + (level - 1) * sensitivity + place % sensitivity
    beyond = np.where(place < sensitivity, away, -away)
    return np.where(level == 0, place - core, beyond)


def hourglass(source: Randomness, epsilon: int, sensitivity: int, core: int, size: int) -> Ints:
    """Pairs of hourglass noise: for two sums that one record moves by (x, sensitivity - x), 0 <= x <= sensitivity.
    int64 [2, size].

    The two add up to a multiple k of the sensitivity Δ; on that line the probability is proportional to exp(-L ε) with
    L the least t >= |k| of k's parity for which z₁ lies within t Δ/2 + core of k Δ/2. One record changes L by at most 1
    (Kulesza, Suresh and Wang 2024, "Mean estimation in the add-remove model of differential privacy", arXiv:2312.06658;
    on the grid by enumeration in tests/privacy/noise/test_exact.py), and either noise alone is a staircase.

    Args:
      source: of randomness.
      epsilon: ε in units of 2^-EXPONENT_BITS, at least 1.
      sensitivity: Δ in grid steps, from 1 to 2^32 (levels up to 2^28, for ε from 2^-20, then fit 64 bits).
      core: in grid steps, from 0 to `sensitivity`.
      size: pairs to draw.
    """
    later = 4 * core + 2 - 2 * sensitivity

    def places(level: Any) -> Ints:
        return np.where(level == 0, 2 * core + 1, 4 * sensitivity * level + later)

    most = 4 * sensitivity + max(0, later - 4 * sensitivity)
    level = _levels(source, epsilon, 2, places, most, size)
    return _place_in_level(level, uniform(source, places(level), size), sensitivity, core)


def _levels(source: Randomness, epsilon: int, order: int, places: Any, most: int, size: int) -> Ints:
    """Levels t with probability proportional to places(t) exp(-t ε), int64 [size].

    A sum of `order` (1 or 2) geometric numbers is t with weight w(t) = 1 or t + 1, times the exponential; of it
    places(t) / (most w(t)) are kept, for `most` an upper bound of places(t) / w(t) from level 1 on. Where ε is large
    and level 0 small, few would be: there exp(-t ε) is made of exp(-t ε') and m t fair coins, ε = ε' + m log 2, and all
    but the m coins of level 0 are spared.
    """
    fair, slower = _split(epsilon, order, int(places(0)), most)
    least = max(int(places(0)) << fair, most)

    def propose(count: int) -> tuple[Ints, Bools]:
        level = sum((geometric(source, slower, count) for _ in range(order)), np.zeros(count, np.int64))
        weight = level + 1 if order == 2 else np.ones_like(level)
        kept = bernoulli(source, np.where(level == 0, places(0) << fair, places(level)), least * weight, count)
        return level, kept & _all_of(source, np.where(kept, fair * (level - 1), 0), lambda at: _coin(source, len(at)))

    return _accepted(propose, size)


def _split(epsilon: int, order: int, first: int, most: int) -> tuple[int, int]:
    """The (m, ε') at which `_levels` proposes least: ε' + m log 2 is ε, but for 2^-EXPONENT_BITS less."""
    best, found = math.inf, (0, epsilon)
    for fair in range(16):
        slower = epsilon if fair == 0 else math.floor(epsilon - fair * math.log(2) * 2**EXPONENT_BITS) - 1
        if slower <= 0:
            break
        proposals = max(first, most / 2**fair) / (1 - math.exp(-slower / 2**EXPONENT_BITS)) ** order
        if proposals < best:
            best, found = proposals, (fair, slower)
    return found


def _coin(source: Randomness, size: int) -> Bools:
    return (source.words(size) & np.uint64(1)).astype(bool)


def _accepted(propose: Any, size: int) -> Ints:
    """The first `size` accepted proposals of `propose(count) -> (values, kept)`."""
    found = np.zeros(size, np.int64)
    have = 0
    while have < size:
        # Some more than are left: a further turn costs more than a few proposals too many.
        values, kept = propose(size - have + (size - have) // 4 + 4)
        values = values[kept][: size - have]
        found[have : have + len(values)] = values
        have += len(values)
    return found


def _place_in_level(level: Ints, place: Ints, sensitivity: int, core: int) -> Ints:
    """The pair with number `place` of a level, int64 [2, n]: first those on the lines |k| = level, then the others."""
    row = level * sensitivity + 2 * core + 1  # on one of the two lines k = level and k = -level
    outer = (level == 0) | (place < 2 * row)
    # Lines k = ±level: z₁ from min(0, k Δ) - core to max(0, k Δ) + core.
    sign = np.where(place < row, 1, -1)
    outer_k = sign * level
    outer_first = np.minimum(0, outer_k * sensitivity) - core + np.where(place < row, place, place - row)
    # The others, k = -level + 2, ..., level - 2: the Δ places beyond either end of the level before.
    rest = np.where(outer, 0, place - 2 * row)
    line, within = np.divmod(rest, 2 * sensitivity)
    inner_k = 2 * (line + 1) - level
    half = (level * sensitivity + 2 * core) - 2 * sensitivity  # twice the half width of level t - 2 on the line
    right = (inner_k * sensitivity + half) // 2 + 1 + within % sensitivity
    mirrored = inner_k * sensitivity - right
    inner_first = np.where(within < sensitivity, right, mirrored)
    k = np.where(outer, outer_k, inner_k)
    first = np.where(outer, outer_first, inner_first)
    return np.stack([first, k * sensitivity - first])


def _checked_scale(scale: int) -> int:
    scale = checks.whole("noise scale", scale, 1, "take a finer grid")
    if scale > LARGEST_SCALE:
        raise ValueError(f"noise scale {scale} is above 2^56 grid steps: take a coarser grid, or a larger epsilon")
    return scale
