"""Clients' text as tokens in one file that stays on the disk.

It is built once, re-used while nothing changed, and checked: its index at every opening, tokens at every reading.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl import token_file
from fl.build_statistics import BuildStatistics
from fl.client_ids import ClientIds
from fl.near_ids import MergeIds
from fl.sources.base import Source
from fl.token_file import BOS, EOS, PAD, Encoder

__all__ = ["BOS", "EOS", "PAD", "BuildStatistics", "Encoder", "TokenStore", "sequences"]


@dataclass(frozen=True)
class TokenStore:
    """Clients' tokens, read-only. Made by `TokenStore.open` and `TokenStore.build`.

    Attributes:
      clients: client ids, sorted.
      places: float64 [clients], the keyed hash of each id that splits the clients (`fl.client_ids.places`).
      num_tokens: int64 [clients], tokens of each client.
      digest: SHA-256 (hex) of clients, tokens, vocabulary, options and the source's description.
      vocabulary_digest: digest of the vocabulary that the tokens are of.
      statistics: of the build.
    """

    clients: ClientIds
    places: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    digest: str
    vocabulary_digest: str
    statistics: BuildStatistics
    _inputs: str = field(repr=False)
    _offsets: NDArray[np.int64] = field(repr=False)
    _tokens: token_file.Tokens = field(repr=False)

    def tokens(self, client: int) -> NDArray[Any]:
        """Read-only, uint16 or int32 [num_tokens[client]]: `bos s1 eos s2 eos …`. Read from the disk at every call.

        Raises:
          IndexError: `client` is outside [0, number of clients).
          OSError: the file cannot be read.
          ValueError: the file was damaged there.
        """
        if not 0 <= client < len(self.clients):
            raise IndexError(f"client {client} is outside the store's {len(self.clients)}")
        return self._tokens.read(int(self._offsets[client]), int(self._offsets[client + 1]))

    def index(self, client_id: str) -> int:
        """Position of a client in stored order.

        Raises:
          ValueError: the store has no such client.
        """
        position = self.clients.find(client_id)
        if position is None:
            raise ValueError(f"no client {client_id!r} in the token store")
        return position

    @staticmethod
    def open(path: str | os.PathLike[str]) -> TokenStore:
        """Opens a store: reads and checks its index, some 30 bytes a client and 1/128 of the tokens.

        Raises:
          OSError: `path` cannot be read.
          ValueError: `path` is no token store, or its index is damaged, or it is cut short.
        """
        return _open(Path(path))

    @staticmethod
    def build(
        path: str | os.PathLike[str],
        source: Source,
        vocabulary: Encoder,
        *,
        min_tokens: int = 2,
        split_seed: int = 0,
        merge_ids: MergeIds | None = None,
    ) -> TokenStore:
        """Encodes `source` into the store at `path`, unless one is there that was built from the same inputs.

        The inputs are the source's fingerprint, the vocabulary's digest and the options; a store with a damaged
        index is built anew. A second process that builds the same store at the same time waits for the first and takes
        its result; if anything fails, the disk full for instance, the old store stays as it was. Tokens go to
        disk as they come: memory holds the client ids and 50 bytes a piece of the source (a piece is a row of
        a table, or a whole file).

        Args:
          path: file to write; its folder is made if needed.
          source: clients' text.
          vocabulary: how to encode it.
          min_tokens: clients with fewer tokens (begin and ends included) are left out, and counted.
          split_seed: key of `places`, any integer of at most 128 bits.
          merge_ids: "normalize" gives each client the normalized form of its id (`fl.near_ids`), so that near-equal
            ids become one client, with all their text; None keeps ids as they are, and the statistics count
            near-equal ones.

        Raises:
          OSError: something cannot be read or written.
          ValueError: a bad option, a bad row of a strict source, or no client left.
        """
        if not min_tokens >= 2:
            raise ValueError(f"min_tokens is {min_tokens}; a client needs at least 2 tokens to have a target")
        if merge_ids not in (None, *typing.get_args(MergeIds)):
            raise ValueError(f'merge_ids is {merge_ids!r}: give "normalize", or None to keep ids as they are')
        target = Path(path)
        options = {
            "min_tokens": min_tokens,
            "split_seed": split_seed,
            "merge_ids": merge_ids,
            "vocabulary": vocabulary.digest,
            "size": vocabulary.size,
        }
        inputs = _sha256_json({**options, "source": source.fingerprint()})
        if store := _reusable(target, inputs, source.bad_rows.strict):
            return store
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if store := _reusable(target, inputs, source.bad_rows.strict):
                return store
            folder = target.with_name(f".{target.name}.building")
            # The lock is ours, so whoever left this is gone.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                token_file.write(folder, source, vocabulary, min_tokens, split_seed, merge_ids, inputs)
                os.replace(folder / "store", target)
            except OSError as error:
                # A write that fails (disk full) does not say to which file.
                if error.filename is not None:
                    raise
                raise OSError(error.errno, f"{error.strerror} (writing the token store)", str(target)) from None
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            _sync_folder(target.parent)
        return _open(target)


def sequences(tokens: NDArray[Any], length: int, limit: int | None = None) -> NDArray[np.int32]:
    """Training windows: each target (every token but the first) stands in exactly one row.

    Args:
      tokens: int [n], a client's tokens.
      length: targets a row, at least 1.
      limit: most rows, the first ones; all if None.

    Returns:
      int32 [rows, length + 1] at stride `length`, the last row filled up with padding (0); no row if n < 2.

    Raises:
      ValueError: `length` < 1, `limit` < 0, or `tokens` is not one-dimensional.
    """
    if not length >= 1:
        raise ValueError(f"sequence length {length} is below 1")
    if limit is not None and not limit >= 0:
        raise ValueError(f"sequence limit {limit} is below 0")
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}, not one dimension")
    rows = max(-(-(len(tokens) - 1) // length), 0)
    if limit is not None:
        rows = min(rows, limit)
    if rows == 0:
        return np.zeros((0, length + 1), np.int32)
    padded = np.zeros(rows * length + 1, np.int32)
    used = tokens[: len(padded)]
    padded[: len(used)] = used
    return np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length].copy()


def _open(path: Path) -> TokenStore:
    content = token_file.read(path)
    header = content.header
    return TokenStore(
        clients=content.clients,
        places=content.places,
        num_tokens=np.diff(content.offsets),
        digest=header["digest"],
        vocabulary_digest=header["vocabulary"],
        statistics=BuildStatistics.from_dict(header["statistics"]),
        _inputs=header["inputs"],
        _offsets=content.offsets,
        _tokens=content.tokens,
    )


def _reusable(path: Path, inputs: str, strict: bool) -> TokenStore | None:
    """The store at `path` if it is whole, built from `inputs`, and good enough for a strict source."""
    try:
        store = _open(path)
    except (FileNotFoundError, ValueError):
        return None
    # Built before without `strict`: reading anew raises at the first row that is bad or suspicious.
    refused = store.statistics.bad_rows + store.statistics.suspicious_rows
    usable = store._inputs == inputs and not (strict and refused)
    return store if usable else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`: one builder at a time. The kernel frees it when its holder dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Its last holder has deleted the file that we waited for: take the one that stands there now.
            if not _is_at(descriptor, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256_json(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
