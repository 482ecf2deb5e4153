"""Decodes with a tree of drafted tokens per block.

The drafter proposes several children for each text of the tree, level by level. The target reads all nodes in one call,
in which each node sees the tokens on its path only, and a rule (`models.decoding.tree_rules`) decides which path is
accepted. The text has the target's distribution, whatever the drafter.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.block_decoder import Block, BlockDecoder, Outcome, Request, State
from models.decoding.child_drafting import draw_children
from models.decoding.drafters import Drafter
from models.decoding.history import tree_histories
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.prng import BlockWords, block_words
from models.decoding.tree_rules import Drafts, TreeRule, verify_tree
from models.language_model import LanguageModel, Weights
from models.tensors import to_tensors
from models.token_tree import TokenTree


class TreeDraft(NamedTuple):
    """Holds the drafts of one block.

    Attributes:
      drafts: the tree; its root is the last token of the text.
      trail: the drafter's, after the deepest nodes (`models.decoding.drafters.Drafter.step_level`).
      words: the random words of the block.
    """

    drafts: Drafts
    trail: Any
    words: BlockWords


@dataclass(frozen=True, eq=False)
class TreeSpeculation(BlockDecoder):
    """Joins target, drafter and a rule for trees into pure functions of a state and a request.

    The functions run in eager mode, `tf.function`, XLA and TFLite, with static shapes.

    Attributes:
      model: the target.
      weights: the target's weights by name, arrays, tensors or variables.
      rule: how trees are drafted and decided.
      drafter: what proposes tokens.
      tree: the tree, in which all nodes at one depth have equally many children.
      penalties: whether states keep the history that penalties need.
      log_probs: whether blocks hold log-probabilities; zeros otherwise.
      draft_length: depth of the tree.
      automatic: False.

    Raises:
      ValueError: the tree drafts nothing, its nodes at one depth have different numbers of children, the rule needs
        separate chains and it is none, or a node has more children than there are tokens.
    """

    model: LanguageModel
    weights: Weights
    rule: TreeRule
    drafter: Drafter
    tree: TokenTree
    penalties: bool = True
    log_probs: bool = True
    draft_length: int = field(init=False)
    automatic: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if len(self.tree) == 1:
            raise ValueError(
                "tree: has no node but the root, so that nothing is drafted; give TokenTree.from_shape(shape)"
            )
        if not self.tree.is_even:
            raise ValueError(
                "tree: nodes at one depth have different numbers of children; give TokenTree.from_shape(shape)"
            )
        if self.rule.separate_chains and not self.tree.are_separate_chains:
            raise ValueError(
                f"tree: must be separate chains for {type(self.rule).__name__}, in which only the root has several "
                "children; give TokenTree.chains(num_drafts, length)"
            )
        object.__setattr__(self, "draft_length", len(self.tree.levels) - 1)
        widest = max(map(len, self.tree.children))
        if widest > self.model.vocabulary_size:
            raise ValueError(
                f"tree: a node has {widest} children, more than the {self.model.vocabulary_size} tokens of the "
                "vocabulary; give it fewer"
            )

    def initial_carry(self, batch: int) -> Any:
        """Returns nothing: trees are decided one by one; see `BlockDecoder.initial_carry`."""
        return ()

    def words(self, request: Request, position: tf.Tensor, count: int) -> BlockWords:
        """Returns the random words of blocks, with one for each drafted node; see `BlockDecoder.words`."""
        starts = position[:, tf.newaxis] + tf.range(count)
        return block_words(request.seed, request.request[:, tf.newaxis], starts, len(self.tree) - 1)

    def block(self, state: State, request: Request, words: BlockWords, active: tf.Tensor) -> tuple[Block, State]:
        """Drafts and verifies one tree per row; see `BlockDecoder.block`."""
        return self.verify(state, self.draft(state, request, words), request, active)

    def draft(self, state: State, request: Request, words: BlockWords) -> TreeDraft:
        """Drafts one tree per row; arguments as for `block`."""
        batch, size = state.last.shape[0], self.model.vocabulary_size
        tokens, is_real = state.last[:, tf.newaxis], tf.ones([batch, 1], tf.bool)
        trail, bases = self.drafter.begin(state.drafter, state.target), []
        for level in self.tree.levels:
            logits, trail = self.drafter.step_level(tokens[:, level.start :], trail, self.tree, level)
            if level == self.tree.levels[-1]:
                break
            children = range(self.tree.children[level.start].start, self.tree.children[level.stop - 1].stop)

            def histories(level: range = level, tokens: tf.Tensor = tokens) -> Any:
                return tree_histories(state.history, tokens, self.tree.parents, level)

            processed = self._process(logits, request, histories)
            found = draw_children(
                self.rule.drafting,
                tf.reshape(processed, [-1, size]),
                tf.reshape(_rank(processed, logits), [-1, size]),
                tf.reshape(words.draft[0][:, children.start - 1 : children.stop - 1], [batch * len(level), -1]),
            )
            proposes = is_real[:, level.start :] & (tf.reduce_max(logits, axis=-1) > LEFT_OUT)
            new = tf.reshape(found.is_real, [batch, len(level), -1]) & proposes[..., tf.newaxis]
            new = tf.reshape(new, [batch, -1])
            tokens = tf.concat([tokens, tf.where(new, tf.reshape(found.tokens, [batch, -1]), 0)], axis=1)
            is_real = tf.concat([is_real, new], axis=1)
            bases.append(tf.reshape(found.base, [batch, len(level), size]))
        return TreeDraft(Drafts(tokens, is_real, tf.concat(bases, axis=1)), trail, words)

    def verify(
        self, state: State, draft: TreeDraft, request: Request, active: tf.Tensor, allowed: tf.Tensor | None = None
    ) -> tuple[Block, State]:
        """Decides about a tree.

        Args:
          state: the state before the block.
          draft: what `draft` returned for it.
          request: as for `block`.
          active: as for `block`.
          allowed: bool `[B, N, V]`, tokens that the host allows after each node; None allows all. The text then has the
            target's distribution under this mask, although the drafter does not know it.
        """
        drafts, tree = draft.drafts, self.tree
        logits, trail = self.model.extend(to_tensors(self.weights), drafts.tokens, state.target, tree)

        def histories() -> Any:
            return tree_histories(state.history, drafts.tokens, tree.parents, range(len(tree)))

        probabilities = tf.nn.softmax(self._process(logits, request, histories, allowed))
        # A node without any token ends a text only if its path is accepted.
        is_number = tf.equal(probabilities, probabilities)
        target = tf.where(is_number, probabilities, 0.0)
        node, token = verify_tree(self.rule, target, drafts, tree, draft.words.accept, draft.words.residual)
        path = tf.gather(tf.constant(tree.paths), node)

        def along(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(values, path, axis=1, batch_dims=1)

        accepted = tf.gather(tf.constant(tree.depths), node)
        outcome = Outcome(
            along(logits), along(probabilities), along(drafts.tokens)[:, 1:], self._lengths(drafts), accepted, token, ()
        )

        def rewind(count: tf.Tensor) -> tuple[Any, Any]:
            kept = tf.where(count > 0, node + 1, 0)
            return self.model.rewind(trail, kept, tree), self.drafter.rewind_tree(draft.trail, kept, tree)

        block, state = self._finish(state, request, active, outcome, rewind)
        if self.rule.drafting == "independent":
            block = block._replace(first=(target[:, 0], drafts.base[:, 0]))
        return block, state

    def _lengths(self, drafts: Drafts) -> tf.Tensor:
        """Returns the depth of the deepest drafted node of each row, int32 `[B]`."""
        return tf.reduce_max(tf.where(drafts.is_real, self.tree.depths, 0), axis=1)


def _rank(processed: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns numbers that are larger for likelier tokens: those that processing has left out come after all others."""
    logits = tf.maximum(logits, LEFT_OUT)  # the quotient of infinities is not a number
    beyond = logits / (1 + tf.abs(logits)) * 1000 - 2000
    return tf.where(processed > -100.0, processed, beyond)
