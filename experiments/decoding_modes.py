"""Names modes of decoding and builds them: a decoding with the sizes of its drafts.

The names are "block:6" (drafts of 6 tokens; so for each decoding with one line of drafts), "spectr:3x4" (three drafts
of 4 tokens), "tree:2,2" (two children of each text, two levels), and for two rules that files do not have
"distinct-tree:2,2" (a tree whose children are drawn without replacement) and "multi-path:3x4" (greedy multi-path block
verification).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from models.decoding.choices import DECODINGS
from models.decoding.draft_options import DraftOptions
from models.token_tree import MAX_NODES, format_shape, parse_shape

if TYPE_CHECKING:  # so that TensorFlow loads only when a mode is built
    from models.decoding.block_decoder import BlockDecoder

LINES = tuple(name for name in DECODINGS if name not in ("autoregressive", "spectr", "tree", "blockwise"))
"""The decodings that draft one line of tokens with any drafter."""
_CHAINS = ("spectr", "multi-path")
_TREES = ("tree", "distinct-tree")


class Mode(NamedTuple):
    """Holds a decoding and its sizes.

    Attributes:
      decoding: one of `models.decoding.choices.DECODINGS`, "distinct-tree" or "multi-path".
      options: the sizes of its drafts.
    """

    decoding: str
    options: DraftOptions

    @property
    def text(self) -> str:
        """Returns the mode's name, as `parse` takes it."""
        if self.decoding in LINES:
            return f"{self.decoding}:{self.options.draft_length}"
        if self.decoding in _CHAINS:
            return f"{self.decoding}:{self.options.num_drafts}x{self.options.draft_length}"
        return f"{self.decoding}:{format_shape(self.options.tree)}"

    @property
    def drafted(self) -> int:
        """Returns the number of drafted tokens of a block."""
        kind = "spectr" if self.decoding in _CHAINS else "tree" if self.decoding in _TREES else self.decoding
        return self.options.count(kind)

    @property
    def first_drafts(self) -> int:
        """Returns the number of drafts of a block's first token."""
        if self.decoding in LINES:
            return 1
        return self.options.num_drafts if self.decoding in _CHAINS else self.options.tree[0]

    @property
    def flags(self) -> str:
        """Returns the options of `fedspeak export` for the mode; empty if a file cannot have it."""
        if self.decoding not in DECODINGS:
            return ""
        if self.decoding == "tree":
            return f"--decoding tree --tree {format_shape(self.options.tree)}"
        num_drafts = f" --num-drafts {self.options.num_drafts}" if self.decoding == "spectr" else ""
        return f"--decoding {self.decoding}{num_drafts} --draft-length {self.options.draft_length}"


def parse(text: str) -> Mode:
    """Returns the mode of a name.

    Raises:
      ValueError: there is no such mode; one line.
    """
    decoding, _, sizes = text.partition(":")
    try:
        if decoding in LINES:
            mode = Mode(decoding, DraftOptions(int(sizes)))
        elif decoding in _CHAINS:
            num_drafts, length = map(int, sizes.split("x"))
            mode = Mode(decoding, DraftOptions(length, num_drafts=num_drafts))
        elif decoding in _TREES:
            mode = Mode(decoding, DraftOptions(tree=parse_shape(sizes)))
        else:
            raise ValueError
        if not 1 <= mode.drafted < MAX_NODES:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"mode {text[:40]!r}: must be DECODING:SIZES with at most {MAX_NODES - 1} drafted tokens, as block:6, "
            "spectr:3x4, tree:2,2, distinct-tree:2,2 or multi-path:3x4"
        ) from None
    return mode


def build(mode: Mode | None, model: Any, weights: Any, drafter: Any) -> BlockDecoder:
    """Returns the decoder of a mode.

    Args:
      mode: the mode; None for plain decoding.
      model: the target.
      weights: its weights by name.
      drafter: what drafts; not used for plain decoding.

    Raises:
      ValueError: the mode does not fit the vocabulary.
    """
    from models.decoding.decoders import build_decoder
    from models.decoding.multi_path import MultiPath
    from models.decoding.traversal import Traversal
    from models.decoding.tree_rules import TreeRule
    from models.decoding.tree_speculation import TreeSpeculation
    from models.token_tree import TokenTree

    if mode is None:
        return build_decoder("autoregressive", model, weights, None, DraftOptions())
    if mode.decoding in DECODINGS:
        return build_decoder(mode.decoding, model, weights, drafter, mode.options)
    rule: TreeRule
    if mode.decoding == "multi-path":
        rule, tree = MultiPath(), TokenTree.chains(mode.options.num_drafts, mode.options.draft_length)
    else:
        rule, tree = Traversal("without-replacement"), TokenTree.from_shape(mode.options.tree)
    return TreeSpeculation(model, weights, rule, drafter, tree)
