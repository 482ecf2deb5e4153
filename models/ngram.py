"""Learns an n-gram language model from token sequences, as tables of a bounded size.

The model is smoothed by interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1998, TR-10-98, section 4.1.6).
With the count n(c, w) of token w after context c, their sum n(c) over w, and c' as c without its first token,

    p(w | c) = max(n(c, w) - D, 0) / n(c) + b(c) p(w | c')    if w is a stored successor of c, else b(c) p(w | c').

The highest order counts occurrences. Lower orders count the different tokens before (c, w), or its occurrences if there
are none. The back-off weight b(c) is what the stored successors leave of 1. So leaving out successors changes which
distribution it is, never that it is one. As drafters, such models were accepted more often than ones that count
occurrences in all orders, even where nine n-grams of ten were left out (measured on Shakespeare's plays).

`models.katz` is the other kind of smoothing; `models.ngram_automaton` says how both are stored. This module needs NumPy
alone; `models.decoding.ngram_drafter` runs the automaton with TensorFlow ops.

A model contains parts of the text that it was learned from, without any privacy protection. Learn it from public text
only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from models import ngram_counts
from models.ngram_automaton import LARGEST_ORDER, NGramAutomaton

__all__ = ["LARGEST_ORDER", "MAX_ENTRIES", "MAX_SUCCESSORS", "ORDER", "NGramModel", "learn"]

ORDER = 3
MAX_ENTRIES = 200_000
MAX_SUCCESSORS = 256


@dataclass(frozen=True, eq=False)
class NGramModel(NGramAutomaton):
    """Holds an n-gram model with interpolated Kneser-Ney smoothing; see the module and `NGramAutomaton`.

    Every distribution is positive and sums to 1 up to rounding in float64.

    Attributes:
      discounted: float64 `[entries]`, the first term of p(w | c).
    """

    file_format: ClassVar[str] = "fedspeak n-gram 1"

    discounted: NDArray[np.float64]

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Returns the distribution of the token after `context` (integers in [0, V), any number), float64 `[V]`."""
        row = self.unigram.copy()
        for state in reversed(self.contexts(context)):
            begin, end = self.begins[state : state + 2]
            row *= self.backoff[state]
            row[self.tokens[begin:end]] += self.discounted[begin:end]
        return row

    def _find_wrong_values(self) -> str | None:
        if not np.all(self.discounted >= 0):
            return "a probability is not positive"
        sums = self.backoff + np.bincount(self._owners(), self.discounted, len(self.backoff))
        return None if np.abs(sums - 1).max() < 1e-9 else "probabilities do not sum to 1"


def learn(
    sequences: Iterable[Any],
    vocabulary_size: int,
    order: int = ORDER,
    max_entries: int = MAX_ENTRIES,
    max_successors: int = MAX_SUCCESSORS,
    vocabulary_digest: str = "",
    min_counts: Sequence[int] = (),
) -> NGramModel:
    """Learns an n-gram model from token sequences.

    The most frequent n-grams are stored, up to the limits. An n-gram is stored only if its first n - 1 tokens are.
    The discount D of an order is n1 / (n1 + 2 n2), where n1 and n2 are how many counts equal one and two; 1/2 if either
    is 0. Unigrams are interpolated with the uniform distribution in the same way.

    Args:
      sequences: integer arrays `[..., T]` of public text. Each row is a text of its own; the first token of a row is
        only a context. Id 0 is padding: no n-gram holds it.
      vocabulary_size: number of token ids V, >= 1.
      order: maximum number of tokens of an n-gram, 1 to 5.
      max_entries: maximum number of stored n-grams of two tokens or more, >= 1. Each takes at most 32 bytes,
        and each token id 12.
      max_successors: maximum number of stored successors of a context, >= 1. A drafter's time grows with it.
      vocabulary_digest: digest of the vocabulary, with which users of the model compare their own.
      min_counts: how often n-grams of two tokens, of three, and so on must occur to be stored; 1 where left out.

    Raises:
      ValueError: an option is out of range, a token is not in [0, V), or there is no token after another.
    """
    counted = ngram_counts.count(sequences, vocabulary_size, order, max_entries, max_successors, min_counts)
    grams = counted.grams
    counts = [_continuations(one.occurrences, other.suffix) for one, other in itertools.pairwise(grams)]
    counts += [level.occurrences for level in grams[-1:]]
    backoff, discounted = [np.ones(1)], [np.zeros(0)]
    for level, own, stored in zip(grams, counts, counted.levels, strict=True):
        totals, discount = np.bincount(level.prefix, own)[stored.contexts], ngram_counts.discount(own)
        kept = np.bincount(stored.place, own[stored.chosen], len(stored.contexts))
        backoff.append((totals - kept + discount * stored.kinds) / totals)
        discounted.append((own[stored.chosen] - discount) / totals[stored.place])
    unigrams = _continuations(counted.tokens, grams[0].token) if grams else counted.tokens
    return NGramModel(
        order=order,
        vocabulary_digest=vocabulary_digest,
        unigram=ngram_counts.unigram(unigrams),
        backoff=np.concatenate(backoff),
        discounted=np.concatenate(discounted),
        **counted.tables,
    )


def _continuations(occurrences: NDArray[np.int64], suffixes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many different tokens come before each n-gram; its occurrences if there are none.

    Args:
      occurrences: how often each n-gram occurs.
      suffixes: the suffix, among these n-grams, of each n-gram with one token more.
    """
    before = np.bincount(suffixes, minlength=len(occurrences))
    return np.where(before > 0, before, occurrences)
