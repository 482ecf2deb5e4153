"""Finds out whether clients' text is part of another text, by digests of passages and of short lines.

A passage is eight words, or twelve characters of a script without spaces between words. Passages overlap: one begins at
every word. So text is found again in another file, however it is wrapped there. Lines of 3 to 14 words, such as
messages, are also compared as a whole, so that they are found again in any order. Case, marks such as accents,
punctuation and the Unicode form do not count.
"""

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PASSAGE = 8
"""Words of a passage: fewer may stand in any text."""
_LONG_PASSAGE = 12
"""Characters of a passage in a script without spaces, where a word has one or two characters."""
_LEAST_WORDS, _LEAST_LETTERS, _MOST_WORDS = 3, 12, 14
"""Words and letters of a line that is compared as a whole. A longer line has passages enough."""
_KEPT = 1 << 19
_WORDS_AT_ONCE = 1 << 20
_CLIENTS_AT_ONCE = 1000
LEAST_PASSAGES = 40
"""Fewer common passages, in a quotation of less than 48 words, are taken for chance."""
LARGEST_SHARE = 0.01
"""Share of the clients' passages that may be in the other text, because both quote the same things."""
LEAST_LINES = 20
"""Fewer common lines are taken for chance."""
LARGEST_SHARE_OF_LINES = 0.05
"""Share of the clients' short lines that may be in the other text, because they are common phrases. Of the short
lines of Shakespeare's other plays 0.07 % are in his histories, and of one speaker's lines at most 1.2 %."""
# Thai, Lao, Myanmar, Khmer; kana; Chinese characters.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_FACTORS = np.array([pow(0x9E3779B97F4A7C15, power, 1 << 64) for power in range(1, _LONG_PASSAGE + 1)], np.uint64)

_Hashes = NDArray[np.uint64]


class Digests(NamedTuple):
    """Holds the digests of a text.

    Attributes:
      passages: uint64 [n], sorted; the 524,288 smallest if there are more.
      lines: uint64 [n], sorted; the digests of the lines of 3 to 14 words, as many at most.
    """

    passages: _Hashes
    lines: _Hashes


def digest_text(sentences: Iterable[str]) -> Digests:
    """Returns the digests of a text.

    Which digests are kept depends on the words only. So two texts can be compared by what is kept of both, as long as
    only digests up to the largest one are compared (`describe_overlap` does).

    Args:
      sentences: the lines of the text. A passage may extend over several of them.
    """
    passages = lines = np.zeros(0, np.uint64)
    for words, line_digests in _read(sentences):
        passages = _smallest(passages, _combine(words))
        lines = _smallest(lines, np.array(line_digests, np.uint64))
    return Digests(passages, lines)


def describe_overlap(trained_on: Digests, clients: Iterable[tuple[str, Iterable[str]]]) -> str | None:
    """Describes how much of the clients' text is in another text; returns None if that may be chance.

    It is no chance if at least 40 passages are in both, and they are more than 1 % of all clients' passages, or at
    least half of those of one client. It is no chance either if at least 20 short lines are in both, each counted once,
    and they are more than 5 % of all clients' short lines, or at least half of those of one client. Where `trained_on`
    holds only a part of the digests, the numbers are estimates.

    Args:
      trained_on: `digest_text` of the other text.
      clients: id and lines of each client.
    """
    passages = _Comparison(trained_on.passages, LEAST_PASSAGES)
    lines = _Comparison(trained_on.lines, LEAST_LINES)
    seen: list[_Hashes] = []
    compared = found = 0
    for client, sentences in clients:
        own = digest_text(sentences)
        total, common = passages.count(own.passages)
        compared, found = compared + total, found + common
        if common >= passages.least and 2 * common >= total:
            return f"it holds {common / total:.0%} of the text of client {client!r}"
        total, common = lines.count(own.lines)
        if common >= lines.least and 2 * common >= total:
            return f"it holds {common / total:.0%} of the short lines of client {client!r}"
        seen.append(own.lines)
        if len(seen) == _CLIENTS_AT_ONCE:
            seen = [np.unique(np.concatenate(seen))]
    if found >= passages.least and found > LARGEST_SHARE * compared:
        return f"it holds {found / compared:.1%} of their text"
    # Each line counts once, because common phrases are the lines that many clients write.
    compared, found = lines.count(np.unique(np.concatenate(seen)) if seen else np.zeros(0, np.uint64))
    if found >= lines.least and found > LARGEST_SHARE_OF_LINES * compared:
        return f"it holds {found / compared:.1%} of their short lines"
    return None


class _Comparison:
    """Counts which digests are among those that are kept of another text.

    Attributes:
      least: number of common digests below which they are taken for chance.
    """

    def __init__(self, trained_on: _Hashes, least: int) -> None:
        self._trained_on = trained_on
        self._largest = trained_on[-1] if len(trained_on) == _KEPT else np.uint64(2**64 - 1)
        self.least = max(3.0, least * float(self._largest) / 2**64)

    def count(self, digests: _Hashes) -> tuple[int, int]:
        """Returns how many of the digests can be compared, and how many of these are in both texts."""
        digests = digests[digests <= self._largest]
        if not len(self._trained_on):
            return len(digests), 0
        places = np.minimum(np.searchsorted(self._trained_on, digests), len(self._trained_on) - 1)
        return len(digests), int(np.count_nonzero(self._trained_on[places] == digests))


def _smallest(kept: _Hashes, digests: _Hashes) -> _Hashes:
    return np.unique(np.concatenate([kept, digests]))[:_KEPT]


def _read(sentences: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the digests of a text's words and of its short lines, in pieces of about a million words.

    Each piece begins with the last words of the one before, which may begin a passage that ends in it.
    """
    words: list[int] = []
    lines: list[int] = []
    for sentence in itertools.chain.from_iterable(map(str.splitlines, sentences)):
        own = _WORD.findall(_normalize(sentence))
        words += map(_digest_word, own)
        if _LEAST_WORDS <= len(own) <= _MOST_WORDS and _count_letters(own) >= _LEAST_LETTERS:
            lines.append(_digest(" ".join(own)))
        if len(words) >= _WORDS_AT_ONCE:
            yield words, lines
            words, lines = words[1 - _LONG_PASSAGE :], []
    yield words, lines


def _normalize(sentence: str) -> str:
    """Returns the text in lower case, in the form NFKC, without marks."""
    folded = sentence.casefold()
    if folded.isascii():
        return folded
    decomposed = unicodedata.normalize("NFKD", folded).casefold()
    letters = "".join(c for c in decomposed if not unicodedata.category(c).startswith("M"))
    return unicodedata.normalize("NFKC", letters)


def _count_letters(words: list[str]) -> int:
    """Returns the number of letters; a character of a script without spaces counts twice."""
    return sum(len(word) * (2 if _IS_UNSPACED.match(word) else 1) for word in words)


def _combine(words: list[int]) -> _Hashes:
    """Returns the digest of the passage that begins at each word, as far as it is complete."""
    values = np.array(words, np.uint64)
    is_character = (values & np.uint64(1)).astype(bool)
    parts = []
    for length, begins in ((_PASSAGE, ~is_character), (_LONG_PASSAGE, is_character)):
        if len(values) >= length:
            windows = np.lib.stride_tricks.sliding_window_view(values, length)
            parts.append((windows @ _FACTORS[:length])[begins[: len(windows)]])
    digests = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    # A sum of products modulo 2^64 is unevenly distributed; the smallest digests must be a random choice.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        digests = (digests ^ (digests >> np.uint64(shift))) * np.uint64(factor)
    mixed: _Hashes = digests ^ (digests >> np.uint64(31))
    return mixed


@lru_cache(1 << 16)
def _digest_word(word: str) -> int:
    """Returns 64 bits of a hash, of which the lowest says whether the word is one character of an unspaced script."""
    return _digest(word) & ~1 | bool(_IS_UNSPACED.match(word))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")
