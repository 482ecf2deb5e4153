"""Describes trees of drafted tokens: which draft follows which, fixed when a graph is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_NODES = 64


@dataclass(frozen=True)
class TokenTree:
    """Holds the topology of a tree of tokens, each of which follows the tokens on the path from the root to it.

    Node 0 is the root: the last token of the text, which no model has read yet. The other nodes are drafts. They are
    numbered level by level. The children of a node have adjacent numbers, in the order in which they are drafted, and
    the children of an earlier node come first.

    Attributes:
      parents: the parent of each node; -1 for the root.

    Raises:
      ValueError: `parents` does not number a tree in this way, or the tree has more than 64 nodes.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        after_root = self.parents[1:]
        if self.parents[:1] != (-1,) or any(not 0 <= parent <= node for node, parent in enumerate(after_root)):
            raise ValueError(f"parents = {self.parents}: must be -1, then the number of an earlier node for each node")
        if list(after_root) != sorted(after_root):
            raise ValueError(f"parents = {self.parents}: must not decrease; number the nodes level by level")
        if len(self) > MAX_NODES:
            raise ValueError(f"parents: {len(self)} nodes are more than {MAX_NODES}; give a smaller tree")

    @classmethod
    def from_shape(cls, shape: Sequence[int]) -> "TokenTree":
        """Returns the tree in which every node at depth i has `shape[i]` children.

        >>> TokenTree.from_shape((2, 1)).parents
        (-1, 0, 0, 1, 2)

        Args:
          shape: number of children by depth, beginning at the root, each >= 1. At most 64 nodes with the root.

        Raises:
          ValueError: the shape is empty, an entry is not a positive integer, or there are more than 64 nodes.
        """
        shape = tuple(shape)
        _check(shape, repr(shape))
        parents, level = [-1], range(1)
        for children in shape:
            parents += [node for node in level for _ in range(children)]
            level = range(level.stop, len(parents))
        return cls(tuple(parents))

    @classmethod
    def chain(cls, length: int) -> "TokenTree":
        """Returns the tree of one chain of `length` drafts, 1 to 63, below the root."""
        return cls.chains(1, length)

    @classmethod
    def chains(cls, num_drafts: int, length: int) -> "TokenTree":
        """Returns the tree of `num_drafts` separate chains of `length` drafts each, below the root.

        Raises:
          ValueError: an argument is not a positive integer, or there are more than 64 nodes.
        """
        for name, value in (("num_drafts", num_drafts), ("length", length)):
            if not _is_count(value) or value >= MAX_NODES:
                raise ValueError(f"{name} = {value!r}: must be an integer from 1 to {MAX_NODES - 1}")
        return cls.from_shape((num_drafts, *[1] * (length - 1)))

    def __len__(self) -> int:
        """Returns the number of nodes N, with the root."""
        return len(self.parents)

    @property
    def is_chain(self) -> bool:
        """Returns whether no node has two children."""
        return len(set(self.parents)) == len(self)

    @cached_property
    def depths(self) -> NDArray[np.int32]:
        """Returns the number of edges between the root and each node, `[N]`."""
        return self.ancestors.sum(axis=1, dtype=np.int32) - np.int32(1)

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """Returns the numbers of the nodes by depth."""
        ends = [0, *np.cumsum(np.bincount(self.depths)).tolist()]
        return tuple(map(range, ends, ends[1:]))

    @cached_property
    def children(self) -> tuple[range, ...]:
        """Returns the numbers of each node's children, in the order in which they are drafted."""
        starts = np.searchsorted(self.parents, np.arange(len(self) + 1)).tolist()
        return tuple(map(range, starts, starts[1:]))

    @cached_property
    def ancestors(self) -> NDArray[np.bool_]:
        """Returns whether node j is on the path from the root to node i, bool `[N, N]`; so is i itself."""
        matrix = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents[1:], 1):
            matrix[node] |= matrix[parent]
        return matrix

    @cached_property
    def paths(self) -> NDArray[np.int32]:
        """Returns the nodes from the root to each node, `[N, D + 1]` for depth D, padded with the node itself."""
        table = np.empty([len(self), len(self.levels)], np.int32)
        for node, is_ancestor in enumerate(self.ancestors):
            path = np.flatnonzero(is_ancestor)
            table[node] = [*path, *[node] * (table.shape[1] - len(path))]
        return table

    @cached_property
    def post_order(self) -> tuple[int, ...]:
        """Returns the nodes so that the children of a node, in the order in which they are drafted, stand before it."""

        def below(node: int) -> list[int]:
            return [*(other for child in self.children[node] for other in below(child)), node]

        return tuple(below(0))

    def require_tokens(self, count: int | None, level: range | None = None) -> None:
        """Checks that a model is given one token for each node, or for each node of a level.

        Raises:
          ValueError: `count` is not the number of nodes.
        """
        nodes, whole = (len(self), "tree") if level is None else (len(level), "level")
        if count != nodes:
            raise ValueError(f"tokens: {count} in a row for a {whole} of {nodes} nodes; give one for each node")


def parse_shape(text: str) -> tuple[int, ...]:
    """Returns the shape that a text such as "3,1,1,1" states; see `TokenTree.from_shape`.

    Raises:
      ValueError: the text is not one or more positive integers, or the tree has more than 64 nodes.
    """
    try:
        shape = tuple(int(entry) for entry in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ValueError(f"tree = {text!r}: must be integers separated by commas, for example 3,1,1,1") from None
    _check(shape, repr(text))
    return shape


def format_shape(shape: Sequence[int]) -> str:
    """Returns the text from which `parse_shape` reads the shape."""
    return ",".join(map(str, shape))


def _check(shape: tuple[int, ...], shown: str) -> None:
    """Raises ValueError unless the shape is that of a tree of at most `MAX_NODES` nodes."""
    if not shape:
        raise ValueError(f"tree = {shown}: is empty; give the number of children by depth, for example 3,1,1,1")
    nodes = width = 1
    for children in shape:
        if not _is_count(children):
            raise ValueError(f"tree = {shown}: {children!r} must be an integer >= 1, for example 3,1,1,1")
        width *= int(children)
        nodes += width
    if nodes > MAX_NODES:
        raise ValueError(f"tree = {shown}: has {nodes} nodes with the root, more than {MAX_NODES}; give fewer children")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1
