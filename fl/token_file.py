"""The file of a token store: how it is written, and how it is read back.

It holds, in order: a magic line; the tokens; the index; the header; and a footer. The index has the offset of each
client's tokens, where each client's id stands, the place of each id (`fl.client_ids.places`), the SHA-256 of each
block of tokens, and the ids. The header is JSON: counts, options, statistics, the digest. The footer has the lengths
of index and header, and the SHA-256 of all that. Index and header are read and checked at the opening, a block of
tokens whenever it is read: cost and memory of a round follow from the cohort and not from the size of the file.

It is one file because replacing a file is atomic and replacing a folder is not: a reader sees the old store or the
new one, and keeps what it has open.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fl import near_ids
from fl.build_statistics import BuildStatistics
from fl.client_ids import ClientIds, places
from fl.near_ids import MergeIds
from fl.sources.base import Source
from privacy.files import private_opener

PAD = 0
BOS = 1
EOS = 2

_MAGIC = b"fedspeak tokens 3\n".ljust(64, b"\0")
_BLOCK = 1 << 12
_WRITTEN = 1 << 20
_FOOTER = struct.Struct("<QQ32s")  # length of the index, length of the header, SHA-256 of these and of both


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


class Content(NamedTuple):
    """An open file: header, int64 [clients + 1] offsets, ids, float64 [clients] places, and all tokens."""

    header: dict[str, Any]
    offsets: NDArray[np.int64]
    clients: ClientIds
    places: NDArray[np.float64]
    tokens: Tokens


class Tokens:
    """The tokens of an open file. Nothing stays in memory; a block's SHA-256 is checked at every reading."""

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype[Any], count: int, digests: bytes) -> None:
        self._path, self._descriptor, self._dtype, self._digests = path, descriptor, dtype, digests
        self._bytes = count * dtype.itemsize
        weakref.finalize(self, os.close, descriptor)

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Tokens [begin, end), uint16 or int32, read-only.

        Raises:
          OSError: the file cannot be read.
          ValueError: it was damaged there.
        """
        begin, end = begin * self._dtype.itemsize, end * self._dtype.itemsize
        first, last = begin // _BLOCK, -(-end // _BLOCK)
        start, size = first * _BLOCK, min(last * _BLOCK, self._bytes) - first * _BLOCK
        blocks = os.pread(self._descriptor, size, len(_MAGIC) + start)
        if _block_digests(blocks) != self._digests[32 * first : 32 * last]:
            raise ValueError(
                f"{self._path}: the token store is damaged (a SHA-256 differs); delete it to build it anew"
            )
        return np.frombuffer(blocks, self._dtype, (end - begin) // self._dtype.itemsize, begin - start)


def write(
    folder: Path,
    source: Source,
    vocabulary: Encoder,
    min_tokens: int,
    split_seed: int,
    merge_ids: MergeIds | None,
    inputs: str,
) -> None:
    """Writes the file `store` in `folder`: first all pieces as they come, then gathered by client.

    Raises:
      OSError: something cannot be read or written.
      ValueError: no client is left.
    """
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<i4")
    numbers: dict[str, int] = {}
    piece_clients, piece_sizes, piece_sentences = array("i"), array("q"), array("i")
    spool = folder / "pieces"
    with open(spool, "wb", opener=private_opener) as file:
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
    near = near_ids.near_equal(numbers, numbers)
    ids = list(numbers)
    del numbers  # a hundred megabytes for a million clients
    bad_rows = source.bad_rows
    statistics = BuildStatistics(
        bad_rows=bad_rows.total,
        examples=tuple(str(row) for row in bad_rows[:20]),
        suspicious_rows=bad_rows.suspicious,
        notes=tuple(bad_rows.notes),
        near_ids=sum(map(len, near)),
        near_groups=len(near),
        near_examples=tuple(" = ".join(map(ascii, group[:3])) for group in near[:3]),
        merged_ids=merge_ids is not None,
    )
    if not ids:
        raise ValueError(f"{source.description}: no client with text{statistics.left_out}")

    owner, size = np.frombuffer(piece_clients, np.intc), np.frombuffer(piece_sizes, np.int64)
    if statistics.merged_ids:
        ids, merged = _merged(ids)
        owner = merged[owner]
    total = np.bincount(owner, size, len(ids)).astype(np.int64) + 1
    sentences_of = np.bincount(owner, np.frombuffer(piece_sentences, np.intc), len(ids)).astype(np.int64)
    kept = np.array(sorted(np.flatnonzero(total >= min_tokens).tolist(), key=ids.__getitem__), np.int64)
    if not len(kept):
        raise ValueError(
            f"{source.description}: all {len(ids)} clients have fewer than {min_tokens} tokens; lower min_tokens"
            f"{statistics.left_out}"
        )
    statistics = replace(
        statistics,
        clients=len(kept),
        sentences=int(sentences_of[kept].sum()),
        tokens=int(total[kept].sum()),
        dropped_clients=len(ids) - len(kept),
        dropped_tokens=int(total.sum() - total[kept].sum()),
    )

    ends = np.cumsum(size)
    by_client = np.argsort(owner, kind="stable")
    bounds = _offsets(np.bincount(owner, minlength=len(ids)))

    def gathered(pieces: BinaryIO) -> Iterator[bytes]:
        for number in kept:
            yield np.array([BOS], dtype).tobytes()
            for piece in by_client[bounds[number] : bounds[number + 1]]:
                pieces.seek(int(ends[piece] - size[piece]) * dtype.itemsize)
                yield pieces.read(int(size[piece]) * dtype.itemsize)

    with open(spool, "rb", buffering=0) as pieces, open(folder / "store", "wb", opener=private_opener) as file:
        file.write(_MAGIC)
        digests = _write_blocks(file, gathered(pieces))
        described = {
            "clients": len(kept),
            "description": source.description,
            "dtype": dtype.str,
            "min_tokens": min_tokens,
            "vocabulary": vocabulary.digest,
        }
        others = {"inputs": inputs, "statistics": asdict(statistics)}
        index, header = _index([ids[number] for number in kept], total[kept], split_seed, digests, described, others)
        file.write(index)
        file.write(header)
        file.write(_footer(index, header))
        file.flush()
        os.fsync(file.fileno())


def _merged(ids: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The normalized ids, all different, and for each of `ids` the place of its normalized form among them."""
    places_of: dict[str, int] = {}
    merged = [places_of.setdefault(near_ids.normalized(client), len(places_of)) for client in ids]
    return list(places_of), np.array(merged, np.int64)


def _index(
    ids: list[str],
    sizes: NDArray[np.int64],
    split_seed: int,
    digests: bytes,
    described: dict[str, Any],
    others: dict[str, Any],
) -> tuple[bytes, bytes]:
    """The index and its header. The store's digest is of tokens, ids and what is `described`, of nothing else."""
    lengths = np.fromiter((len(client.encode()) for client in ids), np.int64, len(ids))
    parts = [_offsets(sizes).tobytes(), _offsets(lengths).tobytes(), digests, "".join(ids).encode()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    parts.insert(2, places(ids, split_seed).tobytes())
    header = json.dumps({**described, **others, "digest": digest.hexdigest()}, sort_keys=True)
    return b"".join(parts), header.encode()


def _footer(index: bytes, header: bytes) -> bytes:
    lengths = struct.pack("<QQ", len(index), len(header))
    digest = hashlib.sha256(lengths)
    digest.update(index)
    digest.update(header)
    return lengths + digest.digest()


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where things of these sizes begin that lie one after another, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")


def _write_blocks(file: BinaryIO, parts: Iterable[bytes]) -> bytes:
    """Writes all parts; returns the SHA-256 of each block."""
    digests, rest = bytearray(), bytearray()
    for part in parts:
        rest += part
        if len(rest) >= _WRITTEN:
            whole = bytes(rest[: len(rest) - len(rest) % _BLOCK])
            digests += _block_digests(whole)
            file.write(whole)
            del rest[: len(whole)]
    file.write(rest)
    return bytes(digests + _block_digests(bytes(rest)))


def _block_digests(blocks: bytes) -> bytes:
    return b"".join(hashlib.sha256(blocks[begin : begin + _BLOCK]).digest() for begin in range(0, len(blocks), _BLOCK))


def read(path: Path) -> Content:
    """Opens the file at `path`: reads its index, of some 30 bytes a client and 1/128 of the tokens, and checks it.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no token store, or its index is damaged, or it is cut short.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no token store here; build it first") from None
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not a token store of this version")
        damaged = f"{path}: the token store is damaged or cut short; build it anew"
        end = os.fstat(file.fileno()).st_size - _FOOTER.size
        if end < len(_MAGIC):
            raise ValueError(damaged)
        file.seek(end)
        footer = file.read()
        length, header_length, _ = _FOOTER.unpack(footer)
        begin = end - header_length - length
        if begin < len(_MAGIC):
            raise ValueError(damaged)
        file.seek(begin)
        index, header = file.read(length), file.read(header_length)
        if _footer(index, header) != footer:
            raise ValueError(damaged)

        # All that follows is as it was written: the checksum holds.
        facts = json.loads(header)
        clients, dtype = facts["clients"], np.dtype(facts["dtype"])
        numbers = np.frombuffer(index, "<i8", 2 * (clients + 1))
        offsets, bounds = numbers[: clients + 1], numbers[clients + 1 :]
        placed = np.frombuffer(index, "<f8", clients, numbers.nbytes)
        ids = length - int(bounds[-1])
        tokens = int(offsets[-1])
        if begin != len(_MAGIC) + tokens * dtype.itemsize:
            raise ValueError(damaged)
        return Content(
            facts,
            offsets,
            ClientIds(bounds[:-1], bounds[1:], index[ids:]),
            placed,
            Tokens(path, os.dup(file.fileno()), dtype, tokens, index[numbers.nbytes + placed.nbytes : ids]),
        )
