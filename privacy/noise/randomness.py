"""Supplies random bits: from the operating system, or from a seed for tests."""

from __future__ import annotations

import os
import threading
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy import checks

_BUFFER_WORDS = 512


class Randomness(Protocol):
    """Supplies random bits.

    Attributes:
      is_secure: whether nobody can predict the bits. Noise from predictable bits protects nobody.
    """

    is_secure: bool

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Returns `count` uniform 64-bit words, uint64 [count], fresh ones at each call."""


class SecureRandomness:
    """Supplies random bits from the operating system's cryptographically secure generator."""

    is_secure = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffer = np.zeros(0, np.uint64)
        self._process = os.getpid()

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Returns `count` random words, as `Randomness.words` says."""
        if count > _BUFFER_WORDS:
            return _from_system(count)
        with self._lock:
            # The words are buffered, since a system call takes as long as a hundred words. A forked process drops the
            # buffer that it shares with its parent.
            if count > len(self._buffer) or self._process != os.getpid():
                self._buffer, self._process = _from_system(_BUFFER_WORDS), os.getpid()
            words, self._buffer = self._buffer[:count], self._buffer[count:]
        return words

    def __reduce__(self) -> tuple[type[SecureRandomness], tuple[()]]:
        """Gives a copied or unpickled source an empty buffer, so that no two sources return the same words."""
        return SecureRandomness, ()


class SeededRandomness:
    """Supplies reproducible bits from a seed, for tests only: whoever knows the seed can subtract the noise."""

    is_secure = False

    def __init__(self, seed: int) -> None:
        """Seeds the generator. Raises ValueError unless `seed` is an integer of at least 0."""
        self._generator = np.random.Generator(np.random.Philox(checks.whole("seed", seed, 0, "give an integer")))

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Returns `count` random words, as `Randomness.words` says."""
        return self._generator.integers(0, 2**64, count, np.uint64)


def _from_system(count: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(os.urandom(8 * count), np.uint64)
