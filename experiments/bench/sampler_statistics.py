"""Builds the pairs of models of `bench samplers`, and measures the distance of counted texts from a distribution."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.bench.peers.samplers_common import DRAFT_LENGTH, Pair

_SIMULATED = 4000


def build_pairs() -> list[Pair]:
    """Returns three pairs with small vocabularies, of which whole texts can be enumerated, and one with a large one."""
    generator = np.random.default_rng(3)
    ranked = np.sort(generator.normal(0, 1.2, [8, 8]), axis=-1)
    order = np.argsort(generator.random([8, 8]), axis=-1)
    target = np.take_along_axis(ranked, order, -1)
    drafter = np.take_along_axis(0.7 * ranked[:, ::-1], order, -1)
    large = generator.normal(0, 3, [16, 4096])
    near = large + generator.normal(0, 1, large.shape)
    # After token 0 the drafter is a little too sure of token 0, and after the others it is far off.
    three = np.log([[0.3, 0.5, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    off = np.log([[0.5, 0.3, 0.2], [0.05, 0.15, 0.8], [0.05, 0.15, 0.8]])
    pairs = [
        ("three tokens", three, off, DRAFT_LENGTH + 2),
        ("reverse-ranked", target, drafter, 3),
        ("equal", target, target, 3),
        ("large vocabulary", large, near, 1),
    ]
    return [Pair(name, a.astype(np.float32), b.astype(np.float32), tokens) for name, a, b, tokens in pairs]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the softmax over the last axis in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials: NDArray[np.float64] = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def text_distribution(pair: Pair) -> NDArray[np.float64]:
    """Returns the target's probabilities of all texts of `pair.tokens` tokens, `[V^T]`, by enumeration."""
    rows = softmax(pair.target)
    size = rows.shape[1]
    found = rows[0]
    for _ in range(pair.tokens - 1):
        last = np.arange(len(found)) % size
        found = (found[:, np.newaxis] * rows[last % len(rows)]).reshape(-1)
    return found


def argmax_draft_distribution(pair: Pair) -> NDArray[np.float64]:
    """Returns what token verification makes of drafts that are not drawn from the drafter, by enumeration.

    Each drafted token is the drafter's likeliest one, but is accepted with probability min(1, p / q), as if it had been
    drawn with its probability q. After a rejection the next token is drawn in proportion to max(p - q, 0).

    Returns:
      The probabilities of all texts of `pair.tokens` tokens, `[V^T]`.
    """
    target, drafter = softmax(pair.target), softmax(pair.drafter)
    size, rows = target.shape[1], len(target)

    @functools.cache
    def after(last: int, tokens: int, place: int) -> NDArray[np.float64]:
        """Returns the distribution of the next `tokens` tokens; `place` tokens of the block were accepted so far."""
        if tokens == 0:
            return np.ones(1)
        p, q = target[last % rows], drafter[last % rows]
        if place == DRAFT_LENGTH:
            return np.concatenate([p[token] * after(token, tokens - 1, 0) for token in range(size)])
        drafted = int(np.argmax(q))
        accepted = min(1.0, p[drafted] / q[drafted])
        residual = np.maximum(p - q, 0)
        weights = (1 - accepted) * residual / max(residual.sum(), np.finfo(float).tiny)
        parts = [weights[token] * after(token, tokens - 1, 0) for token in range(size)]
        parts[drafted] = parts[drafted] + accepted * after(drafted, tokens - 1, place + 1)
        return np.concatenate(parts)

    return after(0, pair.tokens, 0)


def total_variation(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    """Returns the total variation distance of the frequencies of `counts` from a distribution, both `[K]`."""
    return float(np.abs(counts / counts.sum() - probabilities).sum() / 2)


class Floor(NamedTuple):
    """Holds the total variation that samples of the distribution itself show.

    Attributes:
      mean: its mean.
      bound: the value that one of a thousand correct samplers exceeds.
    """

    mean: float
    bound: float


def sampling_floor(probabilities: NDArray[np.float64], texts: int) -> Floor:
    """Simulates a correct sampler: draws the counts of `texts` texts 4000 times."""
    generator = np.random.default_rng(0)
    normalised = probabilities / probabilities.sum()
    found = [total_variation(generator.multinomial(texts, normalised), probabilities) for _ in range(_SIMULATED)]
    return Floor(float(np.mean(found)), float(np.quantile(found, 0.999)))
