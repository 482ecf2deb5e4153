"""Puts numbers that are given by the name of a group, such as weights, into the order of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.fairness.rates import Levels


def _keyed(name: str, values: Any) -> dict[Levels, Any]:
    """Returns a mapping from group to number with a tuple for every group; empty for a text or None."""
    if values is None or isinstance(values, str):
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} has type {type(values).__name__}: give a mapping from group to number")
    return {key if isinstance(key, tuple) else (key,): value for key, value in values.items()}


def with_named(names: list[Levels], weights: Any, probabilities: Any) -> list[Levels]:
    """Returns the groups of the data, followed by those that only `weights` or `probabilities` name.

    Raises:
      ValueError: one of the two is neither a mapping nor a text or None, or a name has another number of features.
    """
    keys = [*_keyed("weights", weights), *_keyed("probabilities", probabilities)]
    if wrong := next((key for key in keys if len(key) != len(names[0])), None):
        raise ValueError(f"weights names the group {wrong}: give one value for each of {len(names[0])} features")
    listed = set(names)
    return names + [key for key in dict.fromkeys(keys) if key not in listed]


def by_group(name: str, values: Any, names: list[Levels], has_rows: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Returns the numbers of a mapping in the order of the groups; None for a text or None.

    Args:
      name: what the numbers are, for errors.
      values: mapping from group to number; groups without rows that it lacks get 0.
      names: the groups.
      has_rows: bool [groups], whether a group has rows.

    Raises:
      ValueError: the mapping names an unknown group, or lacks one that has rows.
    """
    keyed, listed = _keyed(name, values), set(names)
    if values is None or isinstance(values, str):
        return None
    if unknown := next((key for key in keyed if key not in listed), None):
        raise ValueError(f"{name} names the group {unknown}, which is not in the data: leave it out or correct it")
    if lacking := next((names[i] for i in np.flatnonzero(has_rows) if names[i] not in keyed), None):
        raise ValueError(f"{name} lacks the group {lacking}: give a number for each group, 0 to leave one out")
    return np.array([keyed.get(key, 0.0) for key in names], np.float64)
