"""Finds the best paths through a lattice of candidate tokens by the scores of heads and an n-gram model, exactly.

A lattice has k candidate tokens at each of G positions after a text, hence k^G paths. With the heads' scores z_j, an
n-gram model P and a weight alpha, a path y_1, ..., y_G has the score

    sum over j of (z_j[y_j] + alpha ln P(y_j | the n - 1 tokens before it)).

The tokens before it are those of the path and, at the first positions, of the text. Paths are in order of falling
score. Of equal scores, the path with the lower token id at the first position where two paths differ comes first: the
rule of an argmax that takes the lowest id. With alpha = 0 the n-gram model is not asked, and the first path is the
argmax of every head, whatever the scores.

Scores are compared as integers, multiples of 2**-16 nats, so that every backend finds the same paths, ties included,
and adding in another order changes nothing. At each position, what a head's score lacks of the largest one is rounded
away from 0, so that nothing but equal scores tie with the largest; alpha ln P is rounded to the nearest. What one
position adds is cut to the range of +-2**14 / G nats.

`find_best_paths` runs in graphs. From the last position to the first, it keeps the p best ends of a path after each
n - 1 candidates: O(G k^n p) sums, and k^(n-1) selections of p from k p at each position. Ends are merged in order of
their first token, so that a selection that prefers the earlier of equals keeps the rule of ties. `p_best_paths`
computes the same from the first position to the last, in plain Python.

Reference: Kim et al. 2024, Exploring and Improving Drafts in Blockwise Parallel Decoding, section 5,
https://arxiv.org/abs/2404.09221
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from models.decoding.choices import require_integer
from models.tensors import clip

_UNITS = 2.0**16
"""Number of units of a score in a nat."""
_LARGEST = 1 << 30
"""Largest sum of units of a path."""


class Paths(NamedTuple):
    """Holds the best paths of each row, the best first.

    Attributes:
      tokens: int32 `[B, p, G]`; -1 where a lattice has fewer paths than p.
      scores: float32 `[B, p]`; -inf where a lattice has fewer paths than p.
    """

    tokens: Any
    scores: Any


def find_best_paths(
    tokens: tf.Tensor,
    scores: tf.Tensor,
    history: tf.Tensor,
    alpha: Any,
    log_probs: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None,
    paths: int,
) -> Paths:
    """Finds the best paths with TensorFlow ops that TFLite has built in.

    The time grows with k^n: for n = 4, take k = 8 or less.

    Args:
      tokens: int32 `[B, G, k]`, static; the k candidates of each position, all different, in any order.
      scores: float32 `[B, G, k]`, the heads' scores of the candidates. They may be -inf, but not all of a position.
      history: int32 `[B, n - 1]`, the last tokens of the text before the lattice.
      alpha: weight of the n-gram model >= 0, a number or a float32 scalar. The number 0 leaves the model out.
      log_probs: function from histories int32 `[B, S, n - 1]` and candidates int32 `[B, 1, k]` to ln P of each
        candidate after each history, float32 `[B, S, k]`, finite; such as
        `models.decoding.katz_tables.KatzTables.log_probs`. None leaves the model out.
      paths: number of paths p, >= 1.

    Raises:
      ValueError: `paths` or `alpha` is out of range.
    """
    count = require_integer("paths", paths, 1)
    batch, positions, width = tokens.shape
    is_plain = log_probs is None or _is_zero(alpha)
    memory = 0 if is_plain else history.shape[1]
    order = tf.math.top_k(-tokens, width).indices  # ascending ids
    tokens, scores = (tf.gather(part, order, axis=2, batch_dims=2) for part in (tokens, scores))
    largest = tf.reduce_max(scores, axis=2, keepdims=True)
    units = _round_down(scores - largest)
    limit = _LARGEST // positions

    # The units of the best ends after each context, [B, contexts, ends], and the choices of the next token and end.
    ends, choices = tf.zeros([batch, width ** min(positions, memory), 1], tf.int32), []
    for position in reversed(range(positions)):
        known = min(position, memory)  # candidates of the context that are in the lattice
        arcs = units[:, position, tf.newaxis]
        if log_probs is not None and not is_plain:
            histories = _histories(tokens[:, position - known : position], history)
            arcs += _round(alpha * log_probs(histories, tokens[:, position, tf.newaxis]))
        arcs = clip(arcs, -limit, limit)
        # A full context loses its first candidate, so that the same ends follow all of them.
        repeats = width if known == memory and known else 1
        after = tf.reshape(ends, [batch, 1, -1, ends.shape[2]])
        sums = tf.reshape(arcs, [batch, repeats, -1, 1]) + after
        sums = tf.reshape(sums, [batch, width**known, -1])
        ends, chosen = tf.math.top_k(sums, min(count, sums.shape[2]))
        choices.append((chosen, after.shape[3]))

    found = ends.shape[2]
    path, place, context = [], tf.tile(tf.range(found)[tf.newaxis], [batch, 1]), tf.zeros([batch, found], tf.int32)
    for position, (chosen, size) in enumerate(reversed(choices)):
        flat = tf.reshape(chosen, [batch, -1])
        choice = tf.gather(flat, context * chosen.shape[2] + place, axis=1, batch_dims=1)
        candidate, place = choice // size, choice % size
        path.append(tf.gather(tokens[:, position], candidate, axis=1, batch_dims=1))
        kept = context % width ** (memory - 1) if position >= memory > 0 else context
        context = kept * width + candidate if memory else context
    total = tf.cast(ends[:, 0], tf.float32) / _UNITS
    for position in range(positions):  # one by one, so that every backend adds in the same order
        total += largest[:, position]
    missing = [[0, 0], [0, count - found]]
    return Paths(
        tf.pad(tf.stack(path, axis=2), [*missing, [0, 0]], constant_values=-1),
        tf.pad(total, missing, constant_values=-np.inf),
    )


def p_best_paths(
    tokens: np.ndarray,
    scores: np.ndarray,
    history: np.ndarray,
    alpha: float,
    log_probs: Callable[[Sequence[int], Sequence[int]], Any] | None,
    paths: int,
) -> Paths:
    """Finds the best paths with plain loops, as the reference of `find_best_paths`.

    Args:
      log_probs: function from a history of n - 1 tokens and k candidates to their ln P, float32 `[k]`; None leaves the
        model out.

    The other arguments, what is returned and what is raised are those of `find_best_paths`, in NumPy arrays.
    """
    count = require_integer("paths", paths, 1)
    is_plain = log_probs is None or _is_zero(alpha)
    batch, positions, _ = tokens.shape
    best = Paths(np.full([batch, count, positions], -1, np.int32), np.full([batch, count], -np.inf, np.float32))
    for row in range(batch):
        text = [] if is_plain else history[row].tolist()
        # The best beginnings that end with the same n - 1 tokens: units with their sign reversed, and the path.
        beginnings: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {tuple(text): [(0, ())]}
        for position in range(positions):
            candidates, of_heads = tokens[row, position].tolist(), scores[row, position]
            longer: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
            for context, kept in beginnings.items():
                of_model = np.zeros(len(candidates), np.float32)
                if log_probs is not None and not is_plain:
                    of_model = np.float32(alpha) * np.asarray(log_probs(context, candidates), np.float32)
                arcs = _arcs(of_heads, of_model, _LARGEST // positions)
                for token, arc in zip(candidates, arcs, strict=True):
                    after = (*context, token)[1:] if context else ()
                    longer[after] += [(units - arc, (*path, token)) for units, path in kept]
            beginnings = {context: sorted(kept)[:count] for context, kept in longer.items()}
        largest = [np.float32(of_heads.max()) for of_heads in scores[row]]
        for rank, (units, path) in enumerate(sorted(sum(beginnings.values(), []))[:count]):
            best.tokens[row, rank] = path
            best.scores[row, rank] = sum(largest, np.float32(-units) / np.float32(_UNITS))
    return best


def _arcs(of_heads: np.ndarray, of_model: np.ndarray, limit: int) -> list[int]:
    """Returns what each candidate of a position adds to the units of a path."""
    lacking = np.maximum(of_heads - of_heads.max(), np.float32(-_LARGEST / _UNITS))
    of_model = np.clip(of_model, np.float32(-_LARGEST / 2 / _UNITS), np.float32(_LARGEST / 2 / _UNITS))
    units = np.floor(lacking * np.float32(_UNITS)) + np.rint(of_model * np.float32(_UNITS)).astype(np.float64)
    return [int(value) for value in np.clip(units, -limit, limit)]


def _round_down(nats: tf.Tensor) -> tf.Tensor:
    """Returns units, int32, of numbers <= 0 in nats."""
    return tf.cast(tf.floor(tf.maximum(nats, -_LARGEST / _UNITS) * _UNITS), tf.int32)


def _round(nats: tf.Tensor) -> tf.Tensor:
    """Returns units, int32, of numbers in nats."""
    bound = _LARGEST / 2 / _UNITS
    return tf.cast(tf.round(tf.maximum(tf.minimum(nats, bound), -bound) * _UNITS), tf.int32)


def _histories(candidates: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
    """Returns the last tokens before a position on every path to it, int32 `[B, k^known, n - 1]`.

    Args:
      candidates: int32 `[B, known, k]`, those of the positions before.
      history: int32 `[B, n - 1]`, the last tokens of the text.
    """
    batch, known, width = candidates.shape
    parts = []
    for token in tf.unstack(history[:, known:], axis=1):
        parts.append(tf.tile(token[:, tf.newaxis], [1, width**known]))
    for place, own in enumerate(tf.unstack(candidates, axis=1)):
        repeated = tf.tile(own[:, tf.newaxis, :, tf.newaxis], [1, width**place, 1, width ** (known - 1 - place)])
        parts.append(tf.reshape(repeated, [batch, width**known]))
    if not parts:
        return tf.zeros([batch, 1, 0], tf.int32)
    return tf.stack(parts, axis=2)


def _is_zero(alpha: Any) -> bool:
    """Returns whether a weight is the number 0.

    Raises:
      ValueError: it is a number that is negative or not finite.
    """
    if not isinstance(alpha, Real):
        return False
    if isinstance(alpha, bool) or not 0 <= float(alpha) < np.inf:
        raise ValueError(f"alpha = {alpha!r}: must be a finite number >= 0")
    return alpha == 0
