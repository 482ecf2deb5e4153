"""Stores a set of pairs of integers so that a pair is found by one look, with sums of table entries and no search.

A pair (l, r) belongs to the bucket that is the exclusive or of a random number of l and one of r. Its slot is the sum
of another random number of l, another of r and the bucket's displacement, modulo the number of slots. Displacements are
chosen such that no two stored pairs have the same slot, for the largest buckets first. There are few more slots than
pairs, whatever the pairs are. The table's user keeps the pair of each slot, and compares: other pairs have slots too.

References: Belazzougui, Botelho and Dietzfelbinger 2009, Hash, displace, and compress; a random number for each l and
each r is simple tabulation, Patrascu and Thorup 2012, The power of simple tabulation hashing.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PAIRS_PER_BUCKET = 3
_SPARE = 16
"""Number of slots of which one is left free."""
_SEEDS = 40
"""Number of seeds that are tried before there are more slots. About one in ten has no two pairs that always collide."""


class PairHash(NamedTuple):
    """Holds the numbers from which `slots_of` computes slots; all arrays are int32.

    Attributes:
      left_bucket: `[L]`, a random number for each l.
      right_bucket: `[R]`, a random number for each r.
      left_slot: `[L]`, a random number for each l, below half the number of slots.
      right_slot: `[R]`, a random number for each r, below half the number of slots.
      displacement: `[buckets]`, below the number of slots; their number is a power of 2.
      slots: number of slots.
    """

    left_bucket: NDArray[np.int32]
    right_bucket: NDArray[np.int32]
    left_slot: NDArray[np.int32]
    right_slot: NDArray[np.int32]
    displacement: NDArray[np.int32]
    slots: int

    def slots_of(self, left: NDArray[np.integer], right: NDArray[np.integer]) -> NDArray[np.int64]:
        """Returns the slots of pairs."""
        place = self.left_slot[left].astype(np.int64) + self.right_slot[right]
        return (place + self.displacement[self.left_bucket[left] ^ self.right_bucket[right]]) % self.slots


def hash_pairs(left: NDArray[np.integer], right: NDArray[np.integer], lefts: int, rights: int) -> PairHash:
    """Returns a hash that gives each pair a slot of its own; the same pairs always give the same hash.

    Args:
      left: `[pairs]`, integers in [0, lefts).
      right: `[pairs]`, integers in [0, rights). No pair may occur twice.
      lefts: number of values of l.
      rights: number of values of r.
    """
    slots = len(left) + len(left) // (_SPARE - 1) + 2
    buckets = 1 << max(0, (len(left) // _PAIRS_PER_BUCKET).bit_length())
    for seed in itertools.count():
        slots += slots // _SPARE + 1 if seed and seed % _SEEDS == 0 else 0
        numbers = np.random.default_rng(seed)
        of_bucket = [numbers.integers(buckets, size=size, dtype=np.int32) for size in (lefts, rights)]
        of_slot = [numbers.integers(slots // 2, size=size, dtype=np.int32) for size in (lefts, rights)]
        bucket = of_bucket[0][left] ^ of_bucket[1][right]
        place = of_slot[0][left].astype(np.int64) + of_slot[1][right]
        displacement = _displace(bucket, place, buckets, slots)
        if displacement is not None:
            return PairHash(of_bucket[0], of_bucket[1], of_slot[0], of_slot[1], displacement, slots)
    raise AssertionError("seeds do not end")


def _displace(
    bucket: NDArray[np.int32], place: NDArray[np.int64], buckets: int, slots: int
) -> NDArray[np.int32] | None:
    """Returns a displacement for each bucket with which all slots are different; None if there is none."""
    order = np.argsort(bucket.astype(np.int64) * slots + place)
    bucket, place = bucket[order], place[order]
    if np.any((np.diff(bucket) == 0) & (np.diff(place) == 0)):
        return None
    sizes = np.bincount(bucket, minlength=buckets)
    ends = np.cumsum(sizes)
    displacement, taken = np.zeros(buckets, np.int32), np.zeros(slots, bool)
    for index in np.argsort(-sizes, kind="stable"):
        if sizes[index] < 2:
            break
        own = place[ends[index] - sizes[index] : ends[index]]
        # Sums of two random numbers crowd in the middle: the starts spread them over all slots.
        found = _find_displacement(own, taken, start=int(index) * slots // buckets)
        if found is None:
            return None
        displacement[index] = found
        taken[(own + found) % slots] = True
    single = np.flatnonzero(sizes == 1)
    free = np.flatnonzero(~taken)[: len(single)]
    displacement[single] = (free - place[ends[single] - 1]) % slots
    return displacement


def _find_displacement(place: NDArray[np.int64], taken: NDArray[np.bool_], start: int) -> int | None:
    """Returns the first displacement from `start` on that moves all places to free slots; None if there is none."""
    begin, width = 0, 64
    while begin < len(taken):
        tried = start + np.arange(begin, min(begin + width, len(taken)))
        fits = ~taken[(place[:, np.newaxis] + tried) % len(taken)].any(axis=0)
        if fits.any():
            return int(tried[np.argmax(fits)]) % len(taken)
        begin, width = begin + width, 4 * width
    return None
