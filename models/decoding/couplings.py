"""Couples the draws of two parties: how often they draw the same token without, or with little, communication.

Alice has a distribution P and Bob a distribution Q over n tokens. Each draws from their own. With a maximal coupling,
which needs both distributions in one place, they agree with probability 1 - TV(P, Q). With public random numbers and no
message the two protocols here agree with probability at least (1 - TV) / (1 + TV), and no protocol does better on all
pairs (Bavarian et al. 2020, The Optimality of Correlated Sampling; Daliri et al. 2024,
https://arxiv.org/abs/2408.07978).

The functions take float64 arrays of probabilities, need NumPy alone, and return exact agreements. The draws are exact
up to the rounding of float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float64]


def total_variation(p: Probabilities, q: Probabilities) -> float:
    """Returns TV(P, Q), half the sum of |P_i - Q_i|, in [0, 1]."""
    return 0.5 * float(np.abs(p - q).sum())


def bound(p: Probabilities, q: Probabilities) -> float:
    """Returns (1 - TV) / (1 + TV), which both protocols reach on every pair, and none exceeds on every pair."""
    variation = total_variation(p, q)
    return (1 - variation) / (1 + variation)


def race(probabilities: Probabilities, exponentials: Probabilities) -> NDArray[np.int64]:
    """Draws tokens by an exponential race (the Gumbel trick): the token with the smallest E_i / P_i.

    Two parties that use the same exponentials agree with probability `race_agreement`.

    Args:
      probabilities: `[..., n]`.
      exponentials: `[..., n]`, standard exponential numbers > 0, shared by the parties.

    Returns:
      int64 `[...]`; a token of probability 0 is never drawn.
    """
    with np.errstate(divide="ignore"):
        return np.argmin(np.where(probabilities > 0, exponentials / probabilities, np.inf), axis=-1)


def race_agreement(p: Probabilities, q: Probabilities) -> float:
    """Returns the probability that two races with the same exponentials draw the same token.

    It is the sum over i of 1 / sum_j max(P_j / P_i, Q_j / Q_i).
    """
    both = np.flatnonzero((p > 0) & (q > 0))
    return float(sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in both))


def darts(probabilities: Probabilities, tokens: NDArray[np.int64], heights: Probabilities) -> NDArray[np.int64]:
    """Draws tokens by weighted MinHash: the token of the first dart (i, v) with v < P_i.

    Two parties that throw the same darts agree with probability `darts_agreement`. A draw needs n darts on average, so
    use `race` where n is large.

    Args:
      probabilities: `[..., n]`.
      tokens: int64 `[..., darts]`, uniform on the tokens, shared by the parties.
      heights: `[..., darts]`, uniform in [0, 1), shared by the parties.

    Returns:
      int64 `[...]`, or -1 where no dart hits: throw more.
    """
    hits = heights < np.take_along_axis(probabilities, tokens, axis=-1)
    first = np.argmax(hits, axis=-1)[..., np.newaxis]
    found = np.take_along_axis(tokens, first, axis=-1)[..., 0]
    return np.where(hits.any(axis=-1), found, -1)


def darts_agreement(p: Probabilities, q: Probabilities) -> float:
    """Returns the probability that two parties with the same darts draw the same token.

    It is the sum over i of min(P_i, Q_i) (1 + |P_i - Q_i|) / (1 + TV): above the Jaccard similarity
    (1 - TV) / (1 + TV), because two different darts may have the same token.
    """
    shared = np.minimum(p, q) * (1 + np.abs(p - q))
    return float(shared.sum() / (1 + total_variation(p, q)))


class Exchange(NamedTuple):
    """Holds the outcome of `exchange`.

    Attributes:
      alice: Alice's token.
      bob: Bob's token.
      bits: number of bits that the two sent each other.
    """

    alice: int
    bob: int
    bits: int


def exchange(p: Probabilities, q: Probabilities, error: float, generator: np.random.Generator) -> Exchange:
    """Lets the parties agree with probability at least 1 - TV - error, for O(log(n / error)) bits on average.

    Both tokens have exactly their own party's distribution. Alice rounds P to multiples of 1/N, N = ceil(n / error).
    She draws a token from P and, coupled with it, one from the rounded P, and sends the latter with its rounded
    probability. Bob keeps it with probability min(1, Q / rounded P). Otherwise he draws tokens from Q, and asks for
    their rounded probabilities, until he keeps one with probability max(0, 1 - rounded P / Q). The expected number of
    exchanges is at most 2.

    Args:
      p: Alice's distribution, float64 `[n]`.
      q: Bob's distribution, float64 `[n]`.
      error: how much the agreement may fall short of 1 - TV, in (0, 1).
      generator: source of both parties' private random numbers.
    """
    if not 0 < error < 1:
        raise ValueError(f"error = {error!r}: must be above 0 and below 1")
    grid = int(np.ceil(len(p) / error))
    counts = round_to_grid(p, grid)
    rounded = counts / grid
    token_bits, count_bits = int(np.ceil(np.log2(len(p)))), int(np.ceil(np.log2(grid + 1)))
    alice = _draw(p, generator)
    sent = alice if generator.random() * p[alice] < rounded[alice] else _draw(np.maximum(rounded - p, 0), generator)
    bits = token_bits + count_bits
    if generator.random() * rounded[sent] < q[sent]:
        return Exchange(alice, sent, bits)
    while True:
        asked = _draw(q, generator)
        bits += token_bits + count_bits
        if generator.random() * q[asked] < q[asked] - rounded[asked]:
            return Exchange(alice, asked, bits)


def round_to_grid(p: Probabilities, grid: int) -> NDArray[np.int64]:
    """Returns p · grid rounded to integers with the sum `grid`: down, and up where the remainders are largest."""
    scaled = p / p.sum() * grid
    counts = np.floor(scaled).astype(np.int64)
    missing = grid - int(counts.sum())
    counts[np.argsort(counts - scaled, kind="stable")[:missing]] += 1
    return counts


def _draw(weights: Probabilities, generator: np.random.Generator) -> int:
    sums = np.cumsum(weights)
    return int(min(np.searchsorted(sums, generator.random() * sums[-1], side="right"), np.flatnonzero(weights)[-1]))
