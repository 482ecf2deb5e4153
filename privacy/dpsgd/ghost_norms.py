"""Clips and sums per-example gradients without materialising them ("ghost clipping").

For most weights, each example's gradient is a sum of outer products over positions (time steps). The factors of an
outer product are the layer's input and the loss's gradient at the layer's output. The norm of the sum follows from
inner products of these factors alone (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679). The sum of
clipped gradients is one matrix product, with one of the factors scaled (Bu et al. 2023, arXiv:2210.00038).
`privacy.dpsgd.clip_bounds` proves a bound on each example's contribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

LONGEST_SINGLE = 128
"""Largest number of positions whose products are computed in the weights' own precision. An example whose outer
products have random signs then loses γ(T + 1) √T < 1e-4 of its norm to the bound on their rounding."""


class Term(NamedTuple):
    """Describes a part of each example's gradient of one weight. The parts of a weight add up.

    Attributes:
      weight: the variable.
      left: float [B, T, M]: the part is the sum over t of the outer products left_t right_t', of shape [M, N]. Integers
        [B, T]: for each t, right_t is added to row left_t of the part. None: `right` is the materialised part.
      right: float [B, T, N]; without `left`, float [B, ...] of the weight's shape.
    """

    weight: Any
    left: Any
    right: Any

    @property
    def is_rows(self) -> bool:
        """Returns whether `left` holds row numbers."""
        return self.left is not None and self.left.dtype.is_integer


def by_weight(terms: Sequence[Term]) -> list[list[Term]]:
    """Groups terms by weight, merged to one term of each kind, or to one term in all if a part is materialised."""
    groups: dict[int, list[Term]] = {}
    for term in terms:
        groups.setdefault(id(term.weight), []).append(term)
    return [_merge(group) for group in groups.values()]


def scaled_sums(groups: Sequence[Sequence[Term]], factors: tf.Tensor) -> list[tf.Tensor]:
    """Returns, for each group's weight, the sum over examples of factor times gradient.

    The factors are float64 [B]. A factor of 0 leaves its example out, even where its gradient is not finite.
    """
    parts = [part for group in groups for term in group for part in (term.left, term.right) if is_float(part)]

    def zero_excluded() -> list[tf.Tensor]:
        return [tf.where(_column(factors, part) > 0, part, tf.zeros([], part.dtype)) for part in parts]

    # One condition for the whole batch, since usually no factor is 0 and nothing has to be copied.
    included = iter(tf.cond(tf.reduce_all(factors > 0), lambda: parts, zero_excluded))
    return [
        _sum_scaled(
            [Term(term.weight, next(included) if is_float(term.left) else term.left, next(included)) for term in group],
            factors,
        )
        for group in groups
    ]


def in_order(weights: list[Any], groups: Sequence[Sequence[Term]], factors: tf.Tensor) -> list[tf.Tensor]:
    """Returns `scaled_sums` in the order of `weights`, with zeros for a weight that has no term."""
    sums = dict(zip((id(group[0].weight) for group in groups), scaled_sums(groups, factors), strict=True))
    return [sums[id(w)] if id(w) in sums else tf.zeros(w.shape, w.dtype) for w in weights]


def _sum_scaled(group: Sequence[Term], factors: tf.Tensor) -> tf.Tensor:
    total = None
    for term in sorted(group, key=lambda term: term.is_rows):
        dtype = term.right.dtype
        left, right = term.left, term.right
        if is_double(term):
            left, right = tf.cast(left, tf.float64), tf.cast(right, tf.float64)
        right *= _column(factors, right)
        if left is None:
            part = tf.reduce_sum(right, axis=0)
        elif term.is_rows:
            start = tf.zeros(term.weight.shape, right.dtype) if total is None else total
            total = tf.tensor_scatter_nd_add(start, tf.reshape(left, [-1, 1]), tf.reshape(right, [-1, right.shape[-1]]))
            continue
        else:
            part = tf.cast(
                tf.matmul(
                    tf.reshape(left, [-1, left.shape[-1]]), tf.reshape(right, [-1, right.shape[-1]]), transpose_a=True
                ),
                dtype,
            )
        total = part if total is None else total + part
    return total


def is_double(term: Term) -> bool:
    """Returns whether the term's products are computed in float64 although its factors are not."""
    if term.left is None or term.is_rows or term.right.dtype == tf.float64:
        return False
    length = term.right.shape[1]
    return length is None or length > LONGEST_SINGLE


def is_float(part: Any) -> bool:
    """Returns whether a term's part is a floating-point tensor."""
    return part is not None and bool(part.dtype.is_floating)


def _column(factors: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Reshapes factors [B] to [B, 1, ...] of the value's dtype, to multiply a value [B, ...]."""
    return tf.reshape(tf.cast(factors, value.dtype), [-1] + [1] * (value.shape.rank - 1))


def _merge(group: list[Term]) -> list[Term]:
    weight = group[0].weight
    rows = [term for term in group if term.is_rows]
    outer = [term for term in group if term.left is not None and not term.is_rows]
    whole = [term.right for term in group if term.left is None]
    # With many positions and few features, the gradients take less memory than the inner products of their factors.
    positions = sum(term.left.shape[1] or 0 for term in outer)
    if outer and not rows and positions * sum(weight.shape) > 2 * weight.shape[0] * weight.shape[1]:
        whole, outer = [*whole, *(_materialise(term) for term in outer)], []
    if whole:
        return [Term(weight, None, tf.add_n([*whole, *(_materialise(term) for term in [*rows, *outer])]))]
    return [
        Term(weight, _join([term.left for term in kind]), _join([term.right for term in kind]))
        for kind in (rows, outer)
        if kind
    ]


def _join(parts: list[tf.Tensor]) -> tf.Tensor:
    """Concatenates tensors [B, T_i, ...] along the positions."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def _materialise(term: Term) -> tf.Tensor:
    """Computes each example's part of the gradient, [B, M, N]."""
    if not term.is_rows:
        return tf.matmul(term.left, term.right, transpose_a=True)
    one_hot = tf.one_hot(term.left, term.weight.shape[0], dtype=term.right.dtype)
    return tf.matmul(one_hot, term.right, transpose_a=True)
