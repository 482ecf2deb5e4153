"""Who trains, who validates, who tests; and which text of a training client is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.client_ids import places
from fl.clients import EOS, TokenStore


class Splits(NamedTuple):
    """Three disjoint sets of client ids, each in the order given.

    Every choice (hyper-parameters, early stopping) is made on `validation`; every figure is of `test`.
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]


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
    ids = tuple(ids)
    twice = next((client for client, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"client id {twice!r} stands twice")
    numbers = _split(places(ids, seed), validation, test)
    return Splits(*(tuple(ids[number] for number in part) for part in numbers))


def split_store(store: TokenStore, validation: float, test: float) -> Splits:
    """As `split_clients` with the seed that the store was built with, but without hashing or copying an id.

    Raises:
      ValueError: a share out of range.
    """
    return Splits(*map(store.clients.take, _split(store.places, validation, test)))


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


def _split(placed: NDArray[np.float64], validation: float, test: float) -> tuple[NDArray[np.int64], ...]:
    """Numbers of the training, validation and test clients."""
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} share {share} is outside [0, 1]")
    if not validation + test <= 1:
        raise ValueError(f"validation share {validation} and test share {test} sum to more than 1")
    part = np.where(placed < test, 2, np.where(placed < test + validation, 1, 0))
    return tuple(np.flatnonzero(part == number) for number in range(3))
