"""Turns drawn tokens into text as they come."""

import codecs
from collections.abc import Iterable, Iterator

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
