"""The file of a token store: how it is written, and how it is mapped back.

It holds, in order: a magic line; the length of the header; the header (JSON: clients, statistics, digests);
the offset of each client's tokens; the tokens; and the SHA-256 of all that. It is one file because replacing
a file is atomic and replacing a folder is not: a reader sees the old store or the new one, and keeps what it
has mapped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fl.sources.base import Source

PAD = 0
BOS = 1
EOS = 2

_MAGIC = b"fedspeak tokens 1\n"
_ALIGNMENT = 64
_COPIED = 1 << 20


class Encoder(Protocol):
    """What the store needs of a vocabulary (ids 0, 1 and 2 are padding, begin and end of sentence)."""

    @property
    def size(self) -> int:
        """Number of ids."""

    @property
    def digest(self) -> str:
        """Hex digest: equal digests, equal encodings."""

    def encode(self, text: str) -> list[int]:
        """Ids of a sentence, without begin or end."""


@dataclass(frozen=True)
class BuildStatistics:
    """What came into a store and what did not.

    Attributes:
      clients: clients in the store.
      sentences: their sentences.
      tokens: their tokens, begin and ends of sentences included.
      dropped_clients: clients left out because they had fewer than `min_tokens` tokens.
      dropped_tokens: the tokens of those clients.
      bad_rows: rows of the source that could not be used.
      examples: the first of them, "file:line: reason".
    """

    clients: int
    sentences: int
    tokens: int
    dropped_clients: int
    dropped_tokens: int
    bad_rows: int
    examples: tuple[str, ...]


class Content(NamedTuple):
    """A mapped file: header, int64 [clients + 1] offsets, and all tokens, uint16 or int32 [sum]."""

    header: dict[str, Any]
    offsets: NDArray[np.int64]
    tokens: NDArray[Any]


def write(folder: Path, source: Source, vocabulary: Encoder, min_tokens: int, inputs: str) -> None:
    """Writes the file `store` in `folder`: first all pieces as they come, then gathered by client.

    Raises:
      OSError: something cannot be read or written.
      ValueError: no client is left.
    """
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<i4")
    numbers: dict[str, int] = {}
    piece_clients, piece_sizes, piece_sentences = array("i"), array("q"), array("i")
    spool = folder / "pieces"
    with open(spool, "wb") as file:
        for client, sentences in source:
            tokens: list[int] = []
            for sentence in sentences:
                tokens += vocabulary.encode(sentence)
                tokens.append(EOS)
            if not tokens:
                continue
            file.write(np.array(tokens, dtype).tobytes())
            piece_clients.append(numbers.setdefault(client, len(numbers)))
            piece_sizes.append(len(tokens))
            piece_sentences.append(len(sentences))
    bad_rows = source.bad_rows
    if not numbers:
        first = f", the first: {bad_rows[0]}" if bad_rows else ""
        raise ValueError(f"{source.description}: no client with text ({bad_rows.total} bad rows{first})")

    owner = np.array(piece_clients, np.int64)
    size = np.array(piece_sizes, np.int64)
    total = np.bincount(owner, size, len(numbers)).astype(np.int64) + 1
    sentences_of = np.bincount(owner, piece_sentences, len(numbers)).astype(np.int64)
    ids = list(numbers)
    kept = sorted((number for number in range(len(ids)) if total[number] >= min_tokens), key=ids.__getitem__)
    if not kept:
        raise ValueError(
            f"{source.description}: all {len(ids)} clients have fewer than {min_tokens} tokens; lower min_tokens"
        )
    statistics = BuildStatistics(
        clients=len(kept),
        sentences=int(sentences_of[kept].sum()),
        tokens=int(total[kept].sum()),
        dropped_clients=len(ids) - len(kept),
        dropped_tokens=int(total.sum() - total[kept].sum()),
        bad_rows=bad_rows.total,
        examples=tuple(str(row) for row in bad_rows[:20]),
    )

    begins = np.concatenate([[0], np.cumsum(size)[:-1]])
    by_client = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[by_client], np.arange(len(ids) + 1))
    pieces = np.memmap(spool, dtype, "r")

    def gathered() -> Iterator[bytes]:
        for number in kept:
            yield np.array([BOS], dtype).tobytes()
            for piece in by_client[bounds[number] : bounds[number + 1]]:
                yield pieces[begins[piece] : begins[piece] + size[piece]].tobytes()

    clients = [ids[number] for number in kept]
    content = hashlib.sha256()
    for part in gathered():
        content.update(part)
    header = {
        "clients": clients,
        "description": source.description,
        "dtype": dtype.str,
        "inputs": inputs,
        "min_tokens": min_tokens,
        "statistics": asdict(statistics),
        "tokens": content.hexdigest(),
        "vocabulary": vocabulary.digest,
    }
    offsets = np.concatenate([[0], np.cumsum(total[kept])]).astype("<i8")
    with open(folder / "store", "wb") as file:
        output = _Hashing(file)
        text = json.dumps(header, sort_keys=True).encode()
        output.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        output.write(b"\0" * (-output.position % _ALIGNMENT))
        output.write(offsets.tobytes())
        for part in gathered():
            output.write(part)
        file.write(output.digest.digest())
        file.flush()
        os.fsync(file.fileno())


class _Hashing:
    """Writes to a file and keeps the position and the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.position += len(data)
        self.digest.update(data)


def read(path: Path) -> Content:
    """Maps the file at `path` after checking its SHA-256, which reads all of it once.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no token store, or it is damaged or cut short.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no token store here; build it first") from None
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not a token store of this version")
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    trailer = hashlib.sha256().digest_size
    body = mapped[:-trailer]
    digest = hashlib.sha256()
    for begin in range(0, len(body), _COPIED):
        digest.update(body[begin : begin + _COPIED].data)
    if digest.digest() != mapped[-trailer:].tobytes():
        raise ValueError(f"{path}: the token store is damaged or cut short (its SHA-256 differs); build it anew")

    # All that follows is as it was written: the checksum holds.
    begin = len(_MAGIC) + 8
    end = begin + int.from_bytes(body[len(_MAGIC) : begin].tobytes(), "little")
    header = json.loads(body[begin:end].tobytes())
    begin = end + -end % _ALIGNMENT
    end = begin + 8 * (len(header["clients"]) + 1)
    return Content(header, body[begin:end].view("<i8"), body[end:].view(header["dtype"]))
