"""Builds the decoder of a decoding's name."""

from models.decoding.block_decoder import BlockDecoder
from models.decoding.certain_paths import CertainPaths
from models.decoding.choices import DECODINGS
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import Drafter
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.hidden_state import WithHidden
from models.decoding.lattice_drafter import LatticeDrafter, LatticeSpeculation
from models.decoding.methods import build_method
from models.decoding.spectr import SpecTr
from models.decoding.speculation import Speculation
from models.decoding.traversal import Traversal
from models.decoding.tree_speculation import TreeSpeculation
from models.heads import HeadedLanguageModel
from models.language_model import LanguageModel, Weights
from models.token_tree import TokenTree


def build_decoder(
    decoding: str, model: LanguageModel, weights: Weights, drafter: Drafter | None, options: DraftOptions
) -> BlockDecoder:
    """Returns the decoder of a name.

    Args:
      decoding: one of `models.decoding.choices.DECODINGS`.
      model: the target.
      weights: its weights by name.
      drafter: what drafts; None for decoding "autoregressive". Decoding "blockwise" is block verification of the drafts
        of a `HeadsDrafter`; None is one without a rescorer. With a `LatticeDrafter` it verifies the best paths.
      options: the sizes of drafts.

    Raises:
      ValueError: the decoding is unknown, it lacks a drafter or takes none, or the sizes do not fit it.
    """
    if decoding not in DECODINGS:
        raise ValueError(f"decoding = {decoding!r}: must be one of {', '.join(DECODINGS)}")
    if decoding == "blockwise":
        drafter = HeadsDrafter() if drafter is None else drafter
        if not isinstance(drafter, HeadsDrafter):
            raise ValueError("decoding = 'blockwise' drafts with the model's heads: wrap the drafter in HeadsDrafter")
    if (drafter is None) != (decoding == "autoregressive"):
        asked = "needs a drafter: give one" if drafter is None else "takes no drafter: drop it"
        raise ValueError(f"decoding = {decoding!r} {asked}, or choose another decoding")
    tree = options.token_tree(decoding)
    if isinstance(drafter, LatticeDrafter):
        if decoding != "blockwise":
            raise ValueError(
                f"decoding = {decoding!r}: a LatticeDrafter is for decoding 'blockwise'; give a HeadsDrafter"
            )
        tree = TokenTree.chains(options.paths, options.draft_length)
    if isinstance(drafter, HeadsDrafter):
        if not isinstance(model, HeadedLanguageModel) or model.prediction_heads < 2:
            raise ValueError(
                f"decoding = {decoding!r}: the model has no prediction heads that could draft; train some, or give "
                "a drafter and another decoding"
            )
        model = WithHidden.of(model)
        drafter = drafter.bind(model, weights, options.draft_length if tree is None else len(tree.levels) - 1)
    if tree is None or drafter is None:
        length = 0 if drafter is None else options.draft_length
        automatic = options.automatic and drafter is not None
        method = build_method("block" if decoding == "blockwise" else decoding)
        return Speculation(model, weights, method, drafter, length, automatic)
    if options.automatic:
        raise ValueError(
            f"draft_length = 'auto': decoding {decoding!r} drafts trees of one shape; give a number, or choose 'block'"
        )
    if decoding == "blockwise":
        if not isinstance(drafter, LatticeDrafter):
            raise ValueError(f"paths = {options.paths}: a rescorer drafts one path; give 1, or a LatticeDrafter")
        return LatticeSpeculation(model, weights, CertainPaths(), drafter, tree)
    rule = SpecTr() if decoding == "spectr" else Traversal("greedy")
    return TreeSpeculation(model, weights, rule, drafter, tree)
