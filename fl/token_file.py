"""Writes and reads the file of a token store.

The file holds, in this order: a magic line, the tokens, the index, the header and a footer.

* The index holds the offset of each client's tokens, the offset of each client's id, the keyed hash of each id
  (`fl.client_ids.places`), the SHA-256 of each block of 4 KiB of tokens, and the ids.
* The header is JSON with counts, options, statistics and the digest.
* The footer holds the lengths of index and header, and the SHA-256 of these lengths, the index and the header.

Index and header are read and checked when the file is opened, and a block of tokens is checked whenever it is read.
The time and memory of a round therefore depend on the cohort, not on the size of the file.

The store is one file because a file can be replaced atomically and a folder cannot. A process that opens the store sees
either the old file or the new one. A process that has the old file open keeps reading that file.
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
_BLOCK_BYTES = 1 << 12
_WRITE_BYTES = 1 << 20
_FOOTER = struct.Struct("<QQ32s")  # index length, header length, SHA-256 of the lengths, the index and the header


class Encoder(Protocol):
    """Describes what a token store needs of a vocabulary; ids 0 and 2 are padding and the end of a sentence."""

    @property
    def size(self) -> int:
        """Returns the number of ids: `encode` returns ids below it."""

    @property
    def digest(self) -> str:
        """Returns a hex digest; vocabularies with equal digests encode every text in the same way."""

    @property
    def start(self) -> int:
        """Returns the id that every client's text begins with: 1, or 2 in a vocabulary without a begin token."""

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a sentence, without those of begin and end of sentence."""


class Content(NamedTuple):
    """Holds the content of an open file.

    Attributes:
      header: the facts in the JSON header.
      offsets: int64 [clients + 1]; the tokens of client i are those from offsets[i] to offsets[i + 1].
      clients: client ids, sorted.
      places: float64 [clients] in [0, 1), keyed hash of each id.
      tokens: object that reads the tokens from disk.
    """

    header: dict[str, Any]
    offsets: NDArray[np.int64]
    clients: ClientIds
    places: NDArray[np.float64]
    tokens: Tokens


class Tokens:
    """Reads the tokens of an open file, which stay on disk.

    Every reading checks the SHA-256 of the blocks that it reads. The file descriptor is closed when the object is
    destroyed.
    """

    def __init__(self, path: Path, descriptor: int, dtype: np.dtype[Any], count: int, digests: bytes) -> None:
        self._path, self._descriptor, self._dtype, self._digests = path, descriptor, dtype, digests
        self._bytes = count * dtype.itemsize
        weakref.finalize(self, os.close, descriptor)

    def read(self, begin: int, end: int) -> NDArray[Any]:
        """Returns tokens [begin, end), uint16 or int32, read-only.

        Raises:
          OSError: the file cannot be read.
          ValueError: a block that holds some of them is damaged.
        """
        begin, end = begin * self._dtype.itemsize, end * self._dtype.itemsize
        first, last = begin // _BLOCK_BYTES, -(-end // _BLOCK_BYTES)
        start = first * _BLOCK_BYTES
        size = min(last * _BLOCK_BYTES, self._bytes) - start
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
    """Writes the file `store` in `folder`.

    A first pass writes the tokens of all pieces to a temporary file in the order of the source. A second pass copies
    them from there to the store, client by client.

    Args:
      folder: folder that exists; the temporary file `pieces` is left in it.
      source: source of the clients' text.
      vocabulary: vocabulary that encodes the text.
      min_tokens: clients with fewer tokens (begin and ends of sentences included) are left out and counted.
      split_seed: key of the hash of each id.
      merge_ids: "normalize" joins clients whose ids have the same normalized form; None joins none.
      inputs: digest of the inputs of the build, which the header keeps.

    Raises:
      OSError: the source cannot be read or a file cannot be written.
      ValueError: a strict source has a bad row, or no client is left.
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
    near_groups = near_ids.near_equal(numbers, numbers)
    ids = list(numbers)
    del numbers  # it takes about a hundred megabytes for a million clients
    bad_rows = source.bad_rows
    statistics = BuildStatistics(
        bad_rows=bad_rows.total,
        examples=tuple(str(row) for row in bad_rows[:20]),
        suspicious_rows=bad_rows.suspicious,
        notes=tuple(bad_rows.notes),
        near_ids=sum(map(len, near_groups)),
        near_groups=len(near_groups),
        near_examples=tuple(" = ".join(map(ascii, group[:3])) for group in near_groups[:3]),
        merged_ids=merge_ids is not None,
    )
    if not ids:
        raise ValueError(f"{source.description}: no client with text{statistics.left_out}")

    owner, size = np.frombuffer(piece_clients, np.intc), np.frombuffer(piece_sizes, np.int64)
    if statistics.merged_ids:
        ids, merged_numbers = _normalize_ids(ids)
        owner = merged_numbers[owner]
    total = np.bincount(owner, size, len(ids)).astype(np.int64) + 1
    sentences_of = np.bincount(owner, np.frombuffer(piece_sentences, np.intc), len(ids)).astype(np.int64)
    kept = np.array(sorted(np.flatnonzero(total >= min_tokens).tolist(), key=ids.__getitem__), np.int64)
    if not len(kept):
        raise ValueError(
            f"{source.description}: all {len(ids)} clients have fewer than min_tokens = {min_tokens} tokens: lower it "
            f"(at least 2){statistics.left_out}"
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

    def tokens_by_client(pieces: BinaryIO) -> Iterator[bytes]:
        for number in kept:
            yield np.array([vocabulary.start], dtype).tobytes()
            for piece in by_client[bounds[number] : bounds[number + 1]]:
                pieces.seek(int(ends[piece] - size[piece]) * dtype.itemsize)
                yield pieces.read(int(size[piece]) * dtype.itemsize)

    with open(spool, "rb", buffering=0) as pieces, open(folder / "store", "wb", opener=private_opener) as file:
        file.write(_MAGIC)
        digests = _write_blocks(file, tokens_by_client(pieces))
        digested_facts = {
            "clients": len(kept),
            "description": source.description,
            "dtype": dtype.str,
            "min_tokens": min_tokens,
            "vocabulary": vocabulary.digest,
        }
        other_facts = {"inputs": inputs, "statistics": asdict(statistics)}
        kept_ids = [ids[number] for number in kept]
        index, header = _build_index(kept_ids, total[kept], split_seed, digests, digested_facts, other_facts)
        file.write(index)
        file.write(header)
        file.write(_build_footer(index, header))
        file.flush()
        os.fsync(file.fileno())


def _normalize_ids(ids: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Returns the distinct normalized ids, and for each of `ids` the position of its normalized form among them."""
    positions: dict[str, int] = {}
    merged = [positions.setdefault(near_ids.normalized(client), len(positions)) for client in ids]
    return list(positions), np.array(merged, np.int64)


def _build_index(
    ids: list[str],
    sizes: NDArray[np.int64],
    split_seed: int,
    digests: bytes,
    digested_facts: dict[str, Any],
    other_facts: dict[str, Any],
) -> tuple[bytes, bytes]:
    """Returns the index and the header. The store's digest covers the tokens, the ids and `digested_facts` alone."""
    lengths = np.fromiter((len(client.encode()) for client in ids), np.int64, len(ids))
    parts = [_offsets(sizes).tobytes(), _offsets(lengths).tobytes(), digests, "".join(ids).encode()]
    digest = hashlib.sha256(json.dumps(digested_facts, sort_keys=True).encode())
    for part in parts:
        digest.update(part)
    parts.insert(2, places(ids, split_seed).tobytes())
    header = json.dumps({**digested_facts, **other_facts, "digest": digest.hexdigest()}, sort_keys=True)
    return b"".join(parts), header.encode()


def _build_footer(index: bytes, header: bytes) -> bytes:
    lengths = struct.pack("<QQ", len(index), len(header))
    digest = hashlib.sha256(lengths)
    digest.update(index)
    digest.update(header)
    return lengths + digest.digest()


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns [0, sizes[0], sizes[0] + sizes[1], …]: where each adjacent item begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")


def _write_blocks(file: BinaryIO, parts: Iterable[bytes]) -> bytes:
    """Writes all parts one after another and returns the SHA-256 digests of their blocks, joined."""
    digests, rest = bytearray(), bytearray()
    for part in parts:
        rest += part
        if len(rest) >= _WRITE_BYTES:
            whole = bytes(rest[: len(rest) - len(rest) % _BLOCK_BYTES])
            digests += _block_digests(whole)
            file.write(whole)
            del rest[: len(whole)]
    file.write(rest)
    return bytes(digests + _block_digests(bytes(rest)))


def _block_digests(blocks: bytes) -> bytes:
    begins = range(0, len(blocks), _BLOCK_BYTES)
    return b"".join(hashlib.sha256(blocks[begin : begin + _BLOCK_BYTES]).digest() for begin in begins)


def read(path: Path) -> Content:
    """Opens the file at `path`; reads and checks its index and header.

    They take about 30 bytes per client and 1/128 of the size of the tokens.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not a token store of this version, its index is damaged, or it is cut short.
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no token store here; build it first") from None
    with file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not a token store of this version; build it again")
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
        if _build_footer(index, header) != footer:
            raise ValueError(damaged)

        # The checksum holds, so index and header are as they were written.
        facts = json.loads(header)
        clients, dtype = facts["clients"], np.dtype(facts["dtype"])
        numbers = np.frombuffer(index, "<i8", 2 * (clients + 1))
        offsets, bounds = numbers[: clients + 1], numbers[clients + 1 :]
        place_values = np.frombuffer(index, "<f8", clients, numbers.nbytes)
        ids = length - int(bounds[-1])
        tokens = int(offsets[-1])
        if begin != len(_MAGIC) + tokens * dtype.itemsize:
            raise ValueError(damaged)
        return Content(
            facts,
            offsets,
            ClientIds(bounds[:-1], bounds[1:], index[ids:]),
            place_values,
            Tokens(path, os.dup(file.fileno()), dtype, tokens, index[numbers.nbytes + place_values.nbytes : ids]),
        )
