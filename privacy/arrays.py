"""Converts records to float arrays, and measures and scales their rows, each row independently of all others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK_ROWS = 256  # few enough that a block fits into a processor's cache
_SAFE_SQUARES = 1e-200, 1e200  # squared norms between these were not harmed by overflow or underflow
# By attribute: how to convert ragged tensors, sparse tensors and sparse matrices. The attribute identifies the type, so
# that this module need not import TensorFlow or SciPy.
_CONVERSIONS = {
    "to_tensor": "{0}.to_tensor(), which pads the rows with zeros",
    "dense_shape": "tf.sparse.to_dense({0})",
    "toarray": "{0}.toarray()",
}


def as_floats(name: str, values: Any) -> npt.NDArray[np.float64]:
    """Returns a new float64 array of real numbers, with NaN for None and for masked values.

    Args:
      name: name of the argument, for the message.
      values: an array or a nested list of numbers, whose rows have equal lengths.

    Raises:
      ValueError: `values` is anything else.
    """
    masked = isinstance(values, np.ma.MaskedArray)
    try:
        array = np.ma.filled(values.astype(float), np.nan) if masked else as_array(name, values)
    except (TypeError, ValueError):
        if not masked:
            raise
        raise ValueError(f"{name} has dtype {values.dtype}: numbers are needed") from None
    if array.dtype.kind not in "biufO":
        raise ValueError(f"{name} has dtype {array.dtype}: numbers are needed")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} has dtype {array.dtype}: numbers are needed, equally many in each row") from None


def require_array(name: str, values: Any) -> None:
    """Raises ValueError if NumPy would not convert `values` into an array of the numbers in it.

    This function refuses objects that can only be iterated or looked up by key (generators, `tf.data.Dataset`s, sets,
    mappings), sequences of batches (`keras.utils.Sequence`), ragged and sparse tensors, and sparse matrices.

    Args:
      name: name of the argument, for the message.
      values: the argument itself.
    """
    kind = f"{name} has type {type(values).__name__}, which is not an array"
    for method, converted in _CONVERSIONS.items():
        if hasattr(values, method) and not hasattr(values, "__array__"):
            raise ValueError(f"{kind}: give {converted.format(name)}")
    if yields_batches(values):
        raise ValueError(f"{kind}: give {how_to_gather(name, values)}")
    is_array = hasattr(values, "__array__") or (hasattr(values, "__getitem__") and not isinstance(values, Mapping))
    if isinstance(values, Iterable) and not is_array:
        raise ValueError(
            f"{kind}: give np.array(list({name})), or for a tf.data.Dataset np.array(list({name}.as_numpy_iterator()))"
        )


def as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """Returns `values` as an array, which may share memory with `values`.

    Args:
      name: name of the argument, for the message.
      values: an array or a nested list.

    Raises:
      ValueError: `require_array` refuses `values`, or it is a list with rows of different lengths.
    """
    require_array(name, values)
    try:
        return np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{name} is not a rectangular array: numbers are needed, equally many in each row; pad short rows, or "
            "leave them out"
        ) from None


def yields_batches(values: Any) -> bool:
    """Returns whether `values` is a Keras object that yields batches, such as a `keras.utils.Sequence`."""
    kinds = {kind.__name__ for kind in type(values).__mro__ if kind.__module__.startswith(("keras.", "tf_keras."))}
    return bool(kinds & {"Sequence", "PyDataset"})


def how_to_gather(name: str, values: Any) -> str:
    """Returns a phrase, for an error message, on how to make the arrays x and y from the batches (x, y) of `values`."""
    batches = f"({name}[i] for i in range(len({name})))" if yields_batches(values) else name
    return f"x and y as arrays, from batches (x, y) by x, y = map(np.concatenate, zip(*{batches}))"


def row_norms(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns the L2 norms of `vectors` [n, d] as float64 [n].

    No square overflows or underflows, and the norm of a row does not depend on the other rows.
    """
    norms = np.zeros(len(vectors))
    for first in range(0, len(vectors), _BLOCK_ROWS):
        block = np.ascontiguousarray(vectors[first : first + _BLOCK_ROWS], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", block, block)
        block_norms = np.sqrt(squares)
        inexact = ~((squares > _SAFE_SQUARES[0]) & (squares < _SAFE_SQUARES[1]))
        if inexact.any():
            block_norms[inexact] = _scaled_norms(block[inexact])
        norms[first : first + _BLOCK_ROWS] = block_norms
    return norms


def _scaled_norms(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the L2 norms of `vectors`, dividing by each row's largest entry first so that no square is lost."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1)
    norms: npt.NDArray[np.float64] = largest[:, 0] * np.sqrt(np.square(scaled).sum(axis=1))
    return norms


def clip_rows(vectors: npt.NDArray[Any], max_norm: float) -> npt.NDArray[Any]:
    """Returns finite `vectors` [n, d], with rows of L2 norm above `max_norm` scaled down to that norm.

    Each row is scaled independently of the others, whatever its entries.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    # Scale first to entries of at most `max_norm`: the norm is then at most √d times that and cannot overflow.
    bounded = vectors * (max_norm / np.maximum(largest, max_norm)).astype(vectors.dtype)
    norms = row_norms(bounded / vectors.dtype.type(max_norm))[:, np.newaxis]
    return bounded * (1 / np.maximum(norms, 1)).astype(vectors.dtype)


def normalize_rows(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns `vectors` [n, d] with each row divided by its L2 norm; rows of zeros stay zero."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1)
    norms = row_norms(scaled)[:, np.newaxis].astype(vectors.dtype)
    return scaled / np.where(norms > 0, norms, 1)
