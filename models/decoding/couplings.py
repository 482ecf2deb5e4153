"""Couples the draws of two parties without communication: how often they draw the same token.

Alice has a distribution P and Bob a distribution Q over n tokens. Each draws from their own. With a maximal coupling,
which needs both distributions in one place, they agree with probability 1 - TV(P, Q). With public random numbers and no
message the protocols here, `race`, `darts` and `consistent_levels`, agree with probability at least
(1 - TV) / (1 + TV), and no protocol does better on all pairs (Bavarian et al. 2020, The Optimality of Correlated
Sampling; Daliri et al. 2024, https://arxiv.org/abs/2408.07978). With few messages `models.decoding.exchange` agrees
nearly as often as the maximal coupling.

The functions take float64 arrays of probabilities and need NumPy alone. The agreements are exact. The draws are exact
up to the rounding of float64 and, where they are keyed, of the words. For language models use the race, on logits and
with keyed noise: `models.decoding.race`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.decoding.numpy_ops import Stream, Words, random_words

Probabilities = NDArray[np.float64]
_AT_ONCE = 16_384  # numbers whose arrays stay in the cache


def total_variation(p: Probabilities, q: Probabilities) -> float:
    """Returns TV(P, Q), half the sum of |P_i - Q_i|, in [0, 1]."""
    return 0.5 * float(np.abs(p - q).sum())


def bound(p: Probabilities, q: Probabilities) -> float:
    """Returns (1 - TV) / (1 + TV), which all protocols here reach on every pair, and none exceeds on every pair."""
    variation = total_variation(p, q)
    return (1 - variation) / (1 + variation)


def maximal(
    p: Probabilities, q: Probabilities, generator: np.random.Generator, draws: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws pairs of tokens that agree as often as possible, with probability 1 - TV(P, Q).

    It needs both distributions, so that it is a reference and no protocol.

    Args:
      p: Alice's distribution, float64 `[n]`.
      q: Bob's distribution, float64 `[n]`.
      generator: source of the random numbers.
      draws: number of pairs.

    Returns:
      Alice's and Bob's tokens, int64 `[draws]`.
    """
    shared = np.minimum(p, q)
    alice = draw(shared, generator, draws)
    bob = alice.copy()
    differ = np.flatnonzero(generator.random(draws) >= 1 - total_variation(p, q))
    if len(differ):
        alice[differ] = draw(np.maximum(p - q, 0), generator, len(differ))
        bob[differ] = draw(np.maximum(q - p, 0), generator, len(differ))
    return alice, bob


def race(probabilities: Probabilities, exponentials: Probabilities) -> NDArray[np.int64]:
    """Draws tokens by an exponential race (the Gumbel trick): the token with the smallest E_i / P_i.

    Two parties that use the same exponentials agree with probability `race_agreement`.

    Args:
      probabilities: `[..., n]`.
      exponentials: `[..., n]`, standard exponential numbers > 0, shared by the parties.

    Returns:
      int64 `[...]`; a token of probability 0 is never drawn.
    """
    with np.errstate(divide="ignore", over="ignore"):
        return np.argmin(np.where(probabilities > 0, exponentials / probabilities, np.inf), axis=-1)


def race_agreement(p: Probabilities, q: Probabilities) -> float:
    """Returns the probability that two races with the same exponentials draw the same token.

    It is the sum over i of 1 / sum_j max(P_j / P_i, Q_j / Q_i), computed in time O(n log n).
    """
    # P_j / P_i is the larger one exactly if P_j / Q_j >= P_i / Q_i, so that the inner sums are running sums by P / Q.
    either = (p > 0) | (q > 0)
    p, q = p[either], q[either]
    with np.errstate(divide="ignore", over="ignore"):
        order = np.argsort(p / q, kind="stable")
    p, q = p[order], q[order]
    p_from_here = np.cumsum(p[::-1])[::-1]
    q_before = np.cumsum(q) - q
    both = (p > 0) & (q > 0)
    with np.errstate(over="ignore"):
        return float(np.sum(1 / (p_from_here[both] / p[both] + q_before[both] / q[both])))


def darts(probabilities: Probabilities, tokens: NDArray[np.int64], heights: Probabilities) -> NDArray[np.int64]:
    """Draws tokens by weighted MinHash: the token of the first dart (i, v) with v < P_i.

    Two parties that throw the same darts agree with probability `darts_agreement`. A draw needs n darts on average;
    `keyed_darts` throws as many as are needed.

    Args:
      probabilities: `[..., n]`.
      tokens: int64 `[..., darts]`, uniform on the tokens, shared by the parties.
      heights: `[..., darts]`, uniform in [0, 1), shared by the parties.

    Returns:
      int64 `[...]`, or -1 where no dart hits: throw more.
    """
    lead = tokens.shape[:-1]
    hits = heights < np.take_along_axis(
        np.broadcast_to(probabilities, (*lead, probabilities.shape[-1])), tokens, axis=-1
    )
    first = np.argmax(hits, axis=-1)[..., np.newaxis]
    found = np.take_along_axis(tokens, first, axis=-1)[..., 0]
    return np.where(hits.any(axis=-1), found, -1)


def keyed_darts(probabilities: Probabilities, seed: ArrayLike, requests: ArrayLike, position: int) -> NDArray[np.int64]:
    """Draws tokens by weighted MinHash with darts that are a function of (seed, request, position).

    Parties that share the seed need not send each other anything, and agree with probability `darts_agreement`. A draw
    takes time O(n) on average. Token and height of a dart are read from one number of 64 bits, so that the probability
    of a token is exact up to n / 2**64 + 2**-53 (absolute).

    Args:
      probabilities: float64 `[n]`, n at most 2**24.
      seed: int32 `[2]`, any bits; `models.decoding.numpy_ops.seed_words` makes it.
      requests: int32 `[draws]`, numbers of the requests. Equal requests get equal tokens.
      position: number of tokens before the one that is drawn.

    Returns:
      int64 `[draws]`.

    Raises:
      ValueError: n is above 2**24.

    Reference: Daliri et al. 2024, https://arxiv.org/abs/2408.07978, weighted MinHash.
    """
    size = len(probabilities)
    if size > 1 << 24:
        raise ValueError(f"{size} tokens: weighted MinHash takes at most 2^24")
    requests = np.asarray(requests, np.int32)
    drawn = np.full(len(requests), -1, np.int64)
    thrown = 0
    while (waiting := np.flatnonzero(drawn < 0)).size:
        # As many darts at a time as a draw needs on average, but no more than fit into the cache.
        numbers = thrown + np.arange(min(max(size, 8), _AT_ONCE))
        rows = max(_AT_ONCE // len(numbers), 1)
        for begin in range(0, len(waiting), rows):
            some = waiting[begin : begin + rows]
            words = random_words(seed, Stream.DARTS, requests[some, np.newaxis], position, numbers)
            drawn[some] = darts(probabilities[np.newaxis], *_tokens_and_heights(words, size))
        thrown += len(numbers)
    return drawn


def darts_agreement(p: Probabilities, q: Probabilities) -> float:
    """Returns the probability that two parties with the same darts draw the same token.

    It is the sum over i of min(P_i, Q_i) (1 + |P_i - Q_i|) / (1 + TV): above the Jaccard similarity
    (1 - TV) / (1 + TV), because two different darts may have the same token.
    """
    shared = np.minimum(p, q) * (1 + np.abs(p - q))
    return float(shared.sum() / (1 + total_variation(p, q)))


def consistent_levels(
    weights: Probabilities, r: Probabilities, c: Probabilities, beta: Probabilities
) -> tuple[Probabilities, Probabilities]:
    """Computes consistent weighted sampling, a form of weighted MinHash: the token with the lowest level is drawn.

    A token is drawn with a probability proportional to its weight. Two parties that use the same numbers draw the same
    token in the same interval with probability sum_i min(P_i, Q_i) / sum_i max(P_i, Q_i), which is (1 - TV) / (1 + TV)
    for distributions. So they draw the same token at least as often.

    Args:
      weights: `[..., n]`, > 0.
      r: `[..., n]`, > 0, with the distribution Gamma(2, 1), shared by the parties.
      c: `[..., n]`, > 0, with the distribution Gamma(2, 1), shared by the parties.
      beta: `[..., n]`, uniform in [0, 1], shared by the parties.

    Returns:
      The intervals, integers t with exp(r (t - beta)) <= weight < exp(r (t + 1 - beta)), and the levels, the logarithms
      of c / exp(r (t + 1 - beta)); float64 `[..., n]` each.

    Reference: Ioffe 2010, Improved Consistent Sampling, Weighted Minhash and L1 Sketching,
    https://doi.org/10.1109/ICDM.2010.80.
    """
    intervals = np.floor(np.log(weights) / r + beta)
    return intervals, np.log(c) - r * (intervals + 1 - beta)


def keyed_consistent(
    probabilities: Probabilities, seed: ArrayLike, requests: ArrayLike, position: int
) -> NDArray[np.int64]:
    """Draws tokens by `consistent_levels` with numbers that are a function of (seed, request, position, token).

    The guarantee is that of weighted MinHash: parties that share the seed agree with probability at least
    (1 - TV) / (1 + TV). Beside one scan for the tokens whose probability is not 0, a draw takes a time proportional to
    their number, and the same one always. Measured on one core with 2**18 tokens, that is on average 1.6 times the time
    of `keyed_darts` if all have a probability above 0, and a fifteenth of it if top-k has left 40.

    The numbers are made from uniform ones of 32 bits, which changes the probability of a token by about 2**-32
    (absolute). Parties on machines whose `log` rounds otherwise may differ in a draw that is decided by rounding.

    Args:
      probabilities: float64 `[n]`, n at most 2**30, not all 0.
      seed: as for `keyed_darts`.
      requests: as for `keyed_darts`.
      position: as for `keyed_darts`.

    Returns:
      int64 `[draws]`.
    """
    tokens = np.flatnonzero(probabilities > 0)
    requests = np.asarray(requests, np.int32)
    drawn, lowest = np.zeros(len(requests), np.int64), np.full(len(requests), np.inf)
    rows = max(_AT_ONCE // len(tokens), 1)
    for begin in range(0, len(requests), rows):
        some = slice(begin, begin + rows)
        for first in range(0, len(tokens), _AT_ONCE):
            part = tokens[first : first + _AT_ONCE]
            numbers = _consistent_numbers(seed, requests[some, np.newaxis], position, part)
            _, levels = consistent_levels(probabilities[part], *numbers)
            best = np.argmin(levels, axis=-1)
            level = np.take_along_axis(levels, best[:, np.newaxis], axis=-1)[:, 0]
            drawn[some] = np.where(level < lowest[some], part[best], drawn[some])
            lowest[some] = np.minimum(level, lowest[some])
    return drawn


def draw(weights: Probabilities, generator: np.random.Generator, draws: int) -> NDArray[np.int64]:
    """Draws tokens, int64 `[draws]`, with probabilities proportional to the weights; the sum of weights is irrelevant.

    Weights that are all 0 give token 0.
    """
    sums = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1]) if sums[-1] > 0 else 0
    return np.minimum(np.searchsorted(sums, generator.random(draws) * sums[-1], side="right"), last).astype(np.int64)


def _consistent_numbers(
    seed: ArrayLike, requests: NDArray[np.int32], position: int, tokens: NDArray[np.int64]
) -> tuple[Probabilities, Probabilities, Probabilities]:
    """Returns r, c and beta of `consistent_levels` for each request and token, from four words."""
    words = [
        word
        for call in (2 * tokens, 2 * tokens + 1)
        for word in random_words(seed, Stream.CONSISTENT, requests, position, call)
    ]
    u = [(word.view(np.uint32) + 0.5) * 2.0**-32 for word in words]
    # The sum of two exponential numbers is Gamma(2, 1), and the share of one of them is uniform and independent of it.
    r = -np.log(u[0] * u[1])
    return r, -np.log(u[2] * u[3]), -np.log(u[0]) / r


def _tokens_and_heights(words: Words, size: int) -> tuple[NDArray[np.int64], Probabilities]:
    """Splits the number (first * 2**32 + second) * size / 2**64 into its integer part and its fraction."""
    first, second = (word.view(np.uint32).astype(np.uint64) * np.uint64(size) for word in words)
    upper, lowest = first + (second >> np.uint64(32)), second & np.uint64(0xFFFFFFFF)
    heights = ((upper & np.uint64(0xFFFFFFFF)) + lowest * 2.0**-32) * 2.0**-32
    return (upper >> np.uint64(32)).astype(np.int64), heights
