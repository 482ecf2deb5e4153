"""Bounds on what a sum of scaled gradients holds of each example, and the factors that clip by them.

Rounding never makes an example count for more than the clip norm C. Let u be the unit roundoff (2^-24 in float32) and
γ(n) = n u / (1 - n u), the relative error of n roundings in a row (Higham 2002, "Accuracy and stability of numerical
algorithms", lemma 3.1). An example's gradient of a weight [M, N] is G = sum over T positions of l_t r_t', for the
factors l_t and r_t as they were computed, and its *mass* is S = sum of |l_t| |r_t|, which G may be far below where the
outer products cancel. |·| is the L2 norm.

1. Norm. |G|² is a sum of T² products of two inner products, all in float64, so that it is off by at most
   γ(M + N + T² + 2) S² with u = 2^-53 (by the Cauchy-Schwarz inequality on absolute values); that is added.
2. Own rounding. The product that sums up computes each entry of f G in at most T + 1 roundings a term (f r_t, the
   product, T - 1 additions, in any order). The error is at most γ(T + 1) times the entry of sum |l_t| |r_t|', hence at
   most γ(T + 1) f S as a whole. Above `LONGEST_SINGLE` positions it is taken in float64 and rounded once. A row of
   an embedding that c positions share takes c roundings a term, and S is taken over the sums of each row.
3. So |G| + γ S, over all weights, is a bound on what the sum holds of the example, over f; the factor f is at most
   (1 - 8 u) C over that bound. The 8 u are for f itself (rounded to the weights' precision), for gradients that were
   made (scaled by one rounding an entry), and for underflow: at most u C / 2, or the example counts as zero.
4. Summation error. Beside others, a sum of n terms an entry (examples times positions) is off by at most γ(n) times the
   sum of f S over all its examples, as any floating-point sum is. The factor keeps f S at or below `_LARGEST_MASS` C,
   so that one example, however it cancels, cannot spoil what the others add up to.

This holds for IEEE arithmetic in any order, with or without fused multiply-add and subnormal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from privacy.dpsgd.ghost_norms import Term, is_double, is_float

_LARGEST_MASS = 64.0
"""Largest mass of a clipped gradient, in clip norms. With random signs it is √T."""

_DOUBLE = 2.0**-53
_FOLLOWING = 1000  # roundings in float64, at most, from a norm to a factor: square roots, sums over weights, products
_LARGEST_SQUARE = 1e240  # of a float64 factor: products of two stay far from underflow and overflow
_LOST_SQUARES = 1e-50  # at most what underflow takes from a squared norm below it
_SHORT_AXIS = 2048  # whose squares are added in float32: γ / 2 = 6e-5 of the norm


class Bounds(NamedTuple):
    """Bounds on each example's part in the sums of all weights, float64 [B]; not finite where its gradient is not.

    Attributes:
      norm: at least the L2 norm of what the sums hold of an example, over its factor.
      mass: at least the L2 norm over weights of the sum over positions of |left_t| |right_t|, for weights with several
        positions (with one it is the norm).
      lost: at least the L2 norm of what underflow changes in the sums, whatever the factor.
    """

    norm: tf.Tensor
    mass: tf.Tensor
    lost: tf.Tensor


def compute_bounds(groups: Sequence[Sequence[Term]]) -> Bounds:
    """Bounds the norm of each example's gradient over all weights, of terms `by_weight`: see the module."""
    wide, single = _Wide(), [group for group in groups if _is_single(group)]
    found = [_bounds(group, wide) for group in groups if not _is_single(group)]
    found += [_single_bounds(single)] if single else []
    if len(found) == 1:
        return found[0]
    return Bounds(*(tf.sqrt(tf.add_n([tf.square(part) for part in parts])) for parts in zip(*found, strict=True)))


def clip_factors(bounds: Bounds, clip: float, denominator: float, dtypes: Sequence[Any]) -> tf.Tensor:
    """Returns factors, float64 [B], at which each example adds at most `clip` / `denominator` to `scaled_sums`.

    Args:
      bounds: of `compute_bounds`.
      clip_norm: L2 norm C of one example's part, > 0; inf: none is scaled down.
      denominator: > 0, of the sum.
      dtypes: those of the weights.

    Returns:
      0 where the gradient is not finite, or where underflow (of the factor, or beside inputs of 1e25 and more) leaves
      no bound.
    """
    zero = tf.zeros([], tf.float64)
    bounded = tf.math.is_finite(bounds.norm) & tf.math.is_finite(bounds.mass)
    if not np.isfinite(clip):
        return tf.where(bounded, tf.constant(1 / denominator, tf.float64), zero)
    unit, tiny = max(map(_unit, dtypes)), max(map(_tiny, dtypes))
    largest = tf.maximum(tf.maximum(bounds.norm, bounds.mass / _LARGEST_MASS), clip)
    factors = (1 - 8 * unit) * clip / denominator / largest
    bounded &= (factors >= 2 * tiny) & (bounds.lost <= unit / 2 * clip / denominator)
    return tf.where(bounded, factors, zero)


def _is_single(group: Sequence[Term]) -> bool:
    """Whether nothing in the group's sum over positions can cancel: it was made, or there is one position."""
    return group[0].left is None or (len(group) == 1 and group[0].right.shape[1] == 1)


def _single_bounds(groups: Sequence[Sequence[Term]]) -> Bounds:
    """Bounds over all weights of groups that are `_is_single`."""
    # All at once: of a small model an operation costs as much as its arithmetic.
    lengths, lefts, rights, factors, roots, lost = _Lengths(), [], [], [], [], 0.0
    for (term,) in groups:
        outer = is_float(term.left)
        size, unit, tiny = float(np.prod(term.weight.shape)), _unit(term.right.dtype), _tiny(term.right.dtype)
        lefts.append(lengths.index(term.left, term.weight.shape[0]) if outer else -1)
        rights.append(lengths.index(term.right, size if term.left is None else term.weight.shape[-1]))
        factors.append(1 + 3 * unit if outer else 1.0)  # of l r' twice rounded; what was made is the very summand
        roots.append(tiny * float(term.right.shape[-1]) ** 0.5 if outer else 0.0)
        lost += tiny * size**0.5
    found = lengths.stacked()
    norms = tf.gather(found, rights)
    if any(roots):
        left = tf.gather(tf.pad(found, [[0, 1], [0, 0]], constant_values=1.0), [i % (len(lengths) + 1) for i in lefts])
        norms *= left * tf.constant(factors, tf.float64)[:, tf.newaxis]
        losses = lost + tf.linalg.matvec(left, tf.constant(roots, tf.float64), transpose_a=True)
    else:
        losses = tf.fill(tf.shape(found)[1:], tf.constant(lost, tf.float64))
    norm = tf.sqrt(tf.reduce_sum(tf.square(norms), axis=0))
    return Bounds(norm, tf.zeros_like(norm), losses)


class _Lengths:
    """L2 norms of each example's tensor, never too small, for many tensors at once."""

    def __init__(self) -> None:
        self._tensors: list[tf.Tensor] = []
        self._squares: list[tf.Tensor] = []
        self._relative: list[float] = []
        self._unsure: list[float] = []

    def __len__(self) -> int:
        return len(self._tensors)

    def index(self, values: tf.Tensor, size: float) -> int:
        """The row of `stacked` for values [B, ...], `size` of each example."""
        for number, tensor in enumerate(self._tensors):
            if tensor is values:
                return number
        dtype, shape = values.dtype, values.shape
        relative, unsure = 1 + 2 * _DOUBLE * (size + _FOLLOWING), _unsure(dtype)
        if dtype != tf.float64 and size > _SHORT_AXIS >= (shape[-1] or math.inf):
            # The last axis in the tensor's own precision: a copy of all in float64 would be twice as large.
            relative *= 1 + 2 * _unit(dtype) * (shape[-1] + 1)
            unsure = _tiny(dtype) ** 0.5
            squares = tf.cast(tf.reduce_sum(tf.square(values), axis=-1), tf.float64)
        else:
            squares = _squares(values)
        self._tensors.append(values)
        self._squares.append(tf.reduce_sum(squares, axis=list(range(1, squares.shape.rank))))
        self._relative.append(relative)
        self._unsure.append(relative * unsure * size**0.5)
        return len(self) - 1

    def stacked(self) -> tf.Tensor:
        """Norms, float64 [tensors, B]."""
        relative, unsure = (tf.constant(part, tf.float64)[:, tf.newaxis] for part in (self._relative, self._unsure))
        return relative * tf.sqrt(tf.stack(self._squares)) + unsure


def _bounds(group: Sequence[Term], wide: _Wide) -> Bounds:
    """Bounds of one weight's part, a sum over several positions."""
    weight, dtype = group[0].weight, group[0].right.dtype
    size, tiny, unsure = float(np.prod(weight.shape)), _tiny(dtype), _unsure(dtype)
    masses, shifts, losses, roundings = [], [], [], []
    for term in group:
        root, length, right = float(term.right.shape[-1]) ** 0.5, _positions(term), wide.lengths(term.right)
        if term.is_rows:
            same = wide.same(term.left)
            masses.append(tf.sqrt(tf.reduce_sum(right * tf.linalg.matvec(same, right), axis=1)))
            shifts.append(unsure * root * length)
            losses.append(tiny * root * length)
            roundings.append(tf.reduce_max(tf.reduce_sum(same, axis=2), axis=1))
        else:
            other_root, left = float(term.left.shape[-1]) ** 0.5, wide.lengths(term.left)
            masses.append(tf.reduce_sum(left * right, axis=1))
            shifts.append(unsure * tf.reduce_sum(other_root * right + root * left, axis=1))
            losses.append(tiny * (root * tf.reduce_sum(left, axis=1) + size**0.5 * length))
            roundings.append(1.0 if is_double(term) else length)
    mass, relative = sum(masses), 1 + 2 * _DOUBLE * (sum(weight.shape) + _FOLLOWING)
    positions = sum(_positions(term) for term in group)
    slack = 2 * _DOUBLE * (sum(weight.shape) + positions * positions + 16)
    squared = wide.squared_norms(group) + slack * tf.square(mass) + _LOST_SQUARES
    norm = tf.sqrt(tf.where(squared < 0, tf.zeros([], tf.float64), squared)) + sum(shifts)  # NaN stays
    own = _gamma(sum(roundings) + 1.0, _unit(dtype)) * mass
    return Bounds(relative * (norm + own), relative * mass, tf.zeros_like(mass) + sum(losses))


class _Wide:
    """What follows from factors in float64, once for each: layers share them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tf.Tensor] = {}
        self._kept: list[tf.Tensor] = []  # so that no other tensor gets its `id`

    def _once(self, kind: str, given: tf.Tensor, make: Callable[[], tf.Tensor]) -> tf.Tensor:
        key = (kind, id(given))
        if key not in self._found:
            self._kept.append(given)
            self._found[key] = make()
        return self._found[key]

    def wide(self, rows: tf.Tensor) -> tf.Tensor:
        """The same in float64."""
        return self._once("wide", rows, lambda: tf.cast(rows, tf.float64))

    def lengths(self, rows: tf.Tensor) -> tf.Tensor:
        """L2 norms [B, T] of rows [B, T, N], never too small."""
        unsure = _unsure(rows.dtype) * float(rows.shape[-1]) ** 0.5

        def made() -> tf.Tensor:
            squares = tf.linalg.diag_part(self.products(rows))
            if rows.dtype == tf.float64:
                squares = tf.where(squares > _LARGEST_SQUARE, tf.constant(np.inf, tf.float64), squares)
            return tf.sqrt(squares) + unsure

        return self._once("lengths", rows, made)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        """Inner products [B, T, T] of rows [B, T, N]."""
        return self._once("products", rows, lambda: tf.matmul(self.wide(rows), self.wide(rows), transpose_b=True))

    def same(self, numbers: tf.Tensor) -> tf.Tensor:
        """1 where two of the numbers [B, T] are equal, [B, T, T]."""
        return self._once(
            "same",
            numbers,
            lambda: tf.cast(tf.equal(numbers[:, :, tf.newaxis], numbers[:, tf.newaxis, :]), tf.float64),
        )

    def squared_norms(self, group: Sequence[Term]) -> tf.Tensor:
        """Squared norms [B] of the sum of a weight's outer products and rows."""
        total = []
        for term in group:
            other = self.same(term.left) if term.is_rows else self.products(term.left)
            total.append(tf.reduce_sum(other * self.products(term.right), axis=[1, 2]))
        if len(group) == 2:
            rows, outer = group
            at_rows = tf.gather(self.wide(outer.left), rows.left, axis=2, batch_dims=1)
            crossed = at_rows * tf.matmul(self.wide(outer.right), self.wide(rows.right), transpose_b=True)
            total.append(2 * tf.reduce_sum(crossed, axis=[1, 2]))
        return tf.add_n(total)


def _squares(values: tf.Tensor) -> tf.Tensor:
    """Squares in float64; infinite where products of two such would overflow."""
    squares = tf.square(tf.cast(values, tf.float64))
    if values.dtype != tf.float64:
        return squares
    return tf.where(squares > _LARGEST_SQUARE, tf.constant(np.inf, tf.float64), squares)


def _positions(term: Term) -> Any:
    """T as a float, or as a tensor where it differs from call to call."""
    length = term.right.shape[1]
    return tf.cast(tf.shape(term.right)[1], tf.float64) if length is None else float(length)


def _gamma(roundings: Any, unit: float) -> tf.Tensor:
    """γ: the relative error of so many roundings in a row."""
    lost = tf.convert_to_tensor(roundings, tf.float64) * unit
    return tf.where(lost < 0.5, lost / (1 - lost), tf.constant(np.inf, tf.float64))


def _unit(dtype: Any) -> float:
    """Unit roundoff."""
    return float(np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps) / 2


def _tiny(dtype: Any) -> float:
    """The smallest normal number: what underflow may change a result by, where subnormal ones count as zero."""
    return float(np.finfo(tf.as_dtype(dtype).as_numpy_dtype).tiny)


def _unsure(dtype: Any) -> float:
    """What an entry may lose in `lengths`: float32 subnormals in the cast, float64 below 1e-154 in the squares."""
    return _tiny(dtype) if tf.as_dtype(dtype) != tf.float64 else _tiny(dtype) ** 0.5
