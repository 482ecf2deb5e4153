"""Proposes the shape of a draft tree from what was measured with other shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.decoding_modes import parse
from models.decoding.tree_shapes import best_shape
from models.token_tree import TokenTree

_MAX_NODES, _MAX_WIDTH = 16, 8
_LEAST = 4


def propose(rows: Sequence[Mapping[str, Any]], cost: Mapping[str, Sequence[float]]) -> str | None:
    """Returns the tree that promises the most tokens per second, of all with up to 16 drafted tokens.

    How often a child of a node is accepted is taken from what was measured with trees and lines of tokens, for each
    depth and number of children; where there is none, it is taken to change with the depth as for other numbers. The
    time of a block is that of the target's call plus a line in the numbers of levels and of drafted tokens, fitted to
    the trees.

    Args:
      rows: results of one drafter, precision and temperature ("rows" of `fedspeak bench decoding`).
      cost: quartiles of the milliseconds of a call of the target, by its number of tokens.

    Returns:
      The mode; None if fewer than four trees were measured, or nothing was drafted.
    """
    trees = [(tuple(parse(row["mode"]).options.tree), row) for row in rows if row["mode"].startswith("tree:")]
    lines = [((1,) * parse(row["mode"]).drafted, row) for row in rows if row["mode"].startswith("block:")]
    if len(trees) < _LEAST:
        return None
    shares = _acceptance([*trees, *lines])
    if not shares:
        return None
    calls = _interpolate(cost)
    sizes = np.array([[1, len(shape), len(TokenTree.from_shape(shape)) - 1] for shape, _ in trees])
    beyond = np.array([row["milliseconds"] for _, row in trees]) - calls[sizes[:, 2]]
    once, by_level, by_node = np.maximum(np.linalg.lstsq(sizes, beyond, rcond=None)[0], 0)
    found = best_shape(
        shares,
        (calls + once).tolist(),
        [by_level + by_node * width for width in range(1, _MAX_WIDTH + 1)],
        _MAX_NODES,
    )
    return f"tree:{','.join(map(str, found.shape))}" if found.shape else None


def _interpolate(cost: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Returns the time of a call that reads n + 1 tokens for each n up to the largest number of drafted tokens."""
    counts = sorted(map(int, cost))
    return np.interp(np.arange(1, _MAX_NODES + 2), counts, [cost[str(count)][1] for count in counts])


def _acceptance(measured: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> list[list[float]]:
    """Returns the share of accepted nodes at each depth of which a child is accepted, by the number of children.

    Nothing is returned if no root had a drafted child.
    """
    reached = np.zeros([max(len(shape) for shape, _ in measured), _MAX_WIDTH])
    accepted = np.zeros_like(reached)
    for shape, row in measured:
        for depth, children in enumerate(shape):
            if children <= _MAX_WIDTH:
                reached[depth, children - 1] += row["reached"][depth]
                accepted[depth, children - 1] += row["accepted"][depth]
    shares = np.divide(accepted, reached, out=np.full_like(reached, np.nan), where=reached > 0)
    widths = np.arange(1, _MAX_WIDTH + 1)
    known = ~np.isnan(shares[0])
    if not known.any():
        return []
    first = np.interp(widths, widths[known], shares[0, known])  # wider than any: as the widest
    factor = np.ones(len(shares))
    for depth in range(1, len(shares)):
        seen = ~np.isnan(shares[depth]) & (first > 0)
        factor[depth] = np.nanmean(shares[depth, seen] / first[seen]) if seen.any() else factor[depth - 1]
    filled = np.where(np.isnan(shares), factor[:, np.newaxis] * first, shares)
    return [row.tolist() for row in np.clip(filled, 0, 1)]
