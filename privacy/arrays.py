"""Records as arrays of numbers: what is done to each row alone, whatever its entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_ROWS = 256  # that a processor's cache holds
_USUAL = 1e-200, 1e200  # squared lengths that lost nothing


def as_floats(name: str, values: Any) -> npt.NDArray[np.float64]:
    """A new float64 array of real numbers; None and masked values are NaN. Raises ValueError for anything else."""
    require_array(name, values)
    masked = isinstance(values, np.ma.MaskedArray)
    try:
        array = np.ma.filled(values.astype(float), np.nan) if masked else np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} are no array: numbers are needed, as many in each row") from None
    if array.dtype.kind not in "biufO":
        raise ValueError(f"{name} have dtype {array.dtype}: numbers are needed")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} have dtype {array.dtype}: numbers are needed, as many in each row") from None


def require_array(name: str, values: Any) -> None:
    """Raises ValueError for what is read one by one or by name: a generator, a `tf.data.Dataset`, a set, a mapping."""
    is_array = hasattr(values, "__array__") or (hasattr(values, "__getitem__") and not isinstance(values, Mapping))
    if isinstance(values, Iterable) and not is_array:
        raise ValueError(
            f"{name} has type {type(values).__name__}, which is no array: give an array or a list, as "
            f"np.array(list({name})), or of a tf.data.Dataset np.array(list({name}.as_numpy_iterator()))"
        )


def row_lengths(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """L2 lengths of vectors [n, d], float64 [n]: no square overflows or underflows, and no row depends on another."""
    found = np.zeros(len(vectors))
    for first in range(0, len(vectors), _ROWS):
        part = np.ascontiguousarray(vectors[first : first + _ROWS], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", part, part)
        lengths = np.sqrt(squares)
        unusual = ~((squares > _USUAL[0]) & (squares < _USUAL[1]))
        if unusual.any():
            lengths[unusual] = _scaled_lengths(part[unusual])
        found[first : first + _ROWS] = lengths
    return found


def _scaled_lengths(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """By the largest entry first, so that no square is lost."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1)
    lengths: npt.NDArray[np.float64] = largest[:, 0] * np.sqrt(np.square(scaled).sum(axis=1))
    return lengths


def shortened(vectors: npt.NDArray[Any], length: float) -> npt.NDArray[Any]:
    """Vectors [n, d], finite, those longer than `length` scaled down to it; each by itself, whatever its entries."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    # First to entries of at most `length`, then by the length of what is left: at most that times the root of d.
    within = vectors * (length / np.maximum(largest, length)).astype(vectors.dtype)
    lengths = row_lengths(within / vectors.dtype.type(length))[:, np.newaxis]
    return within * (1 / np.maximum(lengths, 1)).astype(vectors.dtype)


def of_length_one(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Vectors [n, d], each over its length; zeros stay."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1)
    lengths = row_lengths(scaled)[:, np.newaxis].astype(vectors.dtype)
    return scaled / np.where(lengths > 0, lengths, 1)
