"""Defines how many tokens a drafter proposes per block, for every decoding."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.decoding.choices import require_integer
from models.token_tree import MAX_NODES, TokenTree, check_shape


@dataclass(frozen=True)
class DraftOptions:
    """Holds the sizes of drafts; a decoding uses those that concern it.

    Attributes:
      draft_length: number of tokens G of a draft, >= 0; 0 without a drafter. Decoding "tree" does not use it.
      automatic: whether draft lengths from 0 to G are chosen by the costs of each call.
      num_drafts: number of drafts K of decoding "spectr", >= 1. K · G is at most 63.
      tree: number of children by depth of decoding "tree", each >= 1; at most 63 nodes in all.
      paths: number of drafts of decoding "blockwise", >= 1. More than one are the best paths of a `LatticeDrafter`.

    Raises:
      ValueError: a number is out of range.
    """

    draft_length: int = 0
    automatic: bool = False
    num_drafts: int = 4
    tree: Sequence[int] = (3, 1, 1, 1)
    paths: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "draft_length", require_integer("draft_length", self.draft_length, 0))
        object.__setattr__(self, "num_drafts", require_integer("num_drafts", self.num_drafts, 1))
        object.__setattr__(self, "paths", require_integer("paths", self.paths, 1))
        object.__setattr__(self, "tree", check_shape(self.tree))

    def token_tree(self, decoding: str) -> TokenTree | None:
        """Returns the tree that a decoding drafts; None for one that drafts a single line of tokens.

        Raises:
          ValueError: the decoding drafts no tree of these sizes.
        """
        if decoding == "tree":
            return TokenTree.from_shape(self.tree)
        if decoding != "spectr" and (decoding != "blockwise" or self.paths == 1):
            return None
        name = "num_drafts" if decoding == "spectr" else "paths"
        drafts = getattr(self, name)
        if self.draft_length < 1:
            raise ValueError(f"draft_length = {self.draft_length}: must be an integer >= 1 for decoding {decoding!r}")
        count = drafts * self.draft_length
        if count >= MAX_NODES:
            raise ValueError(
                f"{name} = {drafts}: drafts of {self.draft_length} tokens are {count} tokens, more than "
                f"{MAX_NODES - 1}; lower {name} or draft_length"
            )
        return TokenTree.chains(drafts, self.draft_length)

    def depth(self, decoding: str) -> int:
        """Returns how many drafted tokens a block of a decoding accepts at most."""
        if decoding == "autoregressive":
            return 0
        tree = self.token_tree(decoding)
        return self.draft_length if tree is None else len(tree.levels) - 1

    def count(self, decoding: str) -> int:
        """Returns how many tokens a block of a decoding drafts at most."""
        if decoding == "autoregressive":
            return 0
        tree = self.token_tree(decoding)
        return self.draft_length if tree is None else len(tree) - 1
