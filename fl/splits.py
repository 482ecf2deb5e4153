"""Splits clients into training, validation and test sets, and holds out a part of a training client's text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.client_ids import places
from fl.clients import EOS, TokenStore


class Splits(NamedTuple):
    """Holds three disjoint sets of client ids, each in the order given.

    Make every choice (hyper-parameters, early stopping) on `validation`, and publish results on `test` only.
    """

    train: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]


def split_clients(ids: Iterable[str], validation: float, test: float, seed: int) -> Splits:
    """Splits clients by a keyed hash of their ids, so that adding or removing a client moves no other.

    Args:
      ids: client ids, all different.
      validation: probability that a client is in the validation set, in [0, 1]. The size of the set is binomial, so
        with few clients it may be empty.
      test: probability that a client is in the test set, in [0, 1]; the two probabilities sum to at most 1.
      seed: key of the hash, any integer of at most 128 bits.

    Raises:
      ValueError: a probability is out of range, or a client id occurs twice.
    """
    ids = tuple(ids)
    duplicate = next((client for client, count in Counter(ids).items() if count > 1), None)
    if duplicate is not None:
        raise ValueError(f"client id {duplicate!r} occurs twice: give each id once")
    numbers = _split(places(ids, seed), validation, test)
    return Splits(*(tuple(ids[number] for number in part) for part in numbers))


def split_store(store: TokenStore, validation: float, test: float) -> Splits:
    """Splits a store's clients as `split_clients` does with the store's split seed, but hashes and copies no id.

    Raises:
      ValueError: a probability is out of range.
    """
    return Splits(*map(store.clients.take, _split(store.places, validation, test)))


def hold_out(tokens: NDArray[Any], fraction: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Cuts a client's tokens into (training, held out), where the held-out part consists of the last sentences.

    The targets of a part are all its tokens but the first. The held-out part begins with the end token of the last
    training sentence, which serves as context only. So the targets of the two parts are disjoint, and together they are
    the targets of `tokens`. The held-out part has no target if no whole sentence fits in `fraction`.

    Args:
      tokens: int [n], `bos s1 eos s2 eos …`, as `TokenStore.tokens` returns them.
      fraction: maximum share of the n - 1 targets that is held out, in [0, 1).

    Returns:
      Two views of `tokens`.

    Raises:
      ValueError: `fraction` is outside [0, 1), or `tokens` is not one-dimensional.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"held-out fraction {fraction} is outside [0, 1): give the share of targets to hold out")
    if tokens.ndim != 1:
        raise ValueError(f"tokens have shape {tokens.shape}: give an array of one dimension")
    targets = max(len(tokens) - 1, 0)
    ends = np.flatnonzero(tokens == EOS)
    fitting = ends[targets - ends <= fraction * targets]
    last = int(fitting[0]) if len(fitting) else targets
    return tokens[: last + 1], tokens[last:]


def _split(hashes: NDArray[np.float64], validation: float, test: float) -> tuple[NDArray[np.int64], ...]:
    """Returns the indices of the training, validation and test clients, given the hash in [0, 1) of each client."""
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} = {share}: must be from 0 to 1, the share of clients in that set")
    if not validation + test <= 1:
        raise ValueError(f"validation = {validation} and test = {test}: their sum must be at most 1, lower one of them")
    part = np.where(hashes < test, 2, np.where(hashes < test + validation, 1, 0))
    return tuple(np.flatnonzero(part == number) for number in range(3))
