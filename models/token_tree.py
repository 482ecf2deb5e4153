"""Describes trees of drafted tokens: which draft follows which, fixed when a graph is built."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_NODES = 64
_LONGEST_ECHO = 40  # characters of what the user gave, in a message
_COUNTED = 10**6  # largest number of nodes that a message states


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
        if not all(_is_integer(parent) for parent in self.parents):
            raise ValueError(f"parents = {_shown(self.parents)}: must be integers, the number of a node for each node")
        after_root = self.parents[1:]
        if self.parents[:1] != (-1,) or any(not 0 <= parent <= node for node, parent in enumerate(after_root)):
            raise ValueError(
                f"parents = {_shown(self.parents)}: must be -1, then the number of an earlier node for each node"
            )
        if list(after_root) != sorted(after_root):
            raise ValueError(f"parents = {_shown(self.parents)}: must not decrease; number the nodes level by level")
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
        shape = check_shape(shape)
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
    def is_even(self) -> bool:
        """Returns whether all nodes at one depth have equally many children, as in `from_shape`."""
        return all(len({len(self.children[node]) for node in level}) == 1 for level in self.levels)

    @property
    def are_separate_chains(self) -> bool:
        """Returns whether the tree is one of `chains`: equally long, and only the root has more than one child."""
        return len(self) > 1 and self.is_even and len({len(level) for level in self.levels[1:]}) == 1

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


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of a tree as Python's own integers; see `TokenTree.from_shape`.

    Raises:
      ValueError: the shape is not one or more positive integers, or the tree has more than 64 nodes; one line.
    """
    if not isinstance(shape, Iterable):
        raise ValueError(f"tree = {_shown(shape)}: must be the numbers of children by depth, for example (3, 1, 1, 1)")
    return _checked(tuple(shape), _shown(shape))


def parse_shape(text: str) -> tuple[int, ...]:
    """Returns the shape that a text such as "3,1,1,1" states; see `TokenTree.from_shape`.

    Raises:
      ValueError: the text is not one or more positive integers in the digits 0 to 9, or the tree has more than 64
        nodes; one line.
    """
    shown = repr(text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}…")
    entries = [entry.strip(" ") for entry in text.split(",")] if text.strip() else []
    # int() would take signs, underscores and the digits of other scripts as well.
    if not all(entry.isascii() and entry.isdigit() and len(entry) <= _LONGEST_ECHO for entry in entries):
        raise ValueError(f"tree = {shown}: must be integers separated by commas, for example 3,1,1,1")
    return _checked(tuple(map(int, entries)), shown)


def format_shape(shape: Sequence[int]) -> str:
    """Returns the text from which `parse_shape` reads the shape."""
    return ",".join(map(str, shape))


def _checked(shape: tuple[Any, ...], shown: str) -> tuple[int, ...]:
    """Returns a shape as Python integers; raises ValueError unless it is that of at most `MAX_NODES` nodes."""
    if not shape:
        raise ValueError(f"tree = {shown}: is empty; give the number of children by depth, for example 3,1,1,1")
    nodes = width = 1
    for children in shape:
        if not _is_count(children):
            raise ValueError(f"tree = {shown}: {_shown(children)} must be an integer >= 1, for example 3,1,1,1")
        # Enough for the message: the exact number could have any number of digits.
        width = min(width * int(children), _COUNTED)
        nodes += width
    if nodes > MAX_NODES:
        count = nodes if nodes < _COUNTED else f"{_COUNTED} or more"
        raise ValueError(f"tree = {shown}: has {count} nodes with the root, more than {MAX_NODES}; give fewer children")
    return tuple(map(int, shape))


def _shown(value: Any) -> str:
    """Returns the beginning of what a value looks like, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}…"


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and int(value) >= 1
