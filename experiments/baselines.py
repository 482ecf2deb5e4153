"""N-gram baselines, to be beaten: a unigram, and an interpolated Kneser-Ney bigram.

Both predict as the neural models do: the loss of each token given those before it in its row; padding is no
target.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.vocabulary import PAD


@dataclass(frozen=True)
class Unigram:
    """A token's probability is its share of the training targets, every id counted once more (Laplace).

    Attributes:
      log_probabilities: float64 [vocabulary_size], natural logarithm.
    """

    log_probabilities: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: Iterable[NDArray[Any]], vocabulary_size: int) -> Unigram:
        """Counts the targets of token arrays, int [..., T+1]: a client's tokens, or windows of them.

        Raises:
          ValueError: there is no target, or a token is outside [0, vocabulary_size).
        """
        _, targets = _pairs(rows, vocabulary_size)
        counts = np.bincount(targets, minlength=vocabulary_size) + 1.0
        return cls(np.log(counts / counts.sum()))

    def token_losses(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Nats, float64 [..., T], of the targets tokens[..., 1:] of int [..., T+1]; 0 for padding."""
        tokens = _checked(tokens, len(self.log_probabilities))
        return _unpadded(tokens, -self.log_probabilities[tokens[..., 1:]])


@dataclass(frozen=True)
class KneserNeyBigram:
    """Interpolated Kneser-Ney (Kneser and Ney 1995; interpolated: Chen and Goodman 1998, TR-10-98, §4.1.6).

    p(w | c) = max(n(c, w) - D, 0) / n(c) + D N(c, ·) / n(c) p'(w), where N(c, ·) is the number of different
    tokens seen after c, and p'(w) comes in the same way, with its own discount, from the number of different
    tokens seen before w, mixed with the uniform law. After a context never seen, p'(w). A discount is
    n1 / (n1 + 2 n2) with n1 and n2 the numbers of counts that are one and two (Ney, Essen and Kneser 1994).

    Attributes:
      unigram: float64 [vocabulary_size], p'.
      backoff: float64 [vocabulary_size], what p' is multiplied by after each context.
      pairs: int64 [seen pairs], context · vocabulary_size + token, ascending.
      seen: float64 [seen pairs], the first term of p for them.
    """

    unigram: NDArray[np.float64]
    backoff: NDArray[np.float64]
    pairs: NDArray[np.int64]
    seen: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: Iterable[NDArray[Any]], vocabulary_size: int) -> KneserNeyBigram:
        """Counts the pairs of token arrays, int [..., T+1]: a client's tokens, or windows of them.

        Raises:
          ValueError: there is no target, or a token is outside [0, vocabulary_size).
        """
        contexts, targets = _pairs(rows, vocabulary_size)
        pairs, counts = np.unique(contexts * vocabulary_size + targets, return_counts=True)
        before, after = pairs // vocabulary_size, pairs % vocabulary_size

        continuations = np.bincount(after, minlength=vocabulary_size)
        positive = continuations > 0
        lower = _discounted(continuations[positive])
        unigram = np.full(vocabulary_size, lower.discount * positive.sum() / (len(pairs) * vocabulary_size))
        unigram[positive] += lower.counts / len(pairs)

        higher = _discounted(counts)
        totals = np.bincount(before, counts, vocabulary_size)
        kinds = np.bincount(before, minlength=vocabulary_size)
        backoff = np.divide(higher.discount * kinds, totals, out=np.ones(vocabulary_size), where=totals > 0)
        return cls(unigram, backoff, pairs, higher.counts / totals[before])

    def token_losses(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Nats, float64 [..., T], of the targets tokens[..., 1:] of int [..., T+1]; 0 for padding."""
        size = len(self.unigram)
        tokens = _checked(tokens, size)
        contexts, targets = tokens[..., :-1], tokens[..., 1:]
        pairs = contexts * size + targets
        places = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        seen = np.where(self.pairs[places] == pairs, self.seen[places], 0.0)
        return _unpadded(tokens, -np.log(seen + self.backoff[contexts] * self.unigram[targets]))


class _Discounted(NamedTuple):
    """Positive counts less a discount, and the discount."""

    counts: NDArray[np.float64]
    discount: float


def _discounted(counts: NDArray[Any]) -> _Discounted:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    # Without a count of one the estimate would be 0, and what was never seen would be impossible.
    discount = once / (once + 2 * twice) if once else 0.5
    return _Discounted(counts - discount, discount)


def _pairs(rows: Iterable[NDArray[Any]], vocabulary_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts and targets of all rows, padding left out."""
    contexts, targets = [], []
    for row in rows:
        tokens = _checked(row, vocabulary_size)
        real = tokens[..., 1:] != PAD
        contexts.append(tokens[..., :-1][real])
        targets.append(tokens[..., 1:][real])
    if not sum(map(len, targets)):
        raise ValueError("no token to count: the rows have no target")
    return np.concatenate(contexts), np.concatenate(targets)


def _checked(tokens: NDArray[Any], vocabulary_size: int) -> NDArray[np.int64]:
    tokens = np.asarray(tokens, np.int64)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocabulary_size):
        raise ValueError(
            f"tokens from {tokens.min()} to {tokens.max()} are not all in the vocabulary of {vocabulary_size}"
        )
    return tokens


def _unpadded(tokens: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(tokens[..., 1:] != PAD, losses, 0.0)
