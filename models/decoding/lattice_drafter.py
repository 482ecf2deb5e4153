"""Drafts the best paths through the lattice of a model's prediction heads, several drafts per block.

The k likeliest tokens of each head make a lattice. The p paths with the best scores (`models.decoding.p_best`), the
heads' logits plus α times an n-gram model's logarithms, are drafted: p-best n-gram blockwise decoding. Without an
n-gram model they are the heads' own p best paths.

Reference: Kim et al. 2024, https://arxiv.org/abs/2404.09221.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.block_decoder import Request, State
from models.decoding.drafters import Drafter
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.hidden_state import WithHidden
from models.decoding.katz_tables import KatzTables
from models.decoding.p_best import find_best_paths
from models.decoding.prng import BlockWords
from models.decoding.tree_rules import Drafts
from models.decoding.tree_speculation import TreeDraft, TreeSpeculation
from models.language_model import Weights
from models.token_tree import TokenTree


class _Trail(NamedTuple):
    """Holds what the state after a block is computed from.

    Attributes:
      history: the drafter's state before the block.
      tokens: int32 `[B, N]`, those of the tree's nodes.
    """

    history: Any
    tokens: Any


class LatticeDrafter(HeadsDrafter):
    """Drafts with the prediction heads of the target and an n-gram model, the best paths first.

    Between blocks its state is the last n - 1 tokens of the text without the very last one, int32 `[B, n - 1]`; () if
    n is 1 or there is no n-gram model.

    Args:
      tables: the n-gram model; None for none.
      top_k: number of likeliest tokens k of each head, >= 1. The time grows with k^n.
      alpha: weight of the n-gram model, >= 0.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(self, tables: KatzTables | None = None, top_k: int = 16, alpha: float = 1.0) -> None:
        super().__init__(None, top_k, alpha)
        self.tables = tables

    def bind(self, model: WithHidden, weights: Weights, depth: int) -> "LatticeDrafter":
        """Returns a drafter with the heads of a target; see `HeadsDrafter.bind`."""
        if self.tables is not None and self.tables.vocabulary_size != model.vocabulary_size:
            raise ValueError(
                f"tables: n-grams of {self.tables.vocabulary_size} tokens cannot rescore the drafts of a model of "
                f"{model.vocabulary_size}: learn them with the model's vocabulary"
            )
        bound = LatticeDrafter(self.tables, self.top_k, self.alpha)
        bound._hold(model, weights, depth)
        return bound

    @property
    def _memory(self) -> int:
        return 0 if self.tables is None else self.tables.order - 1

    def initial_state(self, batch: int) -> Any:
        """Returns a history of zeros, which no n-gram holds; see `Drafter.initial_state`."""
        return tf.zeros([batch, self._memory], tf.int32) if self._memory else ()

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Returns the last tokens after a prompt; see `Drafter.prefill`."""
        return _window(tf.concat([state, tokens], axis=1), lengths, self._memory) if self._memory else ()

    def best_paths(self, state: Any, target: Any, last: tf.Tensor, paths: int, depth: int) -> tf.Tensor:
        """Returns the best paths of each row, int32 `[B, p, depth]`; -1 where there are fewer than p.

        Args:
          state: this drafter's state.
          target: the target's state after the same tokens.
          last: int32 `[B]`, the last token of the text.
          paths: number of paths p.
          depth: number of tokens of a path.
        """
        logits = self.begin(state, target).logits[:, :depth]
        scores, tokens = tf.math.top_k(logits, min(self.top_k, logits.shape[-1]))
        history = last[:, tf.newaxis][:, :0]
        if self._memory:
            history = tf.concat([state, last[:, tf.newaxis]], axis=1)[:, 1:]
        log_probs = None if self.tables is None else self.tables.log_probs
        return find_best_paths(tokens, scores, history, self.alpha, log_probs, paths).tokens

    def rewind_tree(self, trail: Any, kept: tf.Tensor, tree: TokenTree) -> Any:
        """Returns the last tokens after the path to a node; see `Drafter.rewind_tree`."""
        if not self._memory:
            return ()
        node = tf.maximum(kept - 1, 0)
        count = tf.where(kept > 0, tf.gather(tf.constant(tree.depths), node) + 1, 0)
        path = tf.gather(trail.tokens, tf.gather(tf.constant(tree.paths), node), axis=1, batch_dims=1)
        return _window(tf.concat([trail.history, path], axis=1), count, self._memory)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> Drafter:
        """Returns a drafter whose tables are variables; see `Drafter.deploy`."""
        return LatticeDrafter(None if self.tables is None else self.tables.deploy(hold), self.top_k, self.alpha)


@dataclass(frozen=True, eq=False)
class LatticeSpeculation(TreeSpeculation):
    """Decodes with the best paths of a `LatticeDrafter` as separate chains of a tree.

    Attributes:
      drafter: a `LatticeDrafter` that is bound to the model.
    """

    def draft(self, state: State, request: Request, words: BlockWords) -> TreeDraft:
        """Drafts the best paths of each row; arguments as for `block`."""
        assert isinstance(self.drafter, LatticeDrafter)
        chains, depth = len(self.tree.levels[1]), len(self.tree.levels) - 1
        paths = self.drafter.best_paths(state.drafter, state.target, state.last, chains, depth)
        by_node = tf.reshape(tf.transpose(paths, [0, 2, 1]), [-1, chains * depth])
        tokens = tf.concat([state.last[:, tf.newaxis], tf.maximum(by_node, 0)], axis=1)
        is_real = tf.concat([tf.ones_like(tokens[:, :1], tf.bool), by_node >= 0], axis=1)
        # The rule asks for no distribution of drafts.
        base = tf.zeros([tokens.shape[0], len(self.tree) - chains, 1])
        return TreeDraft(Drafts(tokens, is_real, base), _Trail(state.drafter, tokens), words)


def _window(tokens: tf.Tensor, begins: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `size` tokens of each row from its place in `begins` on, int32 `[B, size]`."""
    return tf.gather(tokens, begins[:, tf.newaxis] + tf.range(size), axis=1, batch_dims=1)
