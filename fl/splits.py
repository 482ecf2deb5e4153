"""Who trains, who validates, who tests; and which text of a training client is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.clients import EOS


class Splits(NamedTuple):
    """Three disjoint sets of client ids, each in the order given.

    Every choice (hyper-parameters, early stopping) is made on `validation`; every figure is of `test`.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_clients(ids: Iterable[str], validation: float, test: float, seed: int) -> Splits:
    """Splits clients by a keyed hash of their id: adding or removing a client moves no other.

    Args:
      ids: client ids, all different.
      validation: the chance of a client to validate, in [0, 1]. The realised share varies as a binomial does,
        and a set may come out empty when there are few clients.
      test: the chance of a client to test, in [0, 1]; the two sum to at most 1.
      seed: key of the hash, any integer of at most 128 bits.

    Raises:
      ValueError: a share out of range, or a client id that stands twice.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} share {share} is outside [0, 1]")
    if not validation + test <= 1:
        raise ValueError(f"validation share {validation} and test share {test} sum to more than 1")
    key = seed.to_bytes(16, "big", signed=True) if -(1 << 127) <= seed < 1 << 127 else None
    if key is None:
        raise ValueError(f"split seed {seed} does not fit 128 bits")

    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    seen = set()
    for client in ids:
        if client in seen:
            raise ValueError(f"client id {client!r} stands twice")
        seen.add(client)
        position = _uniform(client, key)
        parts[2 if position < test else 1 if position < test + validation else 0].append(client)
    return Splits(*map(tuple, parts))


def hold_out(tokens: NDArray[Any], fraction: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cuts a client's tokens into (training, held out): the held-out part is the last, in whole sentences.

    The held-out part begins with the end of the last training sentence, as context only: the targets (all
    tokens of a part but its first) of the two parts are disjoint and together those of `tokens`. It has no
    target when no whole sentence fits in `fraction`.

    Args:
      tokens: int [n], `bos s1 eos s2 eos …`, as `TokenStore.tokens` gives them.
      fraction: largest share of the n - 1 targets that is held out, in [0, 1).

    Returns:
      Two views of `tokens`.

    Raises:
      ValueError: `fraction` is outside [0, 1), or `tokens` is not one-dimensional.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"held-out fraction {fraction} is outside [0, 1)")
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}, not one dimension")
    targets = max(len(tokens) - 1, 0)
    ends = np.flatnonzero(tokens == EOS)
    fitting = ends[targets - ends <= fraction * targets]
    last = int(fitting[0]) if len(fitting) else targets
    return tokens[: last + 1], tokens[last:]


def _uniform(client: str, key: bytes) -> float:
    """A number in [0, 1) with 53 bits."""
    digest = hashlib.blake2b(client.encode(), key=key, digest_size=8, person=b"fedspeak split").digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53
