"""Holds the n-gram baselines of an evaluation: a unigram and an interpolated Kneser-Ney bigram.

Both are scored as the neural models are: each token of a row is predicted from the tokens before it, and padding (id
`PAD`) is never a target.
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
    """Predicts each token by its share of the training targets, with add-one (Laplace) smoothing.

    Attributes:
      log_probabilities: float64 [vocabulary_size], natural logarithms of the probabilities.
    """

    log_probabilities: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: Iterable[NDArray[Any]], vocabulary_size: int) -> Unigram:
        """Fits the model to the targets of token arrays.

        Args:
          rows: integer arrays [..., T+1]; each holds a client's tokens, or windows of them.
          vocabulary_size: number of token ids.

        Raises:
          ValueError: there is no target, or a token is outside [0, vocabulary_size).
        """
        _, targets = _pairs(rows, vocabulary_size)
        counts = np.bincount(targets, minlength=vocabulary_size) + 1.0
        return cls(np.log(counts / counts.sum()))

    def token_losses(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the losses of the targets `tokens[..., 1:]` in nats, float64 [..., T]; 0 where they are padding.

        Args:
          tokens: integers [..., T+1].

        Raises:
          ValueError: a token is outside [0, vocabulary_size).
        """
        tokens = _check_tokens(tokens, len(self.log_probabilities))
        return _zero_padding(tokens, -self.log_probabilities[tokens[..., 1:]])


@dataclass(frozen=True)
class KneserNeyBigram:
    """Predicts each token from the token before it, with interpolated Kneser-Ney smoothing.

    The probability of token w after context c is
    p(w | c) = max(n(c, w) - D, 0) / n(c) + D N(c, ·) / n(c) p'(w).
    Here n(c, w) counts the pair, n(c) counts the context, and N(c, ·) is the number of different tokens seen after c.
    The lower-order model p'(w) is estimated in the same way, with its own discount, from the number of different
    tokens seen before w, and interpolated with the uniform distribution. After a context that was never seen,
    p(w | c) = p'(w). Each discount D is n1 / (n1 + 2 n2), where n1 and n2 are how many counts equal one and two.

    Attributes:
      unigram: float64 [vocabulary_size], p'.
      backoff: float64 [vocabulary_size], the factor of p' after each context; 1 after one that was never seen.
      pairs: int64 [seen pairs], context · vocabulary_size + token, ascending.
      seen: float64 [seen pairs], the first term of p(w | c) for these pairs.

    Reference: Kneser and Ney 1995; Chen and Goodman 1998, TR-10-98, section 4.1.6 (interpolation); Ney, Essen and
    Kneser 1994 (the discount).
    """

    unigram: NDArray[np.float64]
    backoff: NDArray[np.float64]
    pairs: NDArray[np.int64]
    seen: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: Iterable[NDArray[Any]], vocabulary_size: int) -> KneserNeyBigram:
        """Fits the model to the pairs of neighbouring tokens in token arrays.

        Args:
          rows: integer arrays [..., T+1]; each holds a client's tokens, or windows of them.
          vocabulary_size: number of token ids.

        Raises:
          ValueError: there is no target, or a token is outside [0, vocabulary_size).
        """
        contexts, targets = _pairs(rows, vocabulary_size)
        pairs, counts = np.unique(contexts * vocabulary_size + targets, return_counts=True)
        before, after = pairs // vocabulary_size, pairs % vocabulary_size

        continuations = np.bincount(after, minlength=vocabulary_size)
        positive = continuations > 0
        lower = _discount(continuations[positive])
        unigram = np.full(vocabulary_size, lower.discount * positive.sum() / (len(pairs) * vocabulary_size))
        unigram[positive] += lower.counts / len(pairs)

        higher = _discount(counts)
        totals = np.bincount(before, counts, vocabulary_size)
        kinds = np.bincount(before, minlength=vocabulary_size)
        backoff = np.divide(higher.discount * kinds, totals, out=np.ones(vocabulary_size), where=totals > 0)
        return cls(unigram, backoff, pairs, higher.counts / totals[before])

    def token_losses(self, tokens: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the losses of the targets `tokens[..., 1:]` in nats, float64 [..., T]; 0 where they are padding.

        Args:
          tokens: integers [..., T+1].

        Raises:
          ValueError: a token is outside [0, vocabulary_size).
        """
        size = len(self.unigram)
        tokens = _check_tokens(tokens, size)
        contexts, targets = tokens[..., :-1], tokens[..., 1:]
        pairs = contexts * size + targets
        places = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        seen = np.where(self.pairs[places] == pairs, self.seen[places], 0.0)
        return _zero_padding(tokens, -np.log(seen + self.backoff[contexts] * self.unigram[targets]))


class _Discounted(NamedTuple):
    """Holds positive counts minus a discount, and that discount."""

    counts: NDArray[np.float64]
    discount: float


def _discount(counts: NDArray[Any]) -> _Discounted:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    # Where no count is one, the formula gives 0, and tokens that were never seen would have probability 0.
    discount = once / (once + 2 * twice) if once else 0.5
    return _Discounted(counts - discount, discount)


def _pairs(rows: Iterable[NDArray[Any]], vocabulary_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the contexts and the targets of all rows, without padding."""
    contexts, targets = [], []
    for row in rows:
        tokens = _check_tokens(row, vocabulary_size)
        is_target = tokens[..., 1:] != PAD
        contexts.append(tokens[..., :-1][is_target])
        targets.append(tokens[..., 1:][is_target])
    if not sum(map(len, targets)):
        raise ValueError("the rows have no target, nothing can be counted: give rows of two tokens or more")
    return np.concatenate(contexts), np.concatenate(targets)


def _check_tokens(tokens: NDArray[Any], vocabulary_size: int) -> NDArray[np.int64]:
    tokens = np.asarray(tokens, np.int64)
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocabulary_size):
        raise ValueError(
            f"tokens from {tokens.min()} to {tokens.max()} are not all in the vocabulary of {vocabulary_size}: encode "
            "the text with the model's own vocabulary"
        )
    return tokens


def _zero_padding(tokens: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(tokens[..., 1:] != PAD, losses, 0.0)
