"""Learns and applies a byte-level sub-word vocabulary, which encodes every Unicode text without an unknown token.

Learning uses sentencepiece's byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Kudo and
Richardson 2018, https://arxiv.org/abs/1808.06226). Encoding and decoding need only the standard library and NumPy, so
that the same code runs on the device.

A vocabulary contains pieces of the text that it was learned from, without any privacy protection. Learn it from public
text only.
"""

from __future__ import annotations

import hashlib
import heapq
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.atomic_file import replace_file

PAD = 0
BOS = 1
EOS = 2
FIRST_BYTE = 3
SMALLEST = FIRST_BYTE + 256

_FORMAT = "fedspeak vocabulary 1"

# The printable character that stands for each byte, in sentencepiece's input and in the vocabulary file. Printable
# ASCII stands for itself, so that sentencepiece keeps letters, digits and punctuation apart. Every other byte becomes a
# letter, so that the bytes of one character may merge. U+2581, which sentencepiece uses for the space, is not among
# them.
_BYTE_TO_CHARACTER = tuple(chr(byte) if 0x20 <= byte < 0x7F else chr(0x100 + byte) for byte in range(256))
_CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(_BYTE_TO_CHARACTER)}

# sentencepiece gets words of at most this many bytes. It merges only within a word, and a word begins at each space.
# It counts positions in a word with 16 bits, and aborts the process if a word needs more.
_LONGEST_WORD = 1024
_LONGEST_CACHED = 64
_CHUNKS = re.compile(rb" [^ ]*|[^ ]+")


@dataclass(frozen=True)
class Vocabulary:
    """Encodes text as token ids and decodes them, with sub-words made of bytes.

    The ids are 0 for padding, 1 for the beginning of a text, 2 for the end of a sentence, 3 to 258 for the single
    bytes, and from 259 the merged pieces. The id of a merged piece is its rank: encoding merges lower ranks first.

    Attributes:
      pieces: the bytes of each id; empty for the three special ids.

    Raises:
      ValueError: the pieces are not in this order, or a merged piece is too short or occurs twice.
    """

    pieces: tuple[bytes, ...]

    def __post_init__(self) -> None:
        head = (b"",) * FIRST_BYTE + tuple(bytes([byte]) for byte in range(256))
        if self.pieces[:SMALLEST] != head:
            raise ValueError("vocabulary must begin with 3 empty pieces and the 256 bytes in order")
        merged = self.pieces[SMALLEST:]
        short = next((piece for piece in merged if len(piece) < 2), None)
        if short is not None:
            raise ValueError(f"merged piece {short!r} of the vocabulary has fewer than two bytes")
        if len(set(merged)) != len(merged):
            raise ValueError("vocabulary holds the same merged piece twice")

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[tuple[bytes, ...]]]:
        # The cached properties are left out, because they cannot be pickled.
        return Vocabulary, (self.pieces,)

    @property
    def size(self) -> int:
        """Returns the number of ids, special ids included."""
        return len(self.pieces)

    @property
    def start(self) -> int:
        """Returns the id that every text begins with."""
        return BOS

    @cached_property
    def digest(self) -> str:
        """Returns the SHA-256 of the canonical JSON, in hex: equal digests mean equal vocabularies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def characters(self) -> NDArray[np.int32]:
        """Returns the number of code points that begin in the piece of each id, int32 `[size]`.

        The end of a sentence counts as one, for its line break. The sum over the ids of a text is its number of
        characters. Bits per character are the loss on the text in bits, divided by this number.
        """
        counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        counts[EOS] = 1
        return np.array(counts, np.int32)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without begin and end tokens; `decode` returns the same text again.

        Raises:
          ValueError: `text` holds a lone surrogate, which UTF-8 cannot encode.
        """
        ids: list[int] = []
        for chunk in _CHUNKS.findall(_utf8(text)):
            encode = self._encode_short if len(chunk) <= _LONGEST_CACHED else self._encode_chunk
            ids.extend(encode(chunk))
        return ids

    def prompt(self, text: str) -> list[int]:
        """Returns the begin token and the ids of `text`: what a model reads before it continues `text`.

        Raises:
          ValueError: as for `encode`.
        """
        return [BOS, *self.encode(text)]

    def document(self, text: str) -> list[int]:
        """Returns the ids of a whole text as models are trained on it: a begin token, and an end token for each line.

        Raises:
          ValueError: as for `encode`.
        """
        return [BOS, *itertools.chain.from_iterable([*self.encode(line), EOS] for line in text.splitlines())]

    def chat(self, message: str) -> list[int]:
        """Raises ValueError: a model that was trained from scratch has no chat template."""
        raise ValueError("the model has no chat template: use a prompt instead")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of `ids`; special ids have none.

        Raises:
          ValueError: an id is outside [0, size).
        """
        parts = []
        for token in ids:
            if not 0 <= token < self.size:
                raise ValueError(f"token id {token} is outside the vocabulary: its ids are 0 to {self.size - 1}")
            parts.append(self.pieces[token])
        return b"".join(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 (such as half a character) become U+FFFD.

        Raises:
          ValueError: an id is outside [0, size).
        """
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> str:
        """Returns the vocabulary as canonical JSON on one line: equal vocabularies give equal strings."""
        merged = ["".join(_BYTE_TO_CHARACTER[byte] for byte in piece) for piece in self.pieces[SMALLEST:]]
        return json.dumps({"format": _FORMAT, "merged": merged}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Builds a vocabulary from the JSON that `to_json` returns.

        Raises:
          ValueError: `text` is not a vocabulary.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("not a vocabulary: the text is not JSON") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"not a vocabulary: no field 'format' with the value {_FORMAT!r}")
        merged = content.get("merged")
        if not isinstance(merged, list) or not all(isinstance(piece, str) for piece in merged):
            raise ValueError("not a vocabulary: the field 'merged' is not a list of strings")
        try:
            pieces = [bytes(_CHARACTER_TO_BYTE[character] for character in piece) for piece in merged]
        except KeyError as error:
            raise ValueError(f"not a vocabulary: {error.args[0]!r} in 'merged' represents no byte") from None
        return _build_vocabulary(pieces)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON to `path`; if writing fails, an existing file is left unchanged.

        Raises:
          OSError: `path` cannot be written.
        """
        with replace_file(path) as file:
            file.write(f"{self.to_json()}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a vocabulary that `save` wrote.

        Raises:
          OSError: `path` cannot be read.
          ValueError: `path` is not a vocabulary.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a vocabulary: the file is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.pieces) if token >= SMALLEST}

    @cached_property
    def _encode_short(self) -> Callable[[bytes], tuple[int, ...]]:
        return lru_cache(maxsize=1 << 16)(self._encode_chunk)

    def _encode_chunk(self, chunk: bytes) -> tuple[int, ...]:
        """Merges the adjacent pair of lowest rank, leftmost first, until no pair has a rank; takes O(n log n) time."""
        ranks = self._ranks
        size = len(chunk)
        # The symbol that begins at byte i ends before byte ends[i]; the symbol before it begins at previous[i].
        ends = list(range(1, size + 1))
        previous = list(range(-1, size - 1))
        alive = bytearray(b"\x01") * size

        def find_merge(left: int) -> tuple[int, int, int] | None:
            """Returns (rank, begin, end) of the piece made of the symbol at `left` and the next one.

            Returns None if there is no next symbol or the piece is not in the vocabulary.
            """
            middle = ends[left]
            if middle == size:
                return None
            end = ends[middle]
            rank = ranks.get(chunk[left:end])
            return None if rank is None else (rank, left, end)

        heap = [merge for left in range(size) if (merge := find_merge(left)) is not None]
        heapq.heapify(heap)
        while heap:
            _, left, end = heapq.heappop(heap)
            middle = ends[left]
            # The entry is stale if its left symbol was merged into the one before, or if one of its two symbols has
            # grown: the end then differs.
            if not alive[left] or middle == size or ends[middle] != end:
                continue
            alive[middle] = 0
            ends[left] = end
            if end < size:
                previous[end] = left
            for begin in (previous[left], left):
                if begin >= 0 and (merge := find_merge(begin)) is not None:
                    heapq.heappush(heap, merge)

        ids = []
        begin = 0
        while begin < size:
            end = ends[begin]
            ids.append(FIRST_BYTE + chunk[begin] if end - begin == 1 else ranks[chunk[begin:end]])
            begin = end
        return tuple(ids)


def learn(sentences: Iterable[str], size: int) -> Vocabulary:
    """Learns a vocabulary of exactly `size` ids by byte-pair encoding.

    Args:
      sentences: public text only, because the vocabulary contains pieces of it.
      size: number of ids, >= 259 (3 special ids and 256 bytes).

    Raises:
      ValueError: `size` is not an integer of at least 259; or the text is empty, yields fewer than `size` ids, or
        holds a lone surrogate.
    """
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise ValueError(f"size = {size!r}: must be an integer of at least {SMALLEST}")
    if isinstance(sentences, str):
        raise ValueError("sentences is a single string: give a list of sentences")
    if not size >= SMALLEST:
        raise ValueError(f"size = {size}: must be at least {SMALLEST} (3 special ids and 256 bytes)")
    merges = int(size) - SMALLEST
    merged = _read_merged_pieces(train_sentencepiece(sentences, merges)) if merges else []
    return _build_vocabulary(merged)


def train_sentencepiece(sentences: Iterable[str], merges: int) -> bytes:
    """Trains a sentencepiece BPE model on the printable stand-ins of the bytes of `sentences`.

    Args:
      sentences: the text to learn from.
      merges: number of merged pieces, >= 1.

    Returns:
      The serialised sentencepiece model.

    Raises:
      ValueError: there is no text or too little of it, or it holds a lone surrogate.
    """
    import sentencepiece

    # All text is read before training, because an error raised while sentencepiece iterates would come back as an
    # unreadable RuntimeError.
    words = list(_mapped_words(sentences))
    if not words:
        raise ValueError("sentences hold no text to learn a vocabulary from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The first 256 sentences are one byte each, so that sentencepiece knows all bytes. They contain no pair.
            sentence_iterator=itertools.chain(_BYTE_TO_CHARACTER, words),
            model_writer=model,
            model_type="bpe",
            # 1 is for the unknown token, which sentencepiece requires, and 256 is for the bytes.
            vocab_size=1 + 256 + merges,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            max_sentence_length=8 * _LONGEST_WORD,
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None:
            raise
        largest = int(limit[1]) - 257 + SMALLEST
        raise ValueError(
            f"size = {SMALLEST + merges}: the text yields at most {largest}: lower it, or use more text"
        ) from None
    return model.getvalue()


def to_printable(data: bytes) -> str:
    """Returns `data` as sentencepiece reads it: each byte is replaced by its printable stand-in, one character."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in data)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds the lone surrogate {text[error.start]!r} at index {error.start}, made of a byte that is not "
            "UTF-8: give the text in UTF-8"
        ) from None


def _mapped_words(sentences: Iterable[str]) -> Iterator[str]:
    """Yields the sentences in parts of at most 1,024 UTF-8 bytes, cut before a space if possible.

    Each byte is replaced by its printable character (`to_printable`).
    """
    for sentence in sentences:
        data = _utf8(sentence)
        while len(data) > _LONGEST_WORD:
            cut = data.rfind(b" ", 1, _LONGEST_WORD)
            cut = cut if cut > 0 else _LONGEST_WORD
            yield to_printable(data[:cut])
            data = data[cut:]
        if data:
            yield to_printable(data)


def _read_merged_pieces(model: bytes) -> list[bytes]:
    """Returns the merged pieces of a serialised sentencepiece model, in the order of their ranks."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = map(processor.id_to_piece, range(1, processor.get_piece_size()))
    pieces = [name.replace("\u2581", " ") for name in names]
    return [bytes(_CHARACTER_TO_BYTE[character] for character in piece) for piece in pieces if len(piece) > 1]


def _build_vocabulary(merged: Iterable[bytes]) -> Vocabulary:
    return Vocabulary((b"",) * FIRST_BYTE + tuple(bytes([byte]) for byte in range(256)) + tuple(merged))
