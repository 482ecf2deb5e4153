"""Turns drawn tokens into text as they come."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from models.vocabularies import AnyVocabulary
from models.vocabulary import EOS


def decode_stream(vocabulary: AnyVocabulary, tokens: Iterable[int]) -> Iterator[str]:
    """Yields the text of `tokens` in pieces of whole characters, each as soon as its tokens have come.

    The end of a sentence becomes a line break, unless it is the last token.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ended = False
    for token in tokens:
        data = b"\n" * ended + vocabulary.decode_bytes([token])
        ended = token == EOS
        # The end of a sentence ends an unfinished character too.
        piece = decoder.decode(data, final=ended)
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def stop_before(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields the text of `pieces` up to that of the strings `stops` which ends first, and leaves it out.

    Of strings that end together the longest counts. Text that may be the beginning of a stop string is held back until
    the next piece. The result does not depend on how the text is divided into pieces.

    Raises:
      ValueError: a stop string is empty.
    """
    if not all(stops):
        raise ValueError(f"stop_texts = {list(stops)!r}: must not hold an empty string; drop it")
    return _stop_before(pieces, stops)


def _stop_before(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in stops if stop in held]
        if found:
            _, begin = min(found)
            if begin:
                yield held[:begin]
            return
        # The longest end of the text that a stop string begins with.
        begun = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        if len(held) > begun:
            yield held[: len(held) - begun]
            held = held[len(held) - begun :]
    if held:
        yield held
