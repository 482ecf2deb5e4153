"""Builds the decoder of a decoding's name."""

from models.decoding.block_decoder import BlockDecoder
from models.decoding.choices import DECODINGS
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter
from models.decoding.methods import build_method
from models.decoding.spectr import SpecTr
from models.decoding.speculation import Speculation
from models.decoding.traversal import Traversal
from models.decoding.tree_speculation import TreeSpeculation
from models.language_model import LanguageModel, Weights


def build_decoder(
    decoding: str, model: LanguageModel, weights: Weights, drafter: Drafter | None, options: DraftOptions
) -> BlockDecoder:
    """Returns the decoder of a name.

    Args:
      decoding: one of `models.decoding.choices.DECODINGS`.
      model: the target.
      weights: its weights by name.
      drafter: what drafts; None only for decoding "autoregressive".
      options: the sizes of drafts.

    Raises:
      ValueError: the decoding is unknown, it lacks a drafter or takes none, or the sizes do not fit it.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"decoding = {decoding!r}: must be one of {', '.join(DECODINGS)}")
    if (drafter is None) != (decoding == "autoregressive"):
        asked = "needs a drafter: give one" if drafter is None else "takes no drafter: drop it"
        raise ValueError(f"decoding = {decoding!r} {asked}, or choose another decoding")
    tree = options.token_tree(decoding)
    if tree is None or drafter is None:
        length = 0 if drafter is None else options.draft_length
        automatic = options.automatic and drafter is not None
        return Speculation(model, weights, build_method(decoding), drafter, length, automatic)
    if options.automatic:
        raise ValueError(
            f"draft_length = 'auto': decoding {decoding!r} drafts trees of one shape; give a number, or choose 'block'"
        )
    rule = SpecTr() if decoding == "spectr" else Traversal("greedy")
    return TreeSpeculation(model, weights, rule, drafter, tree)
