"""Couples the draws of two parties with few messages, so that they agree nearly as often as possible.

Daliri et al. 2024 (https://arxiv.org/abs/2408.07978v1) state that O(log(n / error)) bits suffice for an agreement of
1 - TV - error. The protocol here is fedspeak's own construction with that cost.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.decoding.couplings import Probabilities, draw

_LARGEST_GRID = 1 << 40


class Exchange(NamedTuple):
    """Holds the outcomes of `exchange`, each int64 `[draws]`.

    Attributes:
      alice: Alice's tokens.
      bob: Bob's tokens.
      bits: number of bits that the two sent each other for each pair of tokens.
    """

    alice: NDArray[np.int64]
    bob: NDArray[np.int64]
    bits: NDArray[np.int64]


class Messages(NamedTuple):
    """Holds the lengths of the messages of `exchange` in bits.

    The parties know n and error, so that they know these lengths: no separators are sent.

    Attributes:
      token: length of a token.
      probability: length of a rounded probability.
      whole: length of the whole rounded distribution.
    """

    token: int
    probability: int
    whole: int

    @classmethod
    def of(cls, size: int, grid: int) -> "Messages":
        """Returns the lengths for `size` tokens and probabilities that are multiples of 1 / `grid`."""
        probability = grid.bit_length()
        # Either every probability by itself, or one sign for each unit of the grid and each border between tokens.
        return cls((size - 1).bit_length(), probability, min(size * probability, grid + size - 1))


def exchange(
    p: Probabilities,
    q: Probabilities,
    error: float,
    generator: np.random.Generator,
    draws: int,
    max_exchanges: int | None = None,
) -> Exchange:
    """Lets the parties agree with probability at least 1 - TV - error, for O(log(n / error)) bits on average.

    Both tokens have exactly their own party's distribution. Alice rounds P to multiples of 1/N, N = ceil(n / error).
    She draws a token from P and, coupled with it, one from the rounded P. She sends the latter with its rounded
    probability. Bob keeps it with probability min(1, Q / rounded P), and answers with one bit whether he does. If not,
    he draws a token from Q and sends it, and Alice answers with its rounded probability. He keeps it with probability
    max(0, 1 - rounded P / Q), answers with one bit, and so on. After `max_exchanges` rounds without success Alice sends
    the whole rounded distribution, and Bob draws from what Q exceeds it by, which has the same distribution as going
    on. There are at most 2 rounds on average. With the default of n rounds, a pair of tokens costs at most about twice
    the bits of the whole distribution, and what is sent after them adds less than one probability's bits to the mean.

    Args:
      p: Alice's distribution, float64 `[n]`.
      q: Bob's distribution, float64 `[n]`.
      error: how much the agreement may fall short of 1 - TV, in (0, 1); n / error is at most 2**40.
      generator: source of both parties' private random numbers.
      draws: number of pairs of tokens, all for the same distributions.
      max_exchanges: number of rounds after which Alice sends everything, >= 1; None: n.

    Raises:
      ValueError: error or max_exchanges is out of range.
    """
    max_exchanges = len(p) if max_exchanges is None else max_exchanges
    rounded, messages = _rounded(p, error, max_exchanges)
    alice = draw(p, generator, draws)
    sent = alice.copy()
    _replace(sent, generator.random(draws) * p[alice] >= rounded[alice], np.maximum(rounded - p, 0), generator)
    bob = sent.copy()
    bits = np.full(draws, messages.token + messages.probability + 1)
    asking = np.flatnonzero(generator.random(draws) * rounded[sent] >= q[sent])
    for _ in range(max_exchanges - 1):
        if not len(asking):
            break
        asked = draw(q, generator, len(asking))
        bits[asking] += messages.token + messages.probability + 1
        keeps = generator.random(len(asking)) * q[asked] < q[asked] - rounded[asked]
        bob[asking[keeps]] = asked[keeps]
        asking = asking[~keeps]
    bits[asking] += messages.whole
    bob[asking] = draw(np.maximum(q - rounded, 0), generator, len(asking))
    return Exchange(alice, bob, bits)


def exchange_agreement(p: Probabilities, q: Probabilities, error: float) -> float:
    """Returns the probability that `exchange` gives both parties the same token."""
    rounded, _ = _rounded(p, error, 1)
    kept = np.minimum(p, rounded) * np.minimum(1, np.divide(q, rounded, out=np.zeros_like(q), where=rounded > 0))
    # Alice's token differs from the one that she sends, Bob refuses that one and draws Alice's after all.
    gained, missing = np.maximum(rounded - p, 0), np.maximum(p - rounded, 0)
    beyond = np.maximum(q - rounded, 0)
    if not (gained.sum() > 0 and beyond.sum() > 0):
        return float(kept.sum())
    refused = np.divide(np.maximum(rounded - q, 0), rounded, out=np.zeros_like(q), where=rounded > 0)
    return float(kept.sum() + gained @ refused / gained.sum() * (missing @ beyond) / beyond.sum())


def expected_bits(p: Probabilities, q: Probabilities, error: float, max_exchanges: int | None = None) -> float:
    """Returns the mean number of bits that `exchange` sends for a pair of tokens."""
    max_exchanges = len(p) if max_exchanges is None else max_exchanges
    rounded, messages = _rounded(p, error, max_exchanges)
    # Bob refuses Alice's token with probability d, and keeps each of his own with probability d.
    d = 0.5 * float(np.abs(rounded - q).sum())
    still_asking = (1 - d) ** (max_exchanges - 1)
    return (2 - still_asking) * (messages.token + messages.probability + 1) + d * still_asking * messages.whole


def round_to_grid(p: Probabilities, grid: int) -> NDArray[np.int64]:
    """Returns p · grid rounded to integers with the sum `grid`: down, and up where the remainders are largest."""
    scaled = p / p.sum() * grid
    counts = np.floor(scaled).astype(np.int64)
    missing = grid - int(counts.sum())
    counts[np.argsort(counts - scaled, kind="stable")[:missing]] += 1
    return counts


def _rounded(p: Probabilities, error: float, max_exchanges: int) -> tuple[Probabilities, Messages]:
    """Returns Alice's rounded distribution and the lengths of the messages."""
    if not 0 < error < 1:
        raise ValueError(f"error = {error!r}: must be above 0 and below 1")
    if not len(p) / error <= _LARGEST_GRID:
        raise ValueError(f"error = {error!r}: must be at least n / 2^40 for n = {len(p)} tokens")
    if not max_exchanges >= 1:
        raise ValueError(f"max_exchanges = {max_exchanges!r}: must be 1 or more")
    grid = int(np.ceil(len(p) / error))
    return round_to_grid(p, grid) / grid, Messages.of(len(p), grid)


def _replace(
    tokens: NDArray[np.int64], where: NDArray[np.bool_], weights: Probabilities, generator: np.random.Generator
) -> None:
    """Draws the tokens at the given places anew; weights that are all 0, which only rounding makes, change nothing."""
    if weights.sum() > 0:
        tokens[where] = draw(weights, generator, int(where.sum()))
