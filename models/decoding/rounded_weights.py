"""Rounds a model's weights to int8, so that a model can draft for itself."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.language_model import LanguageModel, Weights

_TABLES = ("embedding", "output", "positions")  # whose rows belong to tokens or positions
_LARGEST = 127


def quantized(model: LanguageModel, weights: Weights) -> Weights:
    """Returns weights that int8 can hold, as float32.

    With them a model drafts for itself: `ModelDrafter(model, quantized(model, weights))`.

    Each column of a matrix (each row of an embedding) becomes integers from -127 to 127 times one scale, its largest
    magnitude divided by 127. So a weight changes by at most half of this scale. Vectors stay as they are. An exported
    drafter takes a quarter of the target's memory in float32, and the same operations.

    Args:
      model: the model.
      weights: its weights by name, without a client axis.

    Raises:
      ValueError: the weights are not the model's, or one is not finite.
    """
    arrays = {name: np.asarray(weight, np.float32) for name, weight in weights.items()}
    if {name: array.shape for name, array in arrays.items()} != model.shapes():
        raise ValueError("weights are not those of the model: their names or shapes differ from model.shapes()")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"weights[{name!r}] is not finite: a model with such weights cannot draft")
    return {name: _round(array, name in _TABLES) if array.ndim == 2 else array for name, array in arrays.items()}


def _round(matrix: NDArray[Any], by_row: bool) -> NDArray[np.float32]:
    largest = np.abs(matrix).max(axis=1 if by_row else 0, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float64) / _LARGEST
    return (np.rint(matrix / scale) * scale).astype(np.float32)
