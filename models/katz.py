"""Learns a Katz back-off n-gram model from token sequences, as tables of a bounded size.

With the count n(c, w) of token w after context c, their sum n(c) over w, and c' as c without its first token,

    p(w | c) = (n(c, w) - D) / n(c)    if w is a stored successor of c, else b(c) p(w | c').

All orders count occurrences. What the stored successors leave of 1 goes to the other tokens, in proportion to their
probability in the shorter context:

    b(c) = (1 - sum of p(w | c)) / (1 - sum of p(w | c')), both sums over the stored successors w of c.

So every conditional distribution sums to 1, whichever n-grams are left out. Katz discounts by Good-Turing estimates;
here D is the absolute discount of the order, n1 / (n1 + 2 n2), which is always between 0 and 1 and needs no largest
count. Unigrams are discounted in the same way and interpolated with the uniform distribution.

The probability of one token needs no sum over successors, unlike that of `models.ngram`, and is that of one stored
entry where there is one. `models.ngram_automaton` says how it is stored. This module needs NumPy alone;
`models.decoding.katz_tables` looks probabilities up with TensorFlow ops.

A model contains parts of the text that it was learned from, without any privacy protection. Learn it from public text
only.

References: Katz 1987, Estimation of probabilities from sparse data for the language model component of a speech
recognizer; Ney, Essen and Kneser 1994, On structuring probabilistic dependences in stochastic language modelling.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models import ngram_counts
from models.ngram import MAX_ENTRIES, ORDER
from models.ngram_automaton import NGramAutomaton


@dataclass(frozen=True, eq=False)
class KatzModel(NGramAutomaton):
    """Holds a Katz back-off model; see the module and `NGramAutomaton`.

    Every distribution is positive and sums to 1 up to rounding in float64. The successors of a state ascend.

    Attributes:
      probability: float64 `[entries]`, p(w | c) of each stored successor.
    """

    file_format: ClassVar[str] = "fedspeak Katz n-gram 1"

    probability: NDArray[np.float64]

    def log_prob(self, history: Sequence[int], token: int) -> float:
        """Returns ln p(token | history), in nats.

        Args:
          history: integers in [0, V), any number; only the last n - 1 count. Id 0, which no n-gram holds, stands for
            what comes before the beginning of a text.
          token: integer in [0, V).
        """
        logarithm = 0.0
        for state in self.contexts(history):
            entry = self.find(state, token)
            if entry is not None:
                return logarithm + math.log(self.probability[entry])
            logarithm += math.log(self.backoff[state])
        return logarithm + math.log(self.unigram[token])

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Returns the distribution of the token after `context` (integers in [0, V), any number), float64 `[V]`."""
        row = self.unigram.copy()
        for state in reversed(self.contexts(context)):
            begin, end = self.begins[state : state + 2]
            row *= self.backoff[state]
            row[self.tokens[begin:end]] = self.probability[begin:end]
        return row

    def _find_wrong_values(self) -> str | None:
        if (np.diff(self._keys()) < 0).any():
            return "the successors of a state do not ascend"
        if not np.all(self.probability > 0):
            return "a probability is not positive"
        owners, states = self._owners(), len(self.backoff)
        lower = self._lower(owners)
        rest = 1 - np.bincount(owners, lower, states)
        sums = np.bincount(owners, self.probability, states) + self.backoff * rest
        return None if np.abs(sums - 1).max() < 1e-9 else "probabilities do not sum to 1"

    def _lower(self, owners: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the probability of each entry's token after the context that is shorter than the entry's."""
        keys, states = self._keys(), self.shorter[owners].astype(np.int64)
        found, factor = np.full(len(keys), np.nan), np.ones(len(keys))
        for _ in range(self.order - 1):
            wanted = states * self.vocabulary_size + self.tokens
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            is_new = np.isnan(found) & (keys[places] == wanted)
            found[is_new] = (factor * self.probability[places])[is_new]
            factor *= self.backoff[states]  # that of state 0 is 1
            states = self.shorter[states].astype(np.int64)
        return np.where(np.isnan(found), factor * self.unigram[self.tokens], found)


def learn(
    sequences: Iterable[Any],
    vocabulary_size: int,
    order: int = ORDER,
    max_entries: int = MAX_ENTRIES,
    max_successors: int | None = None,
    vocabulary_digest: str = "",
    min_counts: Sequence[int] = (),
) -> KatzModel:
    """Learns a Katz back-off model from token sequences.

    The most frequent n-grams are stored, up to the limits. An n-gram is stored only if its first n - 1 tokens are.

    Args:
      sequences: integer arrays `[..., T]` of public text. Each row is a text of its own; the first token of a row is
        only a context. Id 0 is padding: no n-gram holds it.
      vocabulary_size: number of token ids V, >= 1.
      order: maximum number of tokens of an n-gram, 1 to 5.
      max_entries: maximum number of stored n-grams of two tokens or more, >= 1. Each takes at most 32 bytes, and each
        token id 12. `models.decoding.katz_tables` says what they take in a graph.
      max_successors: maximum number of stored successors of a context, >= 1; None for no limit.
      vocabulary_digest: digest of the vocabulary, with which users of the model compare their own.
      min_counts: how often n-grams of two tokens, of three, and so on must occur to be stored; 1 where left out.

    Raises:
      ValueError: an option is out of range, a token is not in [0, V), or there is no token after another.
    """
    counted = ngram_counts.count(sequences, vocabulary_size, order, max_entries, max_successors, min_counts)
    unigram = ngram_counts.unigram(counted.tokens)
    backoff, probability = [np.ones(1)], [np.zeros(0)]
    shorter = unigram  # the probability of each n-gram that is one token shorter
    for level, stored in zip(counted.grams, counted.levels, strict=True):
        contexts, place = stored.contexts, stored.place
        totals, discount = np.bincount(level.prefix, level.occurrences), ngram_counts.discount(level.occurrences)
        own = level.occurrences[stored.chosen]
        probability.append((own - discount) / totals[contexts][place])
        kept = np.bincount(place, own - discount, len(contexts))
        lower = shorter[level.suffix]
        # The denominator is above 0, because no n-gram holds the padding, which has a part of every distribution.
        rest = 1 - np.bincount(place, lower[stored.chosen], len(contexts))
        backoff.append((totals[contexts] - kept) / totals[contexts] / rest)
        factors = np.ones(len(totals))
        factors[contexts] = backoff[-1]
        shorter = factors[level.prefix] * lower
        shorter[stored.chosen] = probability[-1]
    return KatzModel(
        order=order,
        vocabulary_digest=vocabulary_digest,
        unigram=unigram,
        backoff=np.concatenate(backoff),
        probability=np.concatenate(probability),
        **counted.tables,
    )
