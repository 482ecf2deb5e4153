"""Stores clients' text as tokens in one file on disk.

The file is built once and used again as long as its inputs are unchanged. The file's index is checked whenever the file
is opened, and tokens are checked whenever they are read.
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

# Version of the rules for reading rows from sources and for comparing client ids. A store that was built by other rules
# may lack clients or warnings, so it is built anew.
_READING_RULES = 2


@dataclass(frozen=True)
class TokenStore:
    """Gives read-only access to the tokens of clients; `TokenStore.open` and `TokenStore.build` return it.

    Attributes:
      clients: client ids, sorted; the position of a client in them is its index in the store.
      places: float64 [clients] in [0, 1), the keyed hash of each id that decides whether a client is a training,
        validation or test client (`fl.client_ids.places`).
      num_tokens: int64 [clients], number of tokens of each client, begin and ends of sentences included.
      digest: SHA-256 (hex) of the client ids, their tokens, the vocabulary's digest, `min_tokens` and the source's
        description.
      vocabulary_digest: digest of the vocabulary that encoded the tokens.
      statistics: counts of what the build stored and what it left out.
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
        """Reads a client's tokens, `bos s1 eos s2 eos …`, from disk.

        Args:
          client: index of the client, in [0, number of clients).

        Returns:
          uint16 or int32 [num_tokens[client]], read-only.

        Raises:
          IndexError: `client` is outside [0, number of clients).
          OSError: the file cannot be read.
          ValueError: the file is damaged where these tokens stand.
        """
        if not 0 <= client < len(self.clients):
            raise IndexError(f"client {client} is outside [0, {len(self.clients)}): give the index of a client")
        return self._tokens.read(int(self._offsets[client]), int(self._offsets[client + 1]))

    def index(self, client_id: str) -> int:
        """Returns the index of a client, which `tokens` takes.

        Raises:
          ValueError: the store has no such client.
        """
        position = self.clients.find(client_id)
        if position is None:
            raise ValueError(f"no client {client_id!r} in the token store")
        return position

    @staticmethod
    def open(path: str | os.PathLike[str]) -> TokenStore:
        """Opens a store and checks its index, which takes about 30 bytes per client plus 1/128 of the tokens' size.

        Raises:
          OSError: `path` cannot be read.
          ValueError: `path` is not a token store, its index is damaged, or the file is cut short.
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

        The inputs are the source's fingerprint, the vocabulary's digest and the options. A store with a damaged index
        is rebuilt. A second process that builds the same store at the same time waits for the first and uses its
        result. If the build fails, for example because the disk is full, the old store stays as it was. Tokens are
        written to disk as they are read. Memory holds only the client ids and about 50 bytes per piece of the source.
        (A piece is one pair that the source yields, such as a row of a table or a file of a folder.)

        Args:
          path: file to write; its folder is created if needed.
          source: source of the clients' text.
          vocabulary: vocabulary that encodes the text.
          min_tokens: minimum number of tokens of a client, begin and end tokens included, >= 2. Clients with fewer are
            left out, and `statistics` counts them.
          split_seed: key of the hash that splits clients into training, validation and test (`places`), a signed
            128-bit integer.
          merge_ids: "normalize" replaces each client id by its normalized form (`fl.near_ids`), so that near-equal ids
            become one client with all their text. None keeps ids as they are, and the statistics count near-equal ids.

        Raises:
          OSError: the source cannot be read or the store cannot be written.
          ValueError: an option is out of range, a strict source has a bad row, or no client is left.
        """
        if not min_tokens >= 2:
            raise ValueError(
                f"min_tokens = {min_tokens}: must be at least 2, because a client with fewer tokens has no target"
            )
        if merge_ids not in (None, *typing.get_args(MergeIds)):
            raise ValueError(f'merge_ids = {merge_ids!r}: give "normalize", or None to keep ids as they are')
        target = Path(path)
        options = {
            "reading_rules": _READING_RULES,
            "min_tokens": min_tokens,
            "split_seed": split_seed,
            "merge_ids": merge_ids,
            "vocabulary": vocabulary.digest,
            "size": vocabulary.size,
        }
        inputs = _sha256_json({**options, "source": source.fingerprint()})
        if store := _open_reusable(target, inputs, source.bad_rows.strict):
            return store
        target.parent.mkdir(parents=True, exist_ok=True)
        with _hold_lock(target.with_name(f".{target.name}.lock")):
            if store := _open_reusable(target, inputs, source.bad_rows.strict):
                return store
            folder = target.with_name(f".{target.name}.building")
            # We hold the lock, so a folder that is here was left by a build that was killed.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                token_file.write(folder, source, vocabulary, min_tokens, split_seed, merge_ids, inputs)
                os.replace(folder / "store", target)
            except OSError as error:
                # The error of a failed write, as on a full disk, does not name the file.
                if error.filename is not None:
                    raise
                raise OSError(error.errno, f"{error.strerror} (writing the token store)", str(target)) from None
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            _sync_folder(target.parent)
        return _open(target)


def sequences(tokens: NDArray[Any], length: int, limit: int | None = None) -> NDArray[np.int32]:
    """Cuts tokens into training sequences such that each target (every token but the first) is in exactly one row.

    Args:
      tokens: int [n], a client's tokens.
      length: number of targets in a row, >= 1.
      limit: maximum number of rows, >= 0; later targets are dropped. None keeps all.

    Returns:
      int32 [rows, length + 1]. Each row begins `length` tokens after the one before; the last row ends with padding
      (0). There are no rows if n < 2.

    Raises:
      ValueError: `length` < 1, `limit` < 0, or `tokens` is not one-dimensional.
    """
    if not length >= 1:
        raise ValueError(f"sequence length = {length}: must be at least 1")
    if limit is not None and not limit >= 0:
        raise ValueError(f"sequence limit = {limit}: must be at least 0")
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}: give an array of one dimension")
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


def _open_reusable(path: Path, inputs: str, strict: bool) -> TokenStore | None:
    """Opens the store at `path`; returns None unless it is intact, built from `inputs` and acceptable to the source.

    A strict source does not accept a store that was built with bad or suspicious rows.
    """
    try:
        store = _open(path)
    except (FileNotFoundError, ValueError):
        return None
    # For a strict source, a build that reads such rows again raises ValueError at the first of them.
    refused_rows = store.statistics.bad_rows + store.statistics.suspicious_rows
    usable = store._inputs == inputs and not (strict and refused_rows)
    return store if usable else None


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock on the file `path`, so that one process builds at a time; the kernel frees it if the holder dies."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The last holder deleted the file whose lock we waited for: try again with the file that is there now.
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
