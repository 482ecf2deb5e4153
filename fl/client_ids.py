"""Holds millions of client ids in little memory, and maps each id to a number in [0, 1) by a keyed hash."""

from __future__ import annotations

import hashlib
import operator
import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class ClientIds(Sequence[str]):
    """Holds distinct ids as an immutable sorted sequence, which equals any other sequence of the same strings.

    It takes 16 bytes per id plus the id in UTF-8. An id is decoded each time it is read.

    Args:
      begins: int64 [n], offset in `utf8` at which each id begins.
      ends: int64 [n], offset at which each id ends.
      utf8: the ids in UTF-8. (Sorted as bytes, ids have the same order as sorted as strings.)
    """

    def __init__(self, begins: NDArray[np.int64], ends: NDArray[np.int64], utf8: bytes) -> None:
        self._begins, self._ends, self._utf8 = begins, ends, utf8

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[str, ...]: ...
    def __getitem__(self, number: int | slice) -> str | tuple[str, ...]:
        positions = range(len(self))[number]
        if isinstance(positions, range):
            return tuple(self[position] for position in positions)
        # A ledger keeps the ids of all its rounds. Interning keeps one copy of each id in memory.
        return sys.intern(self._encoded(positions).decode())

    def __contains__(self, client: object) -> bool:
        return isinstance(client, str) and self.find(client) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{len(self)} client ids>"

    def find(self, client: str) -> int | None:
        """Returns the position of `client`, found by binary search, or None if it is not in the sequence."""
        encoded = client.encode(errors="surrogatepass")
        position = bisect_left(range(len(self)), encoded, key=self._encoded)
        return position if position < len(self) and self._encoded(position) == encoded else None

    def take(self, numbers: NDArray[np.int64]) -> ClientIds:
        """Returns the ids at the positions `numbers` (int64 [m], strictly increasing) without copying their text."""
        return ClientIds(self._begins[numbers], self._ends[numbers], self._utf8)

    def _encoded(self, number: int) -> bytes:
        return self._utf8[self._begins[number] : self._ends[number]]


def places(ids: Iterable[str], seed: int) -> NDArray[np.float64]:
    """Returns a keyed hash of each id, independent of all other ids: float64 [n] in [0, 1), multiples of 2^-53.

    Args:
      ids: client ids.
      seed: key of the hash, in [-2^127, 2^127).

    Raises:
      ValueError: the seed is outside that range.
    """
    if not -(1 << 127) <= seed < 1 << 127:
        raise ValueError(f"split_seed = {seed} does not fit 128 bits: give an integer from -2^127 to 2^127 - 1")
    key = seed.to_bytes(16, "big", signed=True)
    keyed_hash = hashlib.blake2b(key=key, digest_size=8, person=b"fedspeak split")

    def hash_id(client: str) -> int:
        state = keyed_hash.copy()
        state.update(client.encode())
        return int.from_bytes(state.digest(), "big") >> 11

    return np.fromiter(map(hash_id, ids), np.float64) * 2.0**-53
