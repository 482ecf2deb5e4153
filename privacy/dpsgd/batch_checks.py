"""Compares an example's loss between batches of the user's own data that differ in all other examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.dpsgd.examples import Examples

Rows = npt.NDArray[np.int64]
Forward = Callable[[Any, Any], npt.NDArray[Any]]
"""(x, y) -> each example's loss, [B]."""

LARGEST_BATCH = 256  # examples; a model is not tried with more
_SMALL_BATCH = 7
_DRAWN_BATCH = 17  # of a model that draws random numbers: two groups of eight and one more
_ALONE = 4  # ordinary rows that are tried as a batch of one, besides the extreme ones
_CHUNK = 2**20  # numbers that are read at once to find the extreme rows
# Batches of another size go through other kernels, which round otherwise. A floating-point sum is the exact sum of
# terms that are changed by a few units each (2^-24 in float32). Weights and inputs are therefore changed by 16 units
# each, and the change of the loss, times 8, is what counts as rounding: it is large where large numbers cancel,
# whatever the size of the loss itself. Random changes may cancel for one example: the median of all examples' changes
# counts at least.
_CHANGE = 2.0**-20
_SLACK = 8
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6  # what counts as rounding at least


class Batches:
    """Batches of rows of the data: ordinary rows, drawn at random, and extreme ones.

    Extreme are the rows with the largest and the smallest entry, and with the largest and the smallest L2 norm, of each
    array of the inputs and of the labels.
    """

    def __init__(self, data: Examples, largest: int, generator: np.random.Generator) -> None:
        """Draws the rows.

        Args:
          data: read in parts, never copied as a whole.
          largest: number of examples, at least 1, that a step takes at once; `LARGEST_BATCH` counts where it is more.
          generator: draws the rows and their order.
        """
        self._data, self._generator = data, generator
        size = min(largest, LARGEST_BATCH, len(data.y))
        # Beside the largest batch one that groups of eight do not fill, or fill if they do not fill the largest.
        beside = size - 3 if size % 8 == 0 else size - size % 8
        self.sizes = sorted({_SMALL_BATCH, size, beside} - {0})
        self._drawn_sizes = min(_DRAWN_BATCH, self.sizes[-1]), self.sizes[-1]
        count = max(self.sizes)
        drawn = generator.choice(len(data.y), min(count, len(data.y)), replace=False)
        self._ordinary: Rows = np.resize(drawn, count)
        self._extreme = _extreme_rows(data)

    @property
    def rows(self) -> Rows:
        """All rows that the batches are made of, each once."""
        return np.unique(np.concatenate([self._ordinary, self._extreme]))

    def take(self, rows: Rows) -> Any:
        """Returns (inputs, labels) of the rows."""
        return self._data.take(rows)

    def __iter__(self) -> Iterator[Rows]:
        """Yields batches in which each ordinary row, and each extreme one, stands beside different others."""
        for row in [*self._ordinary[:_ALONE], *self._extreme]:
            yield np.array([row])
        for number, size in enumerate(self.sizes):
            rows = self._ordinary[:size]
            half = size // 2
            yield rows
            # One outlying row more among ordinary ones; the place of each is another.
            yield self._mixed(rows[:-1], self._extreme[number % len(self._extreme) :][:1])
            yield self._mixed(rows[:half], np.resize(self._extreme, size - half))
            # Twins of the most outlying row, and of an ordinary one.
            yield self._mixed(rows[half:], np.resize(self._extreme[:1], half))
            yield self._mixed(rows[::2], np.resize(rows[:1], half))

    def pairs(self, number: int, large: bool) -> Iterator[tuple[Rows, Rows]]:
        """Yields two batches of one size each; rows that stay do so at their place, and all others are exchanged.

        Args:
          number: of the random state. By turns, the first half stays, the second half, all but one row.
          large: whether they are as large as the largest batch.
        """
        size = self._drawn_sizes[large]
        rows = self._ordinary[:size]
        place = np.arange(size)
        stays = (place < size // 2, place >= size // 2, place != number % size)[number % 3]
        extreme = np.resize(np.roll(self._extreme, -(number // 3)), size)
        if size > 1:
            yield rows, np.where(stays, rows, extreme)

    def _mixed(self, *rows: Rows) -> Rows:
        return self._generator.permutation(np.concatenate(rows))


def rows_stay(batches: Batches, forward: Forward, variables: list[tf.Variable], generator: np.random.Generator) -> bool:
    """Returns whether the loss of each row is the same in all batches, up to rounding.

    Args:
      batches: of the data.
      forward: draws no random numbers.
      variables: those that the losses depend on. They are changed, and put back.
      generator: draws how they are changed.
    """
    rows = batches.rows
    x, y = batches.take(rows)
    first = forward(x, y)
    tolerances = rounding_of(first, x, y, forward, variables, generator)
    for batch in batches:
        places = np.searchsorted(rows, batch)
        if not same(forward(*batches.take(batch)), first[places], tolerances[places]):
            return False
    return True


def pairs_stay(batches: Batches, forward: Forward, number: int, large: bool) -> bool:
    """Returns whether rows that stay at their place keep their loss when all others are exchanged.

    Both passes are of as many examples, so that the same kernels compute them and rounding is the same too.

    Args:
      batches: of the data.
      forward: draws the same random numbers at each call.
      number: of the random state; it chooses the rows that are exchanged.
      large: whether the batches are as large as the largest.
    """
    for rows, exchanged in batches.pairs(number, large):
        found = forward(*batches.take(rows))
        changed = forward(*batches.take(exchanged))
        finite = np.abs(found[np.isfinite(found)])
        tolerances = _RELATIVE * (np.abs(found) + (np.median(finite) if finite.size else 0)) + _ABSOLUTE
        stay = rows == exchanged
        if not same(changed[stay], found[stay], tolerances[stay]):
            return False
    return True


def same(losses: Any, others: Any, tolerances: Any) -> bool:
    """Returns whether losses differ by at most the tolerances; two that are not finite are the same."""
    finite = np.isfinite(losses)
    if not np.array_equal(finite, np.isfinite(others)):
        return False
    with np.errstate(invalid="ignore"):
        return bool((~finite | (np.abs(losses - others) <= tolerances)).all())


def rounding_of(
    losses: npt.NDArray[Any],
    x: Any,
    y: Any,
    forward: Forward,
    variables: list[tf.Variable],
    generator: np.random.Generator,
) -> npt.NDArray[Any]:
    """Returns how far rounding can move each of the losses [B] of (x, y); see `_CHANGE`.

    Args:
      losses: what `forward` gives for (x, y).
      x: inputs, a nest of arrays [B, ...].
      y: labels [B, ...].
      forward: draws the same random numbers at each call, or none.
      variables: those that the losses depend on. They are changed, and put back.
      generator: draws how they are changed.
    """
    moved = np.zeros(len(losses))
    finite = np.isfinite(losses)

    def changed(value: npt.NDArray[Any], signs: bool) -> tf.Tensor:
        sign = generator.integers(0, 2, value.shape) * 2 - 1 if signs else np.array(1)
        return tf.constant(value * (1 + _CHANGE * sign), value.dtype)

    def inputs_changed(part: tf.Tensor) -> tf.Tensor:
        return changed(part.numpy(), True) if part.dtype.is_floating else part

    values = [(v, v.numpy()) for v in variables if v.dtype.is_floating]
    try:
        for signs in (True, True, False):
            for v, value in values:
                v.assign(changed(value, signs))
            found = forward(tf.nest.map_structure(inputs_changed, x), y)
            steady = finite & np.isfinite(found)
            moved[steady] = np.maximum(moved[steady], np.abs(found[steady] - losses[steady]))
    finally:
        for v, value in values:
            v.assign(value)
    moved = np.maximum(moved, np.median(moved))
    return _SLACK * moved + _RELATIVE * np.abs(losses) + _ABSOLUTE


def _extreme_rows(data: Examples) -> Rows:
    """Returns the rows of the extremes, each once, those of the inputs first, by norm before entry."""
    rows = [row for part in tf.nest.flatten((data.x, data.y)) for row in _extremes_of(part)]
    return np.array(list(dict.fromkeys(rows)))


def _extremes_of(part: npt.NDArray[Any]) -> list[int]:
    """Returns the rows of the largest L2 norm, the largest and the smallest entry, and the smallest norm."""
    best: dict[str, tuple[float, int]] = {}
    step = max(1, _CHUNK // max(1, part[:1].size))
    for start in range(0, len(part), step):
        chunk = np.asarray(part[start : start + step], np.float64).reshape(len(part[start : start + step]), -1)
        squares = np.einsum("ij,ij->i", chunk, chunk)
        # An array without columns has no entries.
        highest, lowest = chunk.max(axis=1, initial=-np.inf), -chunk.min(axis=1, initial=np.inf)
        for name, each in (("norm", squares), ("highest", highest), ("lowest", lowest), ("small", -squares)):
            row = int(np.argmax(each))
            if name not in best or each[row] > best[name][0]:
                best[name] = float(each[row]), start + row
    return [row for _, row in best.values()]
