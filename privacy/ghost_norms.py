"""Norms and clipped sums of per-example gradients that are never made ("ghost clipping").

Most weights' gradient is, for each example, a sum of outer products over positions (time steps): of what went into the
layer and of the loss's gradient at what came out. Its norm follows from inner products of the factors alone (Goodfellow
2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679), and the clipped sum is one matrix product with one factor
scaled (Bu et al. 2023, arXiv:2210.00038).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# Of squares of sums: what rounding may hide where an example's outer products cancel.
_ROUNDING = 4


class Term(NamedTuple):
    """A part of each example's gradient of one weight. Parts of the same weight add up.

    Attributes:
      weight: a variable.
      left: float [B, T, M] (outer products: sum over t of left_t right_t', of shape [M, N]); or whole numbers [B, T]
        (row left_t of the weight gets right_t); or None (the part itself is `right`).
      right: float [B, T, N]; or, without left, [B, ...] of the weight's shape.
    """

    weight: Any
    left: Any
    right: Any

    @property
    def is_rows(self) -> bool:
        """Whether `left` holds numbers of rows."""
        return self.left is not None and self.left.dtype.is_integer


def by_weight(terms: Sequence[Term]) -> list[list[Term]]:
    """The terms of each weight, at most one of a kind, and nothing beside a part that is whole."""
    groups: dict[int, list[Term]] = {}
    for term in terms:
        groups.setdefault(id(term.weight), []).append(term)
    return [_merged(group) for group in groups.values()]


def squared_norms(groups: Sequence[Sequence[Term]]) -> tf.Tensor:
    """Squared L2 norm of each example's gradient over all weights, [B]; of terms `by_weight`.

    Never too small for rounding: 4 units in the last place of (sum over t of |left_t| |right_t|)² are added.
    """
    return tf.add_n([_squared_norm(group) for group in groups])


def scaled_sums(groups: Sequence[Sequence[Term]], factors: tf.Tensor) -> list[tf.Tensor]:
    """For each weight the sum over examples of factor [B] times gradient.

    A factor of 0 leaves its example out, even where that is not finite.
    """
    parts = [part for group in groups for term in group for part in (term.left, term.right) if _is_float(part)]

    def left_out() -> list[tf.Tensor]:
        return [tf.where(_column(factors, part) > 0, part, tf.zeros([], part.dtype)) for part in parts]

    # Looked at as a whole: in the usual case nothing is copied.
    sound = iter(tf.cond(tf.reduce_all(factors > 0), lambda: parts, left_out))
    return [
        _scaled_sum(
            [Term(term.weight, next(sound) if _is_float(term.left) else term.left, next(sound)) for term in group],
            factors,
        )
        for group in groups
    ]


def in_order(weights: list[Any], groups: Sequence[Sequence[Term]], factors: tf.Tensor) -> list[tf.Tensor]:
    """For each weight the sum of its terms scaled by factors [B]; zero for one that took no part."""
    found = dict(zip((id(group[0].weight) for group in groups), scaled_sums(groups, factors), strict=True))
    return [found[id(w)] if id(w) in found else tf.zeros(w.shape, factors.dtype) for w in weights]


def _scaled_sum(group: Sequence[Term], factors: tf.Tensor) -> tf.Tensor:
    total = None
    for term in sorted(group, key=lambda term: term.is_rows):
        right = term.right * _column(factors, term.right)
        if term.left is None:
            part = tf.reduce_sum(right, axis=0)
        elif term.is_rows:
            start = tf.zeros(term.weight.shape, right.dtype) if total is None else total
            total = tf.tensor_scatter_nd_add(
                start, tf.reshape(term.left, [-1, 1]), tf.reshape(right, [-1, right.shape[-1]])
            )
            continue
        else:
            part = tf.matmul(
                tf.reshape(term.left, [-1, term.left.shape[-1]]),
                tf.reshape(right, [-1, right.shape[-1]]),
                transpose_a=True,
            )
        total = part if total is None else total + part
    return total


def _is_float(part: Any) -> bool:
    return part is not None and bool(part.dtype.is_floating)


def _column(factors: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """[B] as [B, 1, ...], to go with value [B, ...]."""
    return tf.reshape(factors, [-1] + [1] * (value.shape.rank - 1))


def _merged(group: list[Term]) -> list[Term]:
    weight = group[0].weight
    rows = [term for term in group if term.is_rows]
    outer = [term for term in group if term.left is not None and not term.is_rows]
    whole = [term.right for term in group if term.left is None]
    # Many positions of few features: the gradients themselves are smaller than the inner products of their factors.
    positions = sum(term.left.shape[1] or 0 for term in outer)
    if outer and not rows and positions * sum(weight.shape) > 2 * weight.shape[0] * weight.shape[1]:
        whole, outer = [*whole, *(_materialised(term) for term in outer)], []
    if whole:
        return [Term(weight, None, tf.add_n([*whole, *(_materialised(term) for term in [*rows, *outer])]))]
    return [
        Term(weight, _joined([term.left for term in kind]), _joined([term.right for term in kind]))
        for kind in (rows, outer)
        if kind
    ]


def _joined(parts: list[tf.Tensor]) -> tf.Tensor:
    """[B, T_i, ...] along the positions."""
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def _materialised(term: Term) -> tf.Tensor:
    """Each example's part of the gradient, [B, M, N]."""
    if not term.is_rows:
        return tf.matmul(term.left, term.right, transpose_a=True)
    one_hot = tf.one_hot(term.left, term.weight.shape[0], dtype=term.right.dtype)
    return tf.matmul(one_hot, term.right, transpose_a=True)


def _squared_norm(group: Sequence[Term]) -> tf.Tensor:
    if group[0].left is None:
        right = group[0].right
        return tf.reduce_sum(tf.square(right), axis=list(range(1, right.shape.rank)))
    if len(group) == 1 and group[0].right.shape[1] == 1:
        norms = _squares(group[0].right)
        return (norms if group[0].is_rows else norms * _squares(group[0].left))[:, 0]
    total, lengths = [], []
    for term in group:
        inner = tf.matmul(term.right, term.right, transpose_b=True)
        if term.is_rows:
            same = tf.equal(term.left[:, :, tf.newaxis], term.left[:, tf.newaxis, :])
            inner = tf.where(same, inner, tf.zeros([], inner.dtype))
            lengths.append(tf.reduce_sum(tf.sqrt(_squares(term.right)), axis=1))
        else:
            inner *= tf.matmul(term.left, term.left, transpose_b=True)
            lengths.append(tf.reduce_sum(tf.sqrt(_squares(term.left) * _squares(term.right)), axis=1))
        total.append(tf.reduce_sum(inner, axis=[1, 2]))
    if len(group) == 2:
        rows, outer = group
        at_rows = tf.gather(outer.left, rows.left, axis=2, batch_dims=1)
        crossed = at_rows * tf.matmul(outer.right, rows.right, transpose_b=True)
        total.append(2 * tf.reduce_sum(crossed, axis=[1, 2]))
    squared = tf.add_n(total)
    squared = tf.where(squared < 0, tf.zeros([], squared.dtype), squared)  # what is no number stays none
    unit = float(np.finfo(squared.dtype.as_numpy_dtype).eps)
    return squared + _ROUNDING * unit * tf.square(tf.add_n(lengths))


def _squares(rows: tf.Tensor) -> tf.Tensor:
    """Squared lengths [B, T] of rows [B, T, N]."""
    return tf.reduce_sum(tf.square(rows), axis=-1)
