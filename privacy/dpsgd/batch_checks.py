"""Compares an example's loss between batches of the training data that differ in the other examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.dpsgd.examples import Examples

Rows = npt.NDArray[np.int64]
Forward = Callable[[Any, Any], npt.NDArray[Any]]
"""Function of inputs x and labels y that returns each example's loss, [B]."""

LARGEST_BATCH = 256  # maximum number of examples that a model is checked with at once
_SMALL_BATCH = 7
_RANDOM_BATCH = 17  # for a model that draws random numbers: two groups of eight and one more
_ALONE = 4  # number of ordinary rows that are checked as a batch of one; all extreme rows are
_CHUNK = 2**20  # numbers that are read at once to find the extreme rows
# Batches of different sizes go through different kernels, which round differently. A floating-point sum is the exact
# sum of terms that are each changed by a few units (2^-24 of their size in float32). To estimate the effect, weights
# and inputs are changed by 16 units each. A difference of up to 8 times the resulting change of the loss counts as
# rounding. That change is large where large numbers cancel, whatever the size of the loss itself. Since random changes
# may cancel each other in one example, at least the median of all examples' changes is used.
_CHANGE = 2.0**-20
_SLACK = 8
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6  # differences of the loss that count as rounding in any case


class Batches:
    """Forms batches of the data from ordinary rows, which are drawn at random, and from extreme rows.

    Extreme rows have the largest or smallest entry, or the largest or smallest L2 norm, of an array of the inputs or of
    the labels.
    """

    def __init__(self, data: Examples, largest: int, generator: np.random.Generator) -> None:
        """Draws the rows.

        Args:
          data: training data; it is read in parts, never copied as a whole.
          largest: number of examples that a step takes at once, at least 1. Batches hold at most
            `LARGEST_BATCH`.
          generator: draws the rows and their order.
        """
        self._data, self._generator = data, generator
        size = min(largest, LARGEST_BATCH, len(data.y))
        # One of the two large sizes is a multiple of eight and the other is not.
        other_size = size - 3 if size % 8 == 0 else size - size % 8
        self.sizes = sorted({_SMALL_BATCH, size, other_size} - {0})
        self._pair_sizes = min(_RANDOM_BATCH, self.sizes[-1]), self.sizes[-1]
        count = max(self.sizes)
        rows = generator.choice(len(data.y), min(count, len(data.y)), replace=False)
        self._ordinary: Rows = np.resize(rows, count)
        self._extreme = _extreme_rows(data)

    @property
    def rows(self) -> Rows:
        """Returns all rows that occur in the batches, each once."""
        return np.unique(np.concatenate([self._ordinary, self._extreme]))

    def take(self, rows: Rows) -> Any:
        """Returns (inputs, labels) of the rows."""
        return self._data.take(rows)

    def __iter__(self) -> Iterator[Rows]:
        """Yields batches of one row, and then larger batches in which rows stand beside different other rows."""
        for row in [*self._ordinary[:_ALONE], *self._extreme]:
            yield np.array([row])
        for number, size in enumerate(self.sizes):
            rows = self._ordinary[:size]
            half = size // 2
            yield rows
            # One extreme row among ordinary ones, in another order.
            yield self._shuffle(rows[:-1], self._extreme[number % len(self._extreme) :][:1])
            yield self._shuffle(rows[:half], np.resize(self._extreme, size - half))
            # Copies of the most extreme row, and of an ordinary one.
            yield self._shuffle(rows[half:], np.resize(self._extreme[:1], half))
            yield self._shuffle(rows[::2], np.resize(rows[:1], half))

    def pairs(self, number: int, large: bool) -> Iterator[tuple[Rows, Rows]]:
        """Yields a pair of batches of the same size, in which some rows stay at their place and all others differ.

        Yields nothing if the size is 1.

        Args:
          number: index of the random state, from 0. It selects the rows that stay: in turn the first half, the second
            half, and all but one.
          large: whether the batches have the largest size; otherwise they hold at most `_RANDOM_BATCH` rows.
        """
        size = self._pair_sizes[large]
        rows = self._ordinary[:size]
        place = np.arange(size)
        stays = (place < size // 2, place >= size // 2, place != number % size)[number % 3]
        extreme = np.resize(np.roll(self._extreme, -(number // 3)), size)
        if size > 1:
            yield rows, np.where(stays, rows, extreme)

    def _shuffle(self, *rows: Rows) -> Rows:
        return self._generator.permutation(np.concatenate(rows))


def rows_stay(batches: Batches, forward: Forward, variables: list[tf.Variable], generator: np.random.Generator) -> bool:
    """Returns whether the loss of each row is the same in all batches, up to rounding.

    Args:
      batches: batches of the data.
      forward: computes the losses; it must not draw random numbers.
      variables: variables that the losses depend on. They are changed, and put back.
      generator: draws the changes.
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

    Both passes have the same number of examples, so that the same kernels compute them and the rounding is the same.

    Args:
      batches: batches of the data.
      forward: computes the losses; it must draw the same random numbers at each call.
      number: index of the random state, from 0. It selects the rows that stay (see `Batches.pairs`).
      large: whether the batches have the largest size (see `Batches.pairs`).
    """
    for rows, exchanged in batches.pairs(number, large):
        losses = forward(*batches.take(rows))
        changed = forward(*batches.take(exchanged))
        finite = np.abs(losses[np.isfinite(losses)])
        tolerances = _RELATIVE * (np.abs(losses) + (np.median(finite) if finite.size else 0)) + _ABSOLUTE
        stay = rows == exchanged
        if not same(changed[stay], losses[stay], tolerances[stay]):
            return False
    return True


def same(losses: Any, others: Any, tolerances: Any) -> bool:
    """Returns whether losses differ by at most the tolerances; two losses that are not finite count as the same."""
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
    """Returns how far rounding can move each of the losses [B] of (x, y), estimated as described at `_CHANGE`.

    Args:
      losses: the losses `forward(x, y)`, [B].
      x: inputs, a nest of arrays [B, ...].
      y: labels [B, ...].
      forward: computes the losses; it must draw the same random numbers at each call, or none.
      variables: variables that the losses depend on. They are changed, and put back.
      generator: draws the changes.
    """
    moved = np.zeros(len(losses))
    finite = np.isfinite(losses)

    def change(value: npt.NDArray[Any], signs: bool) -> tf.Tensor:
        sign = generator.integers(0, 2, value.shape) * 2 - 1 if signs else np.array(1)
        return tf.constant(value * (1 + _CHANGE * sign), value.dtype)

    def change_input(part: tf.Tensor) -> tf.Tensor:
        return change(part.numpy(), True) if part.dtype.is_floating else part

    values = [(v, v.numpy()) for v in variables if v.dtype.is_floating]
    try:
        for signs in (True, True, False):
            for v, value in values:
                v.assign(change(value, signs))
            changed = forward(tf.nest.map_structure(change_input, x), y)
            both_finite = finite & np.isfinite(changed)
            moved[both_finite] = np.maximum(moved[both_finite], np.abs(changed[both_finite] - losses[both_finite]))
    finally:
        for v, value in values:
            v.assign(value)
    moved = np.maximum(moved, np.median(moved))
    return _SLACK * moved + _RELATIVE * np.abs(losses) + _ABSOLUTE


def _extreme_rows(data: Examples) -> Rows:
    """Returns the extreme rows of all arrays, each row once, those of the inputs before those of the labels."""
    rows = [row for part in tf.nest.flatten((data.x, data.y)) for row in _extremes_of(part)]
    return np.array(list(dict.fromkeys(rows)))


def _extremes_of(part: npt.NDArray[Any]) -> list[int]:
    """Returns the rows with the largest L2 norm, the largest entry, the smallest entry, and the smallest norm."""
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
