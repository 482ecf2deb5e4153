"""Finds out whether clients' text is part of another text, by the digests of passages of eight words.

Passages overlap: one begins at every word. Case, punctuation and line breaks do not count, so that text is found again
in another file, however it is wrapped there.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_PASSAGE = 8
"""Words of a passage: fewer may stand in any text."""
_KEPT = 1 << 19
_WORDS_AT_ONCE = 1 << 20
LEAST_PASSAGES = 40
"""Fewer common passages, in a quotation of less than 48 words, are taken for chance."""
LARGEST_SHARE = 0.01
"""Share of the clients' passages that may be in the other text, because both quote the same things."""
_WORD = re.compile(r"\w+")
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, _PASSAGE + 1)], np.uint64)

Digests = NDArray[np.uint64]


def digest_text(sentences: Iterable[str]) -> Digests:
    """Returns the digests of a text's passages, uint64 [n], sorted: the 524,288 smallest if there are more.

    Which passages are kept depends on their words only. So two texts can be compared by what is kept of both, as long
    as only digests up to the largest one are compared (`describe_overlap` does).

    Args:
      sentences: the text in pieces; a passage may extend over several of them.
    """
    kept = np.zeros(0, np.uint64)
    for digests in _digest_passages(sentences):
        kept = np.unique(np.concatenate([kept, digests]))[:_KEPT]
    return kept


def describe_overlap(trained_on: Digests, clients: Iterable[tuple[str, Iterable[str]]]) -> str | None:
    """Describes how much of the clients' text is in another text; returns None if that may be chance.

    It is no chance if at least 40 passages are in both, and they are more than 1 % of all clients' passages, or at
    least half of those of one client. Where `trained_on` holds only a part of the text's passages, the numbers are
    estimates.

    Args:
      trained_on: `digest_text` of the other text.
      clients: id and sentences of each client.
    """
    largest = trained_on[-1] if len(trained_on) == _KEPT else np.uint64(2**64 - 1)
    least = max(3.0, LEAST_PASSAGES * float(largest) / 2**64)
    compared = found = 0
    for client, sentences in clients:
        digests = digest_text(sentences)
        digests = digests[digests <= largest]
        matches = _count_common(digests, trained_on)
        compared, found = compared + len(digests), found + matches
        if matches >= least and 2 * matches >= len(digests):
            return f"it holds {matches / len(digests):.0%} of the text of client {client!r}"
    if found >= least and found > LARGEST_SHARE * compared:
        return f"it holds {found / compared:.1%} of their text"
    return None


def _count_common(digests: Digests, trained_on: Digests) -> int:
    if not len(trained_on):
        return 0
    places = np.minimum(np.searchsorted(trained_on, digests), len(trained_on) - 1)
    return int(np.count_nonzero(trained_on[places] == digests))


def _digest_passages(sentences: Iterable[str]) -> Iterator[Digests]:
    """Yields the digests of all passages, in pieces of about a million."""
    words: list[int] = []
    for sentence in sentences:
        words += map(_digest_word, _WORD.findall(sentence.casefold()))
        if len(words) >= _WORDS_AT_ONCE:
            yield _combine(words)
            words = words[1 - _PASSAGE :]
    yield _combine(words)


def _combine(words: list[int]) -> Digests:
    if len(words) < _PASSAGE:
        return np.zeros(0, np.uint64)
    digests = np.lib.stride_tricks.sliding_window_view(np.array(words, np.uint64), _PASSAGE) @ _FACTORS
    # A sum of products modulo 2^64 is unevenly distributed; the smallest digests must be a random choice.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        digests = (digests ^ (digests >> np.uint64(shift))) * np.uint64(factor)
    mixed: Digests = digests ^ (digests >> np.uint64(31))
    return mixed


@lru_cache(1 << 16)
def _digest_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
