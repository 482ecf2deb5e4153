"""A byte-level sub-word vocabulary: every Unicode text has an encoding, so there is no unknown token.

Learning uses sentencepiece's byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909; Kudo
and Richardson 2018, https://arxiv.org/abs/1808.06226). Encoding and decoding need only the standard library
and NumPy: the same code runs on the device.

A vocabulary is a function of the text that it is learned from, so that text must be public.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PAD = 0
BOS = 1
EOS = 2
FIRST_BYTE = 3
SMALLEST = FIRST_BYTE + 256

_FORMAT = "fedspeak vocabulary 1"

# Bytes as printable characters, for sentencepiece and for the file. ASCII stands for itself, so that
# sentencepiece keeps letters, digits and punctuation apart; every other byte becomes a letter, so that the
# bytes of one character may merge. U+2581, which sentencepiece uses for the space, is not among them.
_BYTE_TO_CHARACTER = tuple(chr(byte) if 0x20 <= byte < 0x7F else chr(0x100 + byte) for byte in range(256))
_CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(_BYTE_TO_CHARACTER)}

# sentencepiece merges within space-led words and counts positions in a word with 16 bits (it aborts the
# process beyond).
_LONGEST_WORD = 1024
_LONGEST_CACHED = 64
_CHUNKS = re.compile(rb" [^ ]*|[^ ]+")


@dataclass(frozen=True)
class Vocabulary:
    """Sub-words over bytes. Ids: 0 padding, 1 begin, 2 end of sentence, 3..258 the bytes, then merges by
    rank.

    Attributes:
      pieces: the bytes of each id; the three special ids have none.

    Raises:
      ValueError: the pieces are not laid out as above, or one stands twice.
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
        # The caches stay behind: they cannot be pickled.
        return Vocabulary, (self.pieces,)

    @property
    def size(self) -> int:
        """Number of ids, the specials included."""
        return len(self.pieces)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal digests, equal encodings."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def characters(self) -> NDArray[np.int32]:
        """int32 [size]: code points that begin in each piece; the end of a sentence counts as one (its line
        break).

        Summed over the ids of a text, this is its number of characters: what bits per character are divided
        by.
        """
        counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        counts[EOS] = 1
        return np.array(counts, np.int32)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin or end. Any text without lone surrogates comes back from `decode`.

        Raises:
          ValueError: `text` holds a lone surrogate, which no UTF-8 can carry.
        """
        ids: list[int] = []
        for chunk in _CHUNKS.findall(_utf8(text)):
            encode = self._encode_short if len(chunk) <= _LONGEST_CACHED else self._encode_chunk
            ids.extend(encode(chunk))
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; special ids give none.

        Raises:
          ValueError: an id is outside [0, size).
        """
        parts = []
        for token in ids:
            if not 0 <= token < self.size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.size}")
            parts.append(self.pieces[token])
        return b"".join(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (a character cut in two) become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> str:
        """Canonical one-line JSON."""
        merged = ["".join(_BYTE_TO_CHARACTER[byte] for byte in piece) for piece in self.pieces[SMALLEST:]]
        return json.dumps({"format": _FORMAT, "merged": merged}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Inverse of `to_json`.

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
            raise ValueError(f"not a vocabulary: {error.args[0]!r} stands for no byte") from None
        return _from_merged(pieces)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON to `path`: all of it or nothing."""
        target = Path(path)
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from None
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(target)) from None
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads what `save` wrote.

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
        """Merges the adjacent pair of least rank, leftmost first, until none is left: O(n log n)."""
        ranks = self._ranks
        size = len(chunk)
        # The symbol that begins at byte i ends before ends[i] and follows the one that begins at befores[i].
        ends = list(range(1, size + 1))
        befores = list(range(-1, size - 1))
        alive = bytearray(b"\x01") * size

        def pair(left: int) -> tuple[int, int, int] | None:
            """(rank, begin, end) of the merge of the symbol at `left` with its successor."""
            middle = ends[left]
            if middle == size:
                return None
            end = ends[middle]
            rank = ranks.get(chunk[left:end])
            return None if rank is None else (rank, left, end)

        heap = [found for left in range(size) if (found := pair(left)) is not None]
        heapq.heapify(heap)
        while heap:
            _, left, end = heapq.heappop(heap)
            middle = ends[left]
            # Stale: the left symbol is gone, or one of the two has grown since (then the span differs).
            if not alive[left] or middle == size or ends[middle] != end:
                continue
            alive[middle] = 0
            ends[left] = end
            if end < size:
                befores[end] = left
            for begin in (befores[left], left):
                if begin >= 0 and (found := pair(begin)) is not None:
                    heapq.heappush(heap, found)

        ids = []
        begin = 0
        while begin < size:
            end = ends[begin]
            ids.append(FIRST_BYTE + chunk[begin] if end - begin == 1 else ranks[chunk[begin:end]])
            begin = end
        return tuple(ids)


def learn(sentences: Iterable[str], size: int) -> Vocabulary:
    """Learns a vocabulary of exactly `size` ids by byte-pair encoding of `sentences` (public text only).

    Raises:
      ValueError: `size` is below 259 (specials and bytes), or the text is empty or too small to yield that
        many pieces.
    """
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise ValueError(f"vocabulary size {size!r} is not a whole number")
    if isinstance(sentences, str):
        raise ValueError("sentences is one text: give a list of sentences")
    if not size >= SMALLEST:
        raise ValueError(f"vocabulary size {size} is below {SMALLEST} (3 special ids and 256 bytes)")
    wanted = int(size) - SMALLEST
    merged = _merged_pieces(train_sentencepiece(sentences, wanted)) if wanted else []
    return _from_merged(merged)


def train_sentencepiece(sentences: Iterable[str], merges: int) -> bytes:
    """A serialised sentencepiece BPE model over the mapped bytes of `sentences`, with `merges` merged pieces.

    Raises:
      ValueError: there is no text, or too little of it.
    """
    import sentencepiece

    # A list: an error raised inside sentencepiece's own iteration would come back as an unreadable
    # RuntimeError.
    words = list(_mapped_words(sentences))
    if not words:
        raise ValueError("no text to learn a vocabulary from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # A sentence of each single byte first: all 256 are then in sentencepiece's alphabet, and no pair
            # is added.
            sentence_iterator=itertools.chain(_BYTE_TO_CHARACTER, words),
            model_writer=model,
            model_type="bpe",
            # One unknown token (which sentencepiece insists on) and the 256 bytes.
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
        most = re.search(r"value <= (\d+)", str(error))
        if most is None:
            raise
        largest = int(most[1]) - 257 + SMALLEST
        raise ValueError(
            f"vocabulary size {SMALLEST + merges} is more than the text yields; at most {largest}"
        ) from None
    return model.getvalue()


def to_printable(data: bytes) -> str:
    """The printable stand-ins of `data`, one character a byte (what sentencepiece sees)."""
    return "".join(_BYTE_TO_CHARACTER[byte] for byte in data)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds the lone surrogate {text[error.start]!r} at {error.start}, made of a byte that is not UTF-8: "
            "give the text in UTF-8"
        ) from None


def _mapped_words(sentences: Iterable[str]) -> Iterator[str]:
    """Mapped sentences in pieces of at most 1,024 bytes, cut at spaces where there are any."""
    for sentence in sentences:
        data = _utf8(sentence)
        while len(data) > _LONGEST_WORD:
            cut = data.rfind(b" ", 1, _LONGEST_WORD)
            cut = cut if cut > 0 else _LONGEST_WORD
            yield to_printable(data[:cut])
            data = data[cut:]
        if data:
            yield to_printable(data)


def _merged_pieces(model: bytes) -> list[bytes]:
    """Merged pieces of a sentencepiece model, in rank order."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = map(processor.id_to_piece, range(1, processor.get_piece_size()))
    pieces = [name.replace("\u2581", " ") for name in names]
    return [bytes(_CHARACTER_TO_BYTE[character] for character in piece) for piece in pieces if len(piece) > 1]


def _from_merged(merged: Iterable[bytes]) -> Vocabulary:
    return Vocabulary((b"",) * FIRST_BYTE + tuple(bytes([byte]) for byte in range(256)) + tuple(merged))
