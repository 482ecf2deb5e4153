"""Client ids by the million: kept as bytes, decoded one at a time, placed in [0, 1) by a keyed hash."""

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
    """Sorted ids, all different. Takes 16 bytes an id and its UTF-8; equals any sequence of the same strings.

    Args:
      begins, ends: int64 [n], where each id stands in `utf8`.
      utf8: ids in UTF-8, whose order is that of the strings.
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
        chosen = range(len(self))[number]
        if isinstance(chosen, range):
            return tuple(self[place] for place in chosen)
        # A ledger keeps the ids of all its rounds: one copy of each.
        return sys.intern(self._encoded(chosen).decode())

    def __contains__(self, client: object) -> bool:
        return isinstance(client, str) and self.find(client) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{len(self)} client ids>"

    def find(self, client: str) -> int | None:
        """Position of `client`, by binary search; None if it is not here."""
        wanted = client.encode(errors="surrogatepass")
        place = bisect_left(range(len(self)), wanted, key=self._encoded)
        return place if place < len(self) and self._encoded(place) == wanted else None

    def take(self, numbers: NDArray[np.int64]) -> ClientIds:
        """The ids at `numbers`, int64 [m], increasing. Copies no id."""
        return ClientIds(self._begins[numbers], self._ends[numbers], self._utf8)

    def _encoded(self, number: int) -> bytes:
        return self._utf8[self._begins[number] : self._ends[number]]


def places(ids: Iterable[str], seed: int) -> NDArray[np.float64]:
    """A keyed hash of each id, that of no other: float64 [n] in [0, 1), multiples of 2^-53.

    Args:
      ids: client ids.
      seed: key of the hash, any integer of at most 128 bits.

    Raises:
      ValueError: the seed is larger.
    """
    if not -(1 << 127) <= seed < 1 << 127:
        raise ValueError(f"split seed {seed} does not fit 128 bits")
    key = seed.to_bytes(16, "big", signed=True)
    keyed = hashlib.blake2b(key=key, digest_size=8, person=b"fedspeak split")

    def hashed(client: str) -> int:
        state = keyed.copy()
        state.update(client.encode())
        return int.from_bytes(state.digest(), "big") >> 11

    return np.fromiter(map(hashed, ids), np.float64) * 2.0**-53
