"""Defines drafters: what proposes tokens to speculative decoding.

A drafter answers like a small language model, one token at a time. This one of your own is certain that the last token
comes again:

    class Repeat(Drafter):
        def initial_state(self, batch):
            return ()

        def step(self, tokens, state):
            return tf.math.log(tf.one_hot(tokens, 50)), state
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import tensorflow as tf

from models.decoding import tree_rows
from models.language_model import LanguageModel, Weights
from models.tensors import to_tensors
from models.token_tree import TokenTree


class Drafter(ABC):
    """Proposes the next token, given those before it; a set of pure functions with static shapes.

    Whatever a drafter proposes, speculative decoding has the target's distribution: a poor drafter only costs time. Its
    logits are processed like the target's (temperature, top-k and so on) before a token is drawn from them.

    Attributes:
      may_pass: whether `step` may propose nothing. Decoding then gets a faster path for blocks without a draft.
    """

    may_pass = False

    @abstractmethod
    def initial_state(self, batch: int) -> Any:
        """Returns the state before any token: a nest of tensors with the batch axis first."""

    @abstractmethod
    def step(self, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Reads one more token per row, int32 `[B]`, and returns float32 logits `[B, V]` and the new state.

        A row whose logits are all -inf proposes nothing: its draft ends there. This may depend on the tokens read so
        far only. If it depended on a token that is drawn later, decoding would not be lossless.
        """

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Reads the next tokens of each row and returns the new state.

        Args:
          tokens: int32 `[B, T]`, padded at the end.
          lengths: int32 `[B]`, 0 to T: the number of real tokens.
          state: the state before them.
        """

        def body(i: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
            _, new = self.step(tf.gather(tokens, i, axis=1), state)
            return i + 1, tf.nest.map_structure(lambda n, o: tf.where(widen(i < lengths, n), n, o), new, state)

        return tf.while_loop(lambda i, _: i < tf.reduce_max(lengths), body, (tf.constant(0), state))[1]

    def rewind(self, states: Sequence[Any], kept: tf.Tensor) -> Any:
        """Returns for each row the state `states[kept]`.

        Args:
          states: the state before and after each of successive calls of `step`.
          kept: int32 `[B]`, 0 to the number of calls.
        """

        def select(*parts: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.stack(parts, axis=1), kept, axis=1, batch_dims=1)

        return tf.nest.map_structure(select, *states)

    def begin(self, state: Any, target: Any) -> Any:
        """Returns the state with which the steps of a block begin; by default the state itself.

        Args:
          state: this drafter's state after the text without its last token.
          target: the target's state after the same tokens.
        """
        return state

    def step_level(self, tokens: tf.Tensor, trail: Any, tree: TokenTree, level: range) -> tuple[tf.Tensor, Any]:
        """Reads the tokens of a tree's nodes at one depth, each after its ancestors.

        Args:
          tokens: int32 `[B, N]`.
          trail: what `begin` returned for the root; then what this function returned for the depth before.
          tree: the tree, in which all nodes at one depth have equally many children.
          level: the N nodes, one of `tree.levels`.

        Returns:
          float32 logits `[B, N, V]`, of which those of a node that proposes nothing are all -inf, and the trail.
        """
        states = [trail] if level.start == 0 else trail
        above = tree_rows.repeat(states[-1], tokens.shape[0], tree, level)
        logits, after = self.step(tf.reshape(tokens, [-1]), above)
        return tf.reshape(logits, [*tokens.shape, logits.shape[-1]]), [*states, after]

    def rewind_tree(self, trail: Any, kept: tf.Tensor, tree: TokenTree) -> Any:
        """Returns for each row the state after the path to a node.

        Args:
          trail: what `step_level` returned for the deepest nodes.
          kept: int32 `[B]`, the node's number plus 1; 0 for the state before the tree.
          tree: the tree.
        """
        by_leaf, counts, row = tree_rows.along_paths(trail, kept, tree)
        states = self.rewind(by_leaf, counts)
        return tf.nest.map_structure(lambda part: tf.gather(part, row), states)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> "Drafter":
        """Returns this drafter for an exported file, or for a `Generator`, which holds arrays as tensors.

        Args:
          context: maximum number of tokens of a row; None leaves it as it is.
          hold: function from an array to a variable or tensor. A variable is stored once, whatever number of signatures
            read it.
          is_int8: whether the file's weights will be quantised to int8, a tensor at a time.
        """
        return self


class ModelDrafter(Drafter):
    """Drafts with a language model of the target's vocabulary.

    Args:
      model: a language model; give `model.fit(context)` for states no larger than needed.
      weights: its weights by name.
    """

    def __init__(self, model: LanguageModel, weights: Weights) -> None:
        self.model = model
        self.weights = weights

    def initial_state(self, batch: int) -> Any:
        """Returns the model's initial state; see `Drafter.initial_state`."""
        return self.model.initial_state(batch)

    def prefill(self, tokens: tf.Tensor, lengths: tf.Tensor, state: Any) -> Any:
        """Reads several tokens per row at once; see `Drafter.prefill`."""
        return self.model.prefill(to_tensors(self.weights), tokens, lengths, state)[1]

    def step(self, tokens: tf.Tensor, state: Any) -> tuple[tf.Tensor, Any]:
        """Reads one token per row; see `Drafter.step`."""
        logits, trail = self.model.extend(to_tensors(self.weights), tokens[:, tf.newaxis], state)
        return logits[:, 0], self.model.rewind(trail, tf.ones_like(tokens))

    def rewind(self, states: Sequence[Any], kept: tf.Tensor) -> Any:
        """Returns the state after `kept` steps; see `Drafter.rewind`."""
        return self.model.select(states, kept)

    def step_level(self, tokens: tf.Tensor, trail: Any, tree: TokenTree, level: range) -> tuple[tf.Tensor, Any]:
        """Reads all nodes of a depth in one row, whose state is not copied for each; see `Drafter.step_level`."""
        return self.model.extend(to_tensors(self.weights), tokens, trail, tree, level)

    def rewind_tree(self, trail: Any, kept: tf.Tensor, tree: TokenTree) -> Any:
        """Returns the state after the path to a node; see `Drafter.rewind_tree`."""
        return self.model.rewind(trail, kept, tree)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> Drafter:
        """Returns a drafter whose weights are variables; see `Drafter.deploy`."""
        weights = self.model.equalized(self.weights) if is_int8 else self.weights
        deployed = copy(self)  # of a subclass too
        deployed.model = self.model if context is None else self.model.fit(context)
        deployed.weights = {name: hold(weight) for name, weight in weights.items()}
        return deployed


def widen(mask: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Gives a mask `[B]` as many axes as `like`."""
    return tf.reshape(mask, [-1] + [1] * (like.shape.rank - 1))
