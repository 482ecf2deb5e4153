"""Defines what every vocabulary offers, and reads a vocabulary of any kind from a file."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from models.vocabulary import Vocabulary


class AnyVocabulary(Protocol):
    """Defines what `Vocabulary` and `PretrainedVocabulary` have in common.

    The ids are integers from 0; 0 is padding, 1 the beginning of a text and 2 the end of a sentence. In imported
    vocabularies without a begin token, 1 is unused and a text begins with 2.
    """

    @property
    def size(self) -> int:
        """Returns the number of ids, special ids included."""

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the canonical JSON, in hex: equal digests mean equal vocabularies."""

    @property
    def start(self) -> int:
        """Returns the id that every text begins with, 1 or 2."""

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """Returns the bytes of each id; special ids have none."""

    @property
    def characters(self) -> Any:
        """Returns the number of code points that begin in the piece of each id, int32 `[size]`."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without begin and end tokens. Raises ValueError if it holds a lone surrogate."""

    def prompt(self, text: str) -> list[int]:
        """Returns the ids, at least one, that a model reads before it continues `text`."""

    def document(self, text: str) -> list[int]:
        """Returns the ids of a whole text as models are trained on it, the first of which begins it."""

    def chat(self, message: str) -> list[int]:
        """Returns the ids that a model reads before it answers `message`. Raises ValueError without a chat template."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Returns the bytes of `ids`. Raises ValueError if an id is outside [0, size)."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    def to_json(self) -> str:
        """Returns the vocabulary as canonical JSON on one line."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON to `path`; if writing fails, an existing file is left unchanged."""


def from_json(text: str) -> AnyVocabulary:
    """Builds a vocabulary from the JSON that its `to_json` returned.

    Raises:
      ValueError: `text` is not a vocabulary.
      ModuleNotFoundError: it is that of an imported model, and the extra `pretrained` is not installed.
    """
    from models.pretrained.tokenizer import FORMAT, PretrainedVocabulary

    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not a vocabulary: the text is not JSON") from None
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return PretrainedVocabulary.from_json(text)
    return Vocabulary.from_json(text)


def load(path: str | os.PathLike[str]) -> AnyVocabulary:
    """Reads a vocabulary that its `save` wrote.

    Raises:
      OSError: `path` cannot be read.
      ValueError: `path` is not a vocabulary.
      ModuleNotFoundError: as for `from_json`.
    """
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a vocabulary: the file is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
