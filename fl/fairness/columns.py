"""Converts columns of any kind (lists, arrays, pandas, Arrow) to NumPy, and divides rows by the values of columns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MANY_VALUES = 100
"""Maximum number of different numbers in a column of groups; a column with more is taken for a continuous one."""

_LISTED_GROUPS = 100_000


class Groups(NamedTuple):
    """Holds the group of every row.

    Attributes:
      features: names of the columns.
      names: each group's values, one for each feature, sorted. If the features have at most 100,000 combinations, all
        of them are listed; otherwise those that have rows.
      codes: int64 [rows], each row's index in `names`.
      unlisted: number of combinations without rows that are not listed.
    """

    features: tuple[str, ...]
    names: list[tuple[Any, ...]]
    codes: NDArray[np.int64]
    unlisted: int = 0


def divide_rows(features: Mapping[str, Any]) -> Groups:
    """Returns the group of every row: its combination of values in the columns `features`.

    Args:
      features: columns by name; each has one string, integer or bool for each row.

    Raises:
      ValueError: there is no column or no row, the lengths differ, a value is missing, or a column is continuous. One
        line names the column and the fix.
    """
    if not features:
        raise ValueError("no column of groups is given: name at least one")
    levels, indices = [], []
    for name, values in features.items():
        column_levels, column_indices = _code(name, values)
        levels.append(column_levels)
        indices.append(column_indices)
    lengths = [len(column) for column in indices]
    if len(set(lengths)) > 1:
        raise ValueError(f"columns {', '.join(features)} have {lengths} rows: give one value for each row")
    if not lengths[0]:
        raise ValueError(f"columns {', '.join(features)} have no row: give at least two rows of each group")
    combinations = math.prod(map(len, levels))
    if combinations >= 2**63:
        raise ValueError(f"columns {', '.join(features)} have {combinations:.1e} combinations: give fewer columns")
    codes = np.zeros(lengths[0], np.int64)
    for column_levels, column_indices in zip(levels, indices, strict=True):
        codes = codes * len(column_levels) + column_indices
    if combinations <= _LISTED_GROUPS:
        return Groups(tuple(features), list(itertools.product(*levels)), codes)
    with_rows, codes = np.unique(codes, return_inverse=True)
    places = np.unravel_index(with_rows, [len(column) for column in levels])
    names = list(zip(*([column[i] for i in at] for column, at in zip(levels, places, strict=True)), strict=True))
    return Groups(tuple(features), names, codes, combinations - len(names))


def require_one_group(draws: NDArray[np.int64], division: Groups) -> None:
    """Raises ValueError if the rows of a draw, int64 [rows] from 0 on, are of several groups."""
    first_row = np.unique(draws, return_index=True)[1]
    differs = division.codes != division.codes[first_row][draws]
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        places = (int(first_row[draws[row]]), row)
        raise ValueError(
            f"draws give rows {places[0]} and {places[1]}, counted from 0, the same draw, but they are of different "
            "groups: number each draw of a group by itself"
        )


def as_column(name: str, values: Any) -> NDArray[Any]:
    """Returns a column as an array [rows]; raises ValueError if it has another shape or is no sequence."""
    if hasattr(values, "to_numpy"):  # pandas, polars and Arrow
        values = values.to_numpy()
    if isinstance(values, str | bytes | Mapping) or not (hasattr(values, "__len__") or hasattr(values, "__array__")):
        raise ValueError(
            f"{name} has type {type(values).__name__}: give a list or an array with one value for each row"
        )
    array = np.asarray(values) if hasattr(values, "__array__") else np.array(values, object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: give one value for each row")
    return array


def is_missing(value: Any) -> bool:
    """Returns whether a cell holds no value: None, NaN, an empty text, or what pandas writes for one."""
    return value is None or str(value) in ("", "nan", "<NA>", "NaT")


def count_missing(array: NDArray[Any]) -> int:
    """Returns the number of cells of an array that hold no value."""
    if array.dtype.kind == "f":
        return int(np.isnan(array).sum())
    return sum(map(is_missing, array.tolist())) if array.dtype.kind not in "biu" else 0


def _code(name: str, values: Any) -> tuple[list[Any], NDArray[np.int64]]:
    """Returns the sorted distinct values of a column and the index of each row's value among them."""
    array = as_column(f"column {name!r}", values)
    if array.dtype.kind in "biu" and len(array):
        levels, indices = np.unique(array, return_inverse=True)
        found = levels.tolist()
    else:
        first_index: dict[Any, int] = {}
        cells = array.tolist()
        places = np.array([first_index.setdefault(value, len(first_index)) for value in cells], np.int64)
        if any(map(is_missing, first_index)):
            raise ValueError(
                f"column {name!r} has no value in {count_missing(array)} of {len(cells)} rows: leave them out, or give "
                "them a value of their own"
            )
        found = sorted(first_index, key=_order)
        rank = np.empty(len(found), np.int64)
        rank[[first_index[value] for value in found]] = np.arange(len(found))
        indices = rank[places]
    _require_categories(name, found)
    return found, indices.astype(np.int64, copy=False)


def _order(value: Any) -> tuple[int, Any]:
    """Sorts numbers before texts, and everything else by its text."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))


def _require_categories(name: str, levels: list[Any]) -> None:
    quantities = [value for value in levels if isinstance(value, int | float) and not isinstance(value, bool)]
    fractions = [value for value in quantities if isinstance(value, float) and not value.is_integer()]
    if fractions or len(quantities) > MANY_VALUES:
        shown = (fractions or quantities)[0]
        raise ValueError(
            f"column {name!r} is continuous ({len(quantities)} different numbers, such as {shown}): give bands, "
            "as 18-29, or texts if the numbers are names"
        )
