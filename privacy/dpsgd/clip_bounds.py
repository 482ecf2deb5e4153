"""Bounds each example's contribution to a sum of scaled gradients, rounding included, and computes clipping factors.

Rounding never makes an example contribute more than the clip norm C. Let u be the unit roundoff (2^-24 in float32) and
γ(n) = n u / (1 - n u), the relative error of n successive roundings (Higham 2002, "Accuracy and stability of numerical
algorithms", lemma 3.1). An example's gradient of a weight [M, N] is G = sum over T positions of l_t r_t', for the
factors l_t and r_t as they were computed. Its *mass* is S = sum of |l_t| |r_t|, where |·| is the L2 norm. Where the
outer products cancel, |G| may be far below S.

1. Norm. |G|² is a sum of T² products of two inner products, all in float64. Its error is at most
   γ(M + N + T² + 2) S² with u = 2^-53 (by the Cauchy-Schwarz inequality on absolute values). This bound is added
   to the computed |G|².
2. Own rounding. The matrix product that adds up the examples computes each entry of f G, for a factor f, with at most
   T + 1 roundings for each term (f r_t, the product, and T - 1 additions in any order). The error of an entry is at
   most γ(T + 1) times the same entry of f sum abs(l_t) abs(r_t)', so the error of f G is at most γ(T + 1) f S in norm.
   Above `LONGEST_SINGLE` positions the product is computed in float64 and rounded once. For an embedding, a row that c
   positions share takes c roundings for each term, and S² is the sum over rows of (sum of the row's |r_t|)².
3. Factor. So f times the norm of (|G| + γ S) over all weights bounds the example's contribution to the sum. The factor
   f is at most (1 - 8 u) C divided by that norm. The 8 u cover the rounding of f to the weights' precision, the one
   rounding of each entry of a materialised gradient when it is scaled, and underflow. An example counts as zero if
   underflow could change its contribution by more than u C / 2.
4. Summation error. With other examples, each entry is a sum of n terms, where n is examples times positions. Like any
   floating-point sum, the result is off by at most γ(n) times the sum of f S over all examples. The factor keeps f S at
   or below `_LARGEST_MASS` C, so that one example, however it cancels, cannot spoil the sum of the others.

This holds for IEEE arithmetic with additions in any order, with or without fused multiply-add and subnormal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from privacy.dpsgd.ghost_norms import Term, is_double, is_float

_LARGEST_MASS = 64.0
"""Largest mass of a clipped gradient, in clip norms. With random signs, the outer products of T positions have a mass
of about √T times the gradient's norm."""

_DOUBLE = 2.0**-53  # unit roundoff of float64
_LATER_ROUNDINGS = 1000  # upper bound on the float64 roundings from a norm to a factor (square roots, sums, products)
_LARGEST_SQUARE = 1e240  # larger squares of float64 factors count as infinite, since products of two could overflow
_LOST_SQUARES = 1e-50  # upper bound on what underflow takes from a squared norm
_SHORT_AXIS = 2048  # longest axis whose squares are added in float32: the norm is then off by γ / 2 = 6e-5 of itself


class Bounds(NamedTuple):
    """Holds bounds on what each example contributes to the summed gradients of all weights, float64 [B].

    `norm` is not finite where the example's gradient is not.

    Attributes:
      norm: upper bound on the L2 norm of an example's contribution to the sums, divided by the example's factor.
      mass: upper bound on the example's mass: the L2 norm over weights of the sum over positions of |left_t| |right_t|.
        Weights with one position are left out, since there mass and norm are equal.
      lost: upper bound on the L2 norm of what underflow changes in the sums, whatever the factor.
    """

    norm: tf.Tensor
    mass: tf.Tensor
    lost: tf.Tensor


def compute_bounds(groups: Sequence[Sequence[Term]]) -> Bounds:
    """Returns each example's bounds over all weights (see the module), for terms grouped by `ghost_norms.by_weight`."""
    wide, single = _Float64(), [group for group in groups if _is_single(group)]
    bounds = [_bound_group(group, wide) for group in groups if not _is_single(group)]
    bounds += [_bound_single(single)] if single else []
    if len(bounds) == 1:
        return bounds[0]
    return Bounds(*(tf.sqrt(tf.add_n([tf.square(part) for part in parts])) for parts in zip(*bounds, strict=True)))


def clip_factors(bounds: Bounds, clip_norm: float, denominator: float, dtypes: Sequence[Any]) -> tf.Tensor:
    """Returns factors, float64 [B], with which each example adds at most clip_norm / denominator to `scaled_sums`.

    Args:
      bounds: from `compute_bounds`.
      clip_norm: bound C on the L2 norm of one example's clipped gradient, > 0; inf: no example is scaled down.
      denominator: divisor of the sum, > 0.
      dtypes: dtypes of the weights.

    Returns:
      The factors. A factor is 0 where the gradient is not finite, where the factor itself would underflow, or where
      underflow in the products could change too much, as with inputs of about 1e25 and more.
    """
    zero = tf.zeros([], tf.float64)
    bounded = tf.math.is_finite(bounds.norm) & tf.math.is_finite(bounds.mass)
    if not np.isfinite(clip_norm):
        return tf.where(bounded, tf.constant(1 / denominator, tf.float64), zero)
    unit, tiny = max(map(_unit, dtypes)), max(map(_tiny, dtypes))
    largest = tf.maximum(tf.maximum(bounds.norm, bounds.mass / _LARGEST_MASS), clip_norm)
    factors = (1 - 8 * unit) * clip_norm / denominator / largest
    bounded &= (factors >= 2 * tiny) & (bounds.lost <= unit / 2 * clip_norm / denominator)
    return tf.where(bounded, factors, zero)


def _is_single(group: Sequence[Term]) -> bool:
    """Returns whether nothing can cancel over positions: the gradient is materialised, or there is one position."""
    return group[0].left is None or (len(group) == 1 and group[0].right.shape[1] == 1)


def _bound_single(groups: Sequence[Sequence[Term]]) -> Bounds:
    """Bounds each example's gradient over the weights of groups for which `_is_single` holds."""
    # All groups are computed at once: in a small model, starting an operation takes as long as its arithmetic.
    collected, lefts, rights, factors, roots, lost = _Norms(), [], [], [], [], 0.0
    for (term,) in groups:
        outer = is_float(term.left)
        size, unit, tiny = float(np.prod(term.weight.shape)), _unit(term.right.dtype), _tiny(term.right.dtype)
        lefts.append(collected.index(term.left, term.weight.shape[0]) if outer else -1)
        rights.append(collected.index(term.right, size if term.left is None else term.weight.shape[-1]))
        factors.append(1 + 3 * unit if outer else 1.0)  # l r' is rounded twice; a materialised gradient is summed as is
        roots.append(tiny * float(term.right.shape[-1]) ** 0.5 if outer else 0.0)
        lost += tiny * size**0.5
    stacked = collected.stacked()
    norms = tf.gather(stacked, rights)
    if any(roots):
        ones_last = tf.pad(stacked, [[0, 1], [0, 0]], constant_values=1.0)  # row -1 is for terms without a left factor
        left = tf.gather(ones_last, [i % (len(collected) + 1) for i in lefts])
        norms *= left * tf.constant(factors, tf.float64)[:, tf.newaxis]
        losses = lost + tf.linalg.matvec(left, tf.constant(roots, tf.float64), transpose_a=True)
    else:
        losses = tf.fill(tf.shape(stacked)[1:], tf.constant(lost, tf.float64))
    norm = tf.sqrt(tf.reduce_sum(tf.square(norms), axis=0))
    return Bounds(norm, tf.zeros_like(norm), losses)


class _Norms:
    """Collects tensors and computes the L2 norm of each example's part of each tensor, rounded up."""

    def __init__(self) -> None:
        self._tensors: list[tf.Tensor] = []
        self._squares: list[tf.Tensor] = []
        self._relative: list[float] = []
        self._absolute: list[float] = []

    def __len__(self) -> int:
        return len(self._tensors)

    def index(self, values: tf.Tensor, size: float) -> int:
        """Returns the row of `stacked` for values [B, ...], `size` of them for each example; collects new values."""
        for number, tensor in enumerate(self._tensors):
            if tensor is values:
                return number
        dtype, shape = values.dtype, values.shape
        relative, absolute = 1 + 2 * _DOUBLE * (size + _LATER_ROUNDINGS), _entry_loss(dtype)
        if dtype != tf.float64 and size > _SHORT_AXIS >= (shape[-1] or math.inf):
            # The last axis is summed in the tensor's own precision, since a float64 copy would be twice as large.
            relative *= 1 + 2 * _unit(dtype) * (shape[-1] + 1)
            absolute = _tiny(dtype) ** 0.5
            squares = tf.cast(tf.reduce_sum(tf.square(values), axis=-1), tf.float64)
        else:
            squares = _square(values)
        self._tensors.append(values)
        self._squares.append(tf.reduce_sum(squares, axis=list(range(1, squares.shape.rank))))
        self._relative.append(relative)
        self._absolute.append(relative * absolute * size**0.5)
        return len(self) - 1

    def stacked(self) -> tf.Tensor:
        """Returns the norms, float64 [tensors, B]."""
        relative, absolute = (tf.constant(part, tf.float64)[:, tf.newaxis] for part in (self._relative, self._absolute))
        return relative * tf.sqrt(tf.stack(self._squares)) + absolute


def _bound_group(group: Sequence[Term], wide: _Float64) -> Bounds:
    """Bounds each example's gradient of one weight, a sum over several positions."""
    weight, dtype = group[0].weight, group[0].right.dtype
    size, tiny, entry_loss = float(np.prod(weight.shape)), _tiny(dtype), _entry_loss(dtype)
    masses, shifts, losses, roundings = [], [], [], []
    for term in group:
        root, length, right = float(term.right.shape[-1]) ** 0.5, _count_positions(term), wide.norms(term.right)
        if term.is_rows:
            same = wide.same(term.left)
            masses.append(tf.sqrt(tf.reduce_sum(right * tf.linalg.matvec(same, right), axis=1)))
            shifts.append(entry_loss * root * length)
            losses.append(tiny * root * length)
            roundings.append(tf.reduce_max(tf.reduce_sum(same, axis=2), axis=1))
        else:
            other_root, left = float(term.left.shape[-1]) ** 0.5, wide.norms(term.left)
            masses.append(tf.reduce_sum(left * right, axis=1))
            shifts.append(entry_loss * tf.reduce_sum(other_root * right + root * left, axis=1))
            losses.append(tiny * (root * tf.reduce_sum(left, axis=1) + size**0.5 * length))
            roundings.append(1.0 if is_double(term) else length)
    mass, relative = sum(masses), 1 + 2 * _DOUBLE * (sum(weight.shape) + _LATER_ROUNDINGS)
    positions = sum(_count_positions(term) for term in group)
    slack = 2 * _DOUBLE * (sum(weight.shape) + positions * positions + 16)
    squared = wide.squared_norms(group) + slack * tf.square(mass) + _LOST_SQUARES
    norm = tf.sqrt(tf.where(squared < 0, tf.zeros([], tf.float64), squared)) + sum(shifts)  # keeps NaN
    own = _gamma(sum(roundings) + 1.0, _unit(dtype)) * mass
    return Bounds(relative * (norm + own), relative * mass, tf.zeros_like(mass) + sum(losses))


class _Float64:
    """Caches what is computed in float64 from the terms' factors, since several terms may share a factor."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, int], tf.Tensor] = {}
        self._kept: list[tf.Tensor] = []  # alive, so that no other tensor gets the same `id`

    def _once(self, kind: str, tensor: tf.Tensor, compute: Callable[[], tf.Tensor]) -> tf.Tensor:
        """Returns compute(), called once for each kind and tensor."""
        key = (kind, id(tensor))
        if key not in self._results:
            self._kept.append(tensor)
            self._results[key] = compute()
        return self._results[key]

    def cast(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the rows in float64."""
        return self._once("cast", rows, lambda: tf.cast(rows, tf.float64))

    def norms(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the L2 norms [B, T] of rows [B, T, N], plus a bound on what underflow takes from them.

        The caller allows for the float64 roundings.
        """
        loss = _entry_loss(rows.dtype) * float(rows.shape[-1]) ** 0.5

        def compute() -> tf.Tensor:
            squares = tf.linalg.diag_part(self.products(rows))
            if rows.dtype == tf.float64:
                squares = tf.where(squares > _LARGEST_SQUARE, tf.constant(np.inf, tf.float64), squares)
            return tf.sqrt(squares) + loss

        return self._once("norms", rows, compute)

    def products(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the inner products [B, T, T] of rows [B, T, N]."""
        return self._once("products", rows, lambda: tf.matmul(self.cast(rows), self.cast(rows), transpose_b=True))

    def same(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns [B, T, T], 1 where two of the row numbers [B, T] are equal and 0 elsewhere."""
        return self._once(
            "same",
            numbers,
            lambda: tf.cast(tf.equal(numbers[:, :, tf.newaxis], numbers[:, tf.newaxis, :]), tf.float64),
        )

    def squared_norms(self, group: Sequence[Term]) -> tf.Tensor:
        """Returns the squared L2 norms [B] of each example's gradient of one weight."""
        total = []
        for term in group:
            other = self.same(term.left) if term.is_rows else self.products(term.left)
            total.append(tf.reduce_sum(other * self.products(term.right), axis=[1, 2]))
        if len(group) == 2:
            rows, outer = group
            at_rows = tf.gather(self.cast(outer.left), rows.left, axis=2, batch_dims=1)
            crossed = at_rows * tf.matmul(self.cast(outer.right), self.cast(rows.right), transpose_b=True)
            total.append(2 * tf.reduce_sum(crossed, axis=[1, 2]))
        return tf.add_n(total)


def _square(values: tf.Tensor) -> tf.Tensor:
    """Squares values in float64; a square above `_LARGEST_SQUARE` is infinite."""
    squares = tf.square(tf.cast(values, tf.float64))
    if values.dtype != tf.float64:
        return squares
    return tf.where(squares > _LARGEST_SQUARE, tf.constant(np.inf, tf.float64), squares)


def _count_positions(term: Term) -> Any:
    """Returns T as a float, or as a tensor where it differs from call to call."""
    length = term.right.shape[1]
    return tf.cast(tf.shape(term.right)[1], tf.float64) if length is None else float(length)


def _gamma(roundings: Any, unit: float) -> tf.Tensor:
    """Returns γ(roundings), the relative error of so many successive roundings."""
    lost = tf.convert_to_tensor(roundings, tf.float64) * unit
    return tf.where(lost < 0.5, lost / (1 - lost), tf.constant(np.inf, tf.float64))


def _unit(dtype: Any) -> float:
    """Returns the unit roundoff."""
    return float(np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps) / 2


def _tiny(dtype: Any) -> float:
    """Returns the smallest normal number, by which underflow may change a result where subnormals count as zero."""
    return float(np.finfo(tf.as_dtype(dtype).as_numpy_dtype).tiny)


def _entry_loss(dtype: Any) -> float:
    """Returns the size below which an entry may count as 0 in a norm.

    In float32 such an entry is subnormal, and the cast to float64 may give 0. In float64 its square underflows (below
    1e-154).
    """
    return _tiny(dtype) if tf.as_dtype(dtype) != tf.float64 else _tiny(dtype) ** 0.5
