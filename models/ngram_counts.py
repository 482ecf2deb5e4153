"""Counts the n-grams of token sequences, chooses which are stored, and lays them out as an automaton.

What n-gram models of all kinds of smoothing have in common; see `models.ngram` and `models.katz`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.decoding.choices import require_integer
from models.ngram_automaton import LARGEST_ORDER

PAD = 0


class Grams(NamedTuple):
    """Holds the different n-grams of one order; an n-gram's number is its row.

    Attributes:
      prefix: int64, number of the n-gram without its last token.
      token: int64, the last token.
      occurrences: int64, how often it occurs.
      suffix: int64, number of the n-gram without its first token.
    """

    prefix: NDArray[np.int64]
    token: NDArray[np.int64]
    occurrences: NDArray[np.int64]
    suffix: NDArray[np.int64]


class Level(NamedTuple):
    """Holds what is stored of one order, in the order of the automaton's entries.

    Attributes:
      chosen: int64, numbers of the stored n-grams.
      contexts: int64, numbers of their different prefixes, each a state.
      place: int64, place in `contexts` of each stored n-gram's prefix.
      kinds: int64, number of stored n-grams of each context.
    """

    chosen: NDArray[np.int64]
    contexts: NDArray[np.int64]
    place: NDArray[np.int64]
    kinds: NDArray[np.int64]


class Counts(NamedTuple):
    """Holds counted n-grams and the layout of those that are stored.

    Attributes:
      tokens: int64 `[V]`, how often each token occurs after another.
      grams: the n-grams of two tokens, of three, and so on.
      levels: what is stored of each.
      tables: the arrays `first`, `begins`, `shorter`, `tokens` and `following` of `models.ngram_automaton`.
    """

    tokens: NDArray[np.int64]
    grams: list[Grams]
    levels: list[Level]
    tables: dict[str, NDArray[np.int32]]


def count(
    sequences: Iterable[Any],
    vocabulary_size: int,
    order: int,
    max_entries: int,
    max_successors: int | None,
    min_counts: Sequence[int],
) -> Counts:
    """Counts n-grams and chooses the most frequent ones, up to the limits.

    An n-gram is stored only if its first n - 1 tokens are.

    Args:
      sequences: integer arrays `[..., T]`. Each row is a text of its own; the first token of a row is only a context.
        Id 0 is padding: no n-gram holds it.
      vocabulary_size: number of token ids V, >= 1.
      order: maximum number of tokens of an n-gram, 1 to 5.
      max_entries: maximum number of stored n-grams of two tokens or more, >= 1.
      max_successors: maximum number of stored successors of a context, >= 1; None for no limit.
      min_counts: how often n-grams of two tokens, of three, and so on must occur to be stored, each >= 1; at most
        order - 1 numbers, and 1 for orders that are left out.

    Raises:
      ValueError: an option is out of range, a token is not in [0, V), or there is no token after another.
    """
    size = require_integer("vocabulary_size", vocabulary_size, 1)
    order = require_integer("order", order, 1, LARGEST_ORDER)
    max_entries = require_integer("max_entries", max_entries, 1)
    max_successors = size if max_successors is None else require_integer("max_successors", max_successors, 1)
    least = [require_integer("min_counts", value, 1) for value in min_counts]
    if len(least) > order - 1:
        raise ValueError(
            f"min_counts = {least}: must be at most {order - 1} numbers, for n-grams of 2 to {order} tokens"
        )
    text, is_first = _join(sequences, size)
    tokens = np.bincount(text[(text != PAD) & ~is_first], minlength=size)
    if not tokens.any():
        raise ValueError("the sequences have no token after another, nothing can be counted: give longer text")
    grams = _count(text, size, order)
    least += [1] * (len(grams) - len(least))
    stored = _choose(grams, max_entries, max_successors, least)
    return Counts(tokens, grams, *_lay_out(grams, stored, size))


def unigram(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the discounted distribution of counts, interpolated with the uniform one; every token has a part."""
    less, total = discount(counts[counts > 0]), counts.sum()
    rest = less * np.count_nonzero(counts) / total
    row: NDArray[np.float64] = np.maximum(counts - less, 0) / total + rest / len(counts)
    return row / row.sum()


def discount(counts: NDArray[Any]) -> float:
    """Returns n1 / (n1 + 2 n2), where n1 and n2 are how many counts equal one and two; 1/2 if either is 0.

    Reference: Ney, Essen and Kneser 1994, On structuring probabilistic dependences in stochastic language modelling.
    """
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    # With 0, tokens that were never seen would have probability 0; with 1, the tokens seen once would have no part.
    return once / (once + 2 * twice) if once and twice else 0.5


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


def _count(text: NDArray[np.int64], size: int, order: int) -> list[Grams]:
    """Returns the n-grams of two tokens, of three, ..., of `order` tokens."""
    number = np.where(text == PAD, -1, text)  # of the n-gram that begins at each place; -1: it holds padding
    grams = []
    for length in range(2, order + 1):
        ends = text[length - 1 :]
        begins = np.flatnonzero((number[: len(ends)] >= 0) & (ends != PAD))
        codes = number[begins] * size + ends[begins]
        unique, where, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
        grams.append(Grams(unique // size, unique % size, counts, number[begins[where] + 1]))
        number = np.full(len(text), -1)
        number[begins] = inverse
    return grams


def _choose(grams: list[Grams], max_entries: int, max_successors: int, least: Sequence[int]) -> list[NDArray[np.int64]]:
    """Returns the numbers of the stored n-grams of each order."""
    candidates: list[NDArray[np.int64]] = []
    for index, level in enumerate(grams):
        order = np.lexsort((level.token, -level.occurrences, level.prefix))
        order = order[level.occurrences[order] >= least[index]]
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


def _lay_out(
    grams: list[Grams], stored: list[NDArray[np.int64]], size: int
) -> tuple[list[Level], dict[str, NDArray[np.int32]]]:
    """Returns the states of all contexts of up to n - 1 tokens and their entries, from short contexts to long ones."""
    suffixes = [np.zeros(size, np.int64), *(level.suffix for level in grams)]
    states_of = [np.zeros(1, np.int64)]  # for each length, the state after each n-gram of it
    levels: list[Level] = []
    shorter: list[NDArray[np.int64]] = []
    states_so_far = 1
    for level, chosen, suffix in zip(grams, stored, suffixes, strict=False):
        chosen = chosen[np.lexsort((level.token[chosen], level.prefix[chosen]))]
        levels.append(Level(chosen, *np.unique(level.prefix[chosen], return_inverse=True, return_counts=True)))
        contexts, states = levels[-1].contexts, states_of[-1][suffix]
        shorter.append(states[contexts])
        states[contexts] = states_so_far + np.arange(len(contexts))
        states_of.append(states)
        states_so_far += len(contexts)
    # After an n-gram of the highest order, the longest context that can be stored is the n-gram's suffix.
    last = states_of[-1][grams[-1].suffix] if grams else np.zeros(0, np.int64)
    following = [states[level.chosen] for states, level in zip([*states_of[2:], last], levels, strict=False)]
    tables = {
        "first": states_of[1] if grams else np.zeros(size),
        "begins": np.cumsum(np.concatenate([[0, 0], *(level.kinds for level in levels)])),
        "shorter": np.concatenate([[0], *shorter]),
        "tokens": np.concatenate([[], *(own.token[level.chosen] for own, level in zip(grams, levels, strict=True))]),
        "following": np.concatenate([[], *following]),
    }
    return levels, {name: table.astype(np.int32) for name, table in tables.items()}
