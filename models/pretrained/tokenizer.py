"""Implements the vocabulary of an imported model over the `tokenizers` library.

The library's training code uses the ids 0, 1 and 2 for padding, the beginning of a text and the end of a sentence. A
checkpoint has its own ids for these. So an imported vocabulary swaps ids: 0, 1 and 2 change places with the
checkpoint's, and the rows of the embedding move with them (`PretrainedVocabulary.rows`). All other ids stay.

Text is encoded as the checkpoint's own tokenizer does it, also where that loses something: a byte-level vocabulary may
lack rare bytes, which are then left out (SmolLM2 has no U+0004), and sentencepiece reads U+2581 as a space.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.atomic_file import replace_file
from models.vocabulary import BOS, EOS, PAD

FORMAT = "fedspeak pretrained vocabulary 1"
_SPACE = "\u2581"  # stands for a space in the pieces of sentencepiece


def _byte_characters() -> dict[str, int]:
    """Returns the byte that each character of a byte-level piece stands for (Radford et al. 2019, GPT-2).

    Printable Latin-1 characters stand for themselves; the other bytes are U+0100, U+0101, ... in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()


@dataclass(frozen=True)
class PretrainedVocabulary:
    """Encodes text as the token ids of an imported model, and decodes them.

    Attributes:
      tokenizer: the tokenizer, as the JSON of the `tokenizers` library, with the checkpoint's ids.
      size: number of token ids, at least that of the tokenizer.
      ids: the checkpoint's ids of padding, the beginning of a text and the end of a sentence, all different.
      start: id that every text and an empty prompt begin with, 1 or 2.
      reads_begin: whether every prompt begins with `start`, not only an empty one.
      chat_template: Jinja template of a conversation, or None.

    Raises:
      ValueError: `ids` are not three different ids below `size`, or `start` is neither 1 nor 2.
    """

    tokenizer: str
    size: int
    ids: tuple[int, int, int]
    start: int = BOS
    reads_begin: bool = False
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if len(set(self.ids)) != 3 or not all(0 <= token < self.size for token in self.ids):
            raise ValueError(f"ids = {list(self.ids)}: must be three different integers from 0 to {self.size - 1}")
        if self.start not in (BOS, EOS):
            raise ValueError(f"start = {self.start}: must be {BOS} or {EOS}")

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached properties are left out, because they cannot be pickled.
        return PretrainedVocabulary, (
            self.tokenizer,
            self.size,
            self.ids,
            self.start,
            self.reads_begin,
            self.chat_template,
        )

    @classmethod
    def arrange(
        cls,
        tokenizer: str,
        size: int,
        begin: int | None,
        end: int,
        spare: Sequence[int],
        reads_begin: bool,
        chat_template: str | None,
        where: str,
    ) -> PretrainedVocabulary:
        """Builds a vocabulary, and chooses the ids of padding and of the begin token if the checkpoint has none.

        Args:
          tokenizer: as the attribute.
          size: as the attribute.
          begin: the checkpoint's id of the beginning of a text; None if it has none. If it is `end`, or None, texts
            begin with the end token.
          end: the checkpoint's id of the end of a text or a turn.
          spare: the checkpoint's ids that no text is encoded with, the best for padding first.
          reads_begin: whether the checkpoint puts its begin token before every text.
          chat_template: as the attribute.
          where: file or folder, for the messages.

        Raises:
          ValueError: an id is outside the vocabulary, there are not enough spare ids, or the tokenizer is of another
            kind or damaged.
        """
        for name, token in (("begin", begin), ("end", end)):
            if token is not None and not 0 <= token < size:
                raise ValueError(f"{where}: the {name} token has the id {token}, but there are {size} ids: damaged")
        free = [token for token in spare if token not in (begin, end)]
        has_begin = begin not in (None, end)
        if len(free) < (1 if has_begin else 2):
            raise ValueError(f"{where}: no token is unused and could become the padding: it cannot be imported")
        padding = free.pop(0)
        ids = (padding, begin if begin is not None and has_begin else free.pop(0), end)
        start, reads_begin = BOS if has_begin else EOS, reads_begin and begin is not None
        try:
            return cls(_to_canonical(json.loads(tokenizer)), size, ids, start, reads_begin, chat_template)._checked()
        except ValueError as error:
            raise ValueError(f"{where}: the tokenizer cannot be imported: {error}") from None

    def _checked(self) -> PretrainedVocabulary:
        """Returns the vocabulary itself; raises ValueError if its tokenizer cannot be used."""
        try:
            _ = self.pieces
        except (ModuleNotFoundError, ValueError):
            raise
        except IndexError:
            raise ValueError(f"the tokenizer has ids beyond the {self.size} of the model") from None
        except Exception as error:  # the tokenizers library raises plain exceptions
            raise ValueError(_one_line(error)) from None
        return self

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Returns the checkpoint's id of each id, int64 [size]."""
        order = np.arange(self.size)
        for target, source in zip((PAD, BOS, EOS), self.ids, strict=True):
            place = int(np.flatnonzero(order == source)[0])
            order[[target, place]] = order[[place, target]]
        return order

    @cached_property
    def _ids_by_own(self) -> NDArray[np.int64]:
        return np.argsort(self._order)

    def rows(self, count: int) -> NDArray[np.int64]:
        """Returns which row of a checkpoint's embedding of `count` rows belongs to each id."""
        return np.concatenate([self._order, np.arange(self.size, count)])

    @cached_property
    def _encoder(self) -> Any:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns when a process forks later
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_str(self.tokenizer)
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    @cached_property
    def digest(self) -> str:
        """Returns the SHA-256 of the canonical JSON, in hex: equal digests mean equal vocabularies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """Returns the bytes of each id; special tokens and unused ids have none."""
        content = json.loads(self.tokenizer)
        added = {
            entry["id"]: b"" if entry["special"] else entry["content"].encode() for entry in content["added_tokens"]
        }
        is_byte_level = _is_byte_level(content)
        pieces = [b""] * self.size
        for text, token in self._encoder.get_vocab(with_added_tokens=True).items():
            if token not in self.ids:
                piece = added[token] if token in added else _to_bytes(text, is_byte_level)
                pieces[int(self._ids_by_own[token])] = piece
        return tuple(pieces)

    @cached_property
    def characters(self) -> NDArray[np.int32]:
        """Returns the number of code points that begin in the piece of each id; see `Vocabulary.characters`.

        The space that a sentencepiece tokenizer puts before a text counts too.
        """
        counts = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        counts[EOS] = 1
        return np.array(counts, np.int32)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; text that looks like a special token is encoded as text.

        Raises:
          ValueError: `text` holds a lone surrogate, which UTF-8 cannot encode.
        """
        return self._encode(text, special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        _require_utf8(text)
        self._encoder.encode_special_tokens = not special
        return [int(i) for i in self._ids_by_own[self._encoder.encode(text, add_special_tokens=False).ids]]

    def prompt(self, text: str) -> list[int]:
        """Returns the ids that the model reads before it continues `text`.

        Raises:
          ValueError: as for `encode`.
        """
        ids = [self.start] * self.reads_begin + self.encode(text)
        return ids or [self.start]

    def document(self, text: str) -> list[int]:
        """Returns the ids of a whole text as models are trained on it: a begin token, then the text.

        Raises:
          ValueError: as for `encode`.
        """
        return [self.start, *self.encode(text)]

    def chat(self, message: str) -> list[int]:
        """Returns the ids that the model reads before it answers a user's message, by the checkpoint's chat template.

        Raises:
          ValueError: the checkpoint has no chat template, it cannot be rendered, or the message holds the text of a
            special token, which would end the user's turn.
        """
        if self.chat_template is None:
            raise ValueError("the model has no chat template: use a prompt instead")
        _require_utf8(message)
        for entry in json.loads(self.tokenizer)["added_tokens"]:
            if entry["special"] and entry["content"] in message:
                raise ValueError(f"the message holds the special token {entry['content']!r}: remove it")
        from models.pretrained.chat_template import render

        begin, end = (self._encoder.id_to_token(self.ids[token]) for token in (self.start, EOS))
        try:
            text = render(self.chat_template, message, begin, end)
        except Exception as error:  # a template computes, and may fail in any way
            raise ValueError(f"the model's chat template cannot be rendered: {_one_line(error)}") from None
        return self._encode(text, special=True)

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
        """Returns the text of `ids` without the space that a sentencepiece tokenizer puts before a text.

        Bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: as for `decode_bytes`.
        """
        text = self.decode_bytes(ids).decode(errors="replace")
        return text.removeprefix(" ") if self._adds_space else text

    @cached_property
    def _adds_space(self) -> bool:
        return self.decode_bytes(self.encode("a")).startswith(b" ")

    def to_json(self) -> str:
        """Returns the vocabulary as canonical JSON on one line: equal vocabularies give equal strings."""
        content = {
            "format": FORMAT,
            "tokenizer": json.loads(self.tokenizer),
            "size": self.size,
            "ids": self.ids,
            "start": self.start,
            "reads_begin": self.reads_begin,
            "chat_template": self.chat_template,
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PretrainedVocabulary:
        """Builds a vocabulary from the JSON that `to_json` returns.

        Raises:
          ValueError: `text` is not such a vocabulary.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            padding, begin, end = map(int, content.pop("ids"))
            tokenizer = _to_canonical(content.pop("tokenizer"))
            return cls(tokenizer, ids=(padding, begin, end), **content)._checked()
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"not a vocabulary of an imported model, or damaged: {_one_line(error)}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON to `path`; if writing fails, an existing file is left unchanged.

        Raises:
          OSError: `path` cannot be written.
        """
        with replace_file(Path(path)) as file:
            file.write(f"{self.to_json()}\n".encode())


def _to_canonical(content: Any) -> str:
    """Returns JSON that is equal for equal contents, so that equal vocabularies are equal."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds the lone surrogate {text[error.start]!r} at index {error.start}, made of a byte that is not "
            "UTF-8: give the text in UTF-8"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Returns whether pieces are byte-level; raises ValueError unless they are, or are sentencepiece's."""
    decoder = json.dumps(content.get("decoder"))
    if "ByteLevel" in decoder:
        return True
    if "ByteFallback" in decoder:
        return False
    raise ValueError("it is neither byte-level nor one with byte fallback")


def _to_bytes(piece: str, is_byte_level: bool) -> bytes:
    if is_byte_level:
        return bytes(_BYTES[character] for character in piece) if _BYTES.keys() >= set(piece) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()
