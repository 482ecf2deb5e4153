"""Learns an n-gram language model from token sequences, as tables of a bounded size.

The model is smoothed by interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1998, TR-10-98, section 4.1.6).
With the count n(c, w) of token w after context c, their sum n(c) over w, and c' as c without its first token,

    p(w | c) = max(n(c, w) - D, 0) / n(c) + b(c) p(w | c')    if w is a stored successor of c, else b(c) p(w | c').

The highest order counts occurrences. Lower orders count the different tokens before (c, w), or its occurrences if there
are none. The back-off weight b(c) is what the stored successors leave of 1. So leaving out successors changes which
distribution it is, never that it is one. As drafters, such models were accepted more often than ones that count
occurrences in all orders, even where nine n-grams of ten were left out (measured on Shakespeare's plays).

The tables are a finite automaton. Its states are the stored contexts. Reading a token leads to the longest stored
context that the text then ends with, so that looking a context up needs no hash table. This module needs NumPy alone;
`models.decoding.ngram_drafter` runs the automaton with TensorFlow ops.

A model contains parts of the text that it was learned from, without any privacy protection. Learn it from public text
only.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.atomic_file import replace_file
from models.decoding.choices import require_integer

PAD = 0
ORDER = 3
LARGEST_ORDER = 5
MAX_ENTRIES = 200_000
MAX_SUCCESSORS = 256
_FORMAT = "fedspeak n-gram 1"


@dataclass(frozen=True, eq=False)
class NGramModel:
    """Holds an n-gram model as an automaton; see the module.

    Every distribution is positive and sums to 1 up to rounding in float64.

    Attributes:
      order: maximum number of tokens of an n-gram, n, 1 to 5.
      vocabulary_digest: digest of the vocabulary of the tokens; empty if it was not given.
      unigram: float64 `[V]`, the distribution after an unknown context.
      first: int32 `[V]`, the state after a token whose context is unknown.
      begins: int32 `[states + 1]`; the entries of a state s are those from `begins[s]` to before `begins[s + 1]`. State
        0 is the unknown context and has none.
      backoff: float64 `[states]`, the factor of the distribution of the shorter context.
      shorter: int32 `[states]`, the state of the longest stored context that ends this one; 0 at the end.
      tokens: int32 `[entries]`, the stored successors of each state.
      discounted: float64 `[entries]`, the first term of p(w | c).
      following: int32 `[entries]`, the state after the successor.

    Raises:
      ValueError: the arrays are not such a model.
    """

    order: int
    vocabulary_digest: str
    unigram: NDArray[np.float64]
    first: NDArray[np.int32]
    begins: NDArray[np.int32]
    backoff: NDArray[np.float64]
    shorter: NDArray[np.int32]
    tokens: NDArray[np.int32]
    discounted: NDArray[np.float64]
    following: NDArray[np.int32]

    def __post_init__(self) -> None:
        if problem := self._find_problem():
            raise ValueError(f"not an n-gram model: {problem}")

    @property
    def vocabulary_size(self) -> int:
        """Returns the number of token ids, V."""
        return len(self.unigram)

    @property
    def max_successors(self) -> int:
        """Returns the largest number of stored successors of a state."""
        return int(np.diff(self.begins).max())

    @property
    def nbytes(self) -> int:
        """Returns the size of all tables in bytes."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def advance(self, state: int, token: int) -> int:
        """Returns the state after one more token.

        Args:
          state: state before the token; 0 at the beginning of a text.
          token: integer in [0, V).
        """
        while state:
            begin, end = self.begins[state : state + 2]
            found = np.flatnonzero(self.tokens[begin:end] == token)
            if len(found):
                return int(self.following[begin + found[0]])
            state = int(self.shorter[state])
        return int(self.first[token])

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Returns the distribution of the token after `context` (integers in [0, V), any number), float64 `[V]`."""
        state = 0
        for token in context:
            state = self.advance(state, token)
        states = []
        while state:
            states.append(state)
            state = int(self.shorter[state])
        row = self.unigram.copy()
        for state in reversed(states):
            begin, end = self.begins[state : state + 2]
            row *= self.backoff[state]
            row[self.tokens[begin:end]] += self.discounted[begin:end]
        return row

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path` as one `.npz` file; if writing fails, an existing file is left unchanged.

        Raises:
          OSError: `path` cannot be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, format=np.array(_FORMAT), **{name: getattr(self, name) for name in _FIELDS})
        with replace_file(path) as file:
            file.write(content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NGramModel:
        """Reads a model that `save` wrote.

        Raises:
          OSError: `path` cannot be read.
          ValueError: `path` is another kind of file, or damaged.
        """
        content = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                if str(arrays["format"]) != _FORMAT:
                    raise ValueError("another format")
                values: dict[str, Any] = {name: arrays[name] for name in _FIELDS}
            values["order"], values["vocabulary_digest"] = int(values["order"]), str(values["vocabulary_digest"])
            return cls(**values)
        except Exception as error:  # NumPy, zipfile and zlib each raise exceptions of their own
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path}: not an n-gram model, or damaged ({reason}): learn it again") from None

    def _find_problem(self) -> str | None:
        """Returns what is wrong with the tables; None if nothing is."""
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 1 <= self.order <= LARGEST_ORDER:
            return f"order = {self.order!r}: must be an integer from 1 to {LARGEST_ORDER}"
        states, entries, size = len(self.backoff), len(self.tokens), len(self.unigram)
        lengths = {"first": size, "begins": states + 1, "shorter": states, "discounted": entries, "following": entries}
        for name in _ARRAYS:
            array = getattr(self, name)
            kind = np.float64 if name in ("unigram", "backoff", "discounted") else np.int32
            if array.dtype != kind or array.shape != (lengths.get(name, len(array)),):
                return f"{name} has another type or size"
        if not size or not states or self.begins[0] != 0 or self.begins[-1] != entries:
            return "begins does not cover the entries"
        if (np.diff(self.begins) < 0).any():
            return "begins does not ascend"
        if self.begins[1] != 0 or self.backoff[0] != 1:
            return "state 0 has entries"
        for name, limit in (("first", states), ("shorter", states), ("following", states), ("tokens", size)):
            array = getattr(self, name)
            if array.size and not (array.min() >= 0 and array.max() < limit):
                return f"{name} is out of range"
        state = np.arange(states)
        for _ in range(self.order - 1):
            if not (self.shorter[state] < np.maximum(state, 1)).all():
                return "shorter does not lead to shorter contexts"
            state = self.shorter[state]
        if state.any():
            return "a context is longer than the order allows"
        owner = np.repeat(np.arange(states), np.diff(self.begins))
        if len(np.unique(owner.astype(np.int64) * size + self.tokens)) != entries:
            return "a state has a successor twice"
        sums = self.backoff + np.bincount(owner, self.discounted, states)
        if not (self.unigram.min() > 0 and self.backoff.min() > 0 and np.all(self.discounted >= 0)):
            return "a probability is not positive"
        if not (np.abs(sums - 1).max() < 1e-9 and abs(self.unigram.sum() - 1) < 1e-9):
            return "probabilities do not sum to 1"
        return None


_FIELDS = tuple(field.name for field in fields(NGramModel))
_ARRAYS = _FIELDS[2:]


class _Grams(NamedTuple):
    """Holds the different n-grams of one order; an n-gram's number is its row.

    Attributes:
      prefix: int64, number of the n-gram without its last token.
      token: int64, the last token.
      occurrences: int64, how often it occurs.
      counts: int64, what the model counts; see the module.
      suffix: int64, number of the n-gram without its first token.
    """

    prefix: NDArray[np.int64]
    token: NDArray[np.int64]
    occurrences: NDArray[np.int64]
    counts: NDArray[np.int64]
    suffix: NDArray[np.int64]


def learn(
    sequences: Iterable[Any],
    vocabulary_size: int,
    order: int = ORDER,
    max_entries: int = MAX_ENTRIES,
    max_successors: int = MAX_SUCCESSORS,
    vocabulary_digest: str = "",
) -> NGramModel:
    """Learns an n-gram model from token sequences.

    The most frequent n-grams are stored, up to the two limits. An n-gram is stored only if its first n - 1 tokens are.
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

    Raises:
      ValueError: an option is out of range, a token is not in [0, V), or there is no token after another.
    """
    size = require_integer("vocabulary_size", vocabulary_size, 1)
    order = require_integer("order", order, 1, LARGEST_ORDER)
    max_entries = require_integer("max_entries", max_entries, 1)
    max_successors = require_integer("max_successors", max_successors, 1)
    text, is_first = _join(sequences, size)
    tokens = np.bincount(text[(text != PAD) & ~is_first], minlength=size)
    if not tokens.any():
        raise ValueError("the sequences have no token after another, nothing can be counted: give longer text")
    grams = _count(text, size, order)
    stored = _choose(grams, max_entries, max_successors)

    # The states of all contexts of up to n - 1 tokens, and the entries of each state, from short contexts to long ones.
    suffixes = [np.zeros(size, np.int64), *(level.suffix for level in grams)]
    states_of = [np.zeros(1, np.int64)]  # for each length, the state after each n-gram of it
    tables: dict[str, list[NDArray[Any]]] = {name: [] for name in ("kinds", "backoff", "shorter", "tokens")}
    tables |= {"discounted": [], "chosen": []}
    count = 1
    for level, chosen, suffix in zip(grams, stored, suffixes, strict=False):
        chosen = chosen[np.lexsort((level.token[chosen], level.prefix[chosen]))]
        contexts, place, kinds = np.unique(level.prefix[chosen], return_inverse=True, return_counts=True)
        totals = np.bincount(level.prefix, level.counts, len(suffix))[contexts]
        kept, discount = np.bincount(place, level.counts[chosen], len(contexts)), _discount(level.counts)
        states = states_of[-1][suffix]
        tables["shorter"].append(states[contexts])
        states[contexts] = count + np.arange(len(contexts))
        states_of.append(states)
        tables["kinds"].append(kinds)
        tables["backoff"].append((totals - kept + discount * kinds) / totals)
        tables["tokens"].append(level.token[chosen])
        tables["discounted"].append((level.counts[chosen] - discount) / totals[place])
        tables["chosen"].append(chosen)
        count += len(contexts)
    # After an n-gram of the highest order, the longest context that can be stored is the n-gram's suffix.
    last = states_of[-1][grams[-1].suffix] if grams else np.zeros(0, np.int64)
    following = [states[chosen] for states, chosen in zip([*states_of[2:], last], tables["chosen"], strict=False)]
    return NGramModel(
        order=order,
        vocabulary_digest=vocabulary_digest,
        unigram=_unigram(_continuations(tokens, grams[0].token) if grams else tokens),
        first=(states_of[1] if grams else np.zeros(size)).astype(np.int32),
        begins=np.cumsum(np.concatenate([[0, 0], *tables["kinds"]])).astype(np.int32),
        backoff=np.concatenate([[1.0], *tables["backoff"]]),
        shorter=np.concatenate([[0], *tables["shorter"]]).astype(np.int32),
        tokens=np.concatenate([[], *tables["tokens"]]).astype(np.int32),
        discounted=np.concatenate([[], *tables["discounted"]]).astype(np.float64),
        following=np.concatenate([[], *following]).astype(np.int32),
    )


def _join(sequences: Iterable[Any], size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns all rows as one text with padding after each, and which of its tokens are the first of a row."""
    if isinstance(sequences, np.ndarray) and sequences.ndim == 1:
        raise ValueError("sequences is a single row of tokens: give a list of rows")
    parts, firsts = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for sequence in sequences:
        rows = np.asarray(sequence)
        if not rows.size:
            continue
        if rows.dtype.kind not in "iu" or not rows.ndim:
            raise ValueError(f"sequences hold {rows.dtype} of shape {rows.shape}: must be rows of integers")
        if not (rows.min() >= 0 and rows.max() < size):
            raise ValueError(
                f"tokens from {rows.min()} to {rows.max()} are not all in the vocabulary of {size}: encode the text "
                "with the model's own vocabulary"
            )
        padded = np.pad(rows.reshape(-1, rows.shape[-1]), [(0, 0), (0, 1)], constant_values=PAD)
        parts.append(padded.astype(np.int64).ravel())
        firsts.append(np.broadcast_to(np.arange(padded.shape[1]) == 0, padded.shape).ravel())
    return np.concatenate(parts), np.concatenate(firsts)


def _count(text: NDArray[np.int64], size: int, order: int) -> list[_Grams]:
    """Returns the n-grams of two tokens, of three, ..., of `order` tokens."""
    number = np.where(text == PAD, -1, text)  # of the n-gram that begins at each place; -1: it holds padding
    grams = []
    for length in range(2, order + 1):
        ends = text[length - 1 :]
        begins = np.flatnonzero((number[: len(ends)] >= 0) & (ends != PAD))
        codes = number[begins] * size + ends[begins]
        unique, where, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
        grams.append(_Grams(unique // size, unique % size, counts, counts, number[begins[where] + 1]))
        number = np.full(len(text), -1)
        number[begins] = inverse
    lower = [one._replace(counts=_continuations(one.counts, other.suffix)) for one, other in itertools.pairwise(grams)]
    return [*lower, *grams[-1:]]


def _choose(grams: list[_Grams], max_entries: int, max_successors: int) -> list[NDArray[np.int64]]:
    """Returns the numbers of the stored n-grams of each order."""
    candidates: list[NDArray[np.int64]] = []
    for index, level in enumerate(grams):
        order = np.lexsort((level.token, -level.occurrences, level.prefix))
        if index:
            order = order[np.isin(level.prefix[order], candidates[-1])]
        _, begins, sizes = np.unique(level.prefix[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(begins, sizes)
        candidates.append(order[rank < max_successors])
    # An n-gram occurs at most as often as its prefix and comes after it here, so that the prefix is stored too.
    none = np.zeros(0, np.int64)
    counts = np.concatenate([none, *(level.occurrences[own] for level, own in zip(grams, candidates, strict=True))])
    lengths = np.repeat(np.arange(len(grams)), [len(own) for own in candidates])
    numbers = np.concatenate([none, *candidates])
    best = np.lexsort((numbers, lengths, -counts))[:max_entries]
    return [numbers[best[lengths[best] == index]] for index in range(len(grams))]


def _continuations(occurrences: NDArray[np.int64], suffixes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns how many different tokens come before each n-gram; its occurrences if there are none.

    Args:
      occurrences: how often each n-gram occurs.
      suffixes: the suffix, among these n-grams, of each n-gram with one token more.
    """
    before = np.bincount(suffixes, minlength=len(occurrences))
    return np.where(before > 0, before, occurrences)


def _unigram(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the distribution of the counts, interpolated with the uniform one."""
    discount, total = _discount(counts[counts > 0]), counts.sum()
    rest = discount * np.count_nonzero(counts) / total
    row: NDArray[np.float64] = np.maximum(counts - discount, 0) / total + rest / len(counts)
    return row / row.sum()


def _discount(counts: NDArray[Any]) -> float:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    # With 0, tokens that were never seen would have probability 0; with 1, the tokens seen once would have no part.
    return once / (once + 2 * twice) if once and twice else 0.5
