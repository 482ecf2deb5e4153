"""Defines the protocol that every language model implements: pure functions with the weights as an argument."""

from collections.abc import Sequence
from typing import Any, Protocol

from models.token_tree import TokenTree

Array = Any  # a NumPy array or a tf.Tensor
State = Any  # what a model carries from token to token: a nest of arrays with the batch axis first
Trail = Any  # the states before and after each token of one `extend` call, in the form that `rewind` takes
Weights = dict[str, Array]  # by name, in sorted order of the names


class LanguageModel(Protocol):
    """Defines a language model as a set of pure functions of its weights and inputs.

    In shapes, B is the batch size, T and G are numbers of tokens, V is the vocabulary size and U is the number of
    clients on a leading client axis.

    The functions of weights and tokens run in eager mode and in `tf.function`. All but `loss_sum`, `loss_and_correct`
    and `hidden_states` compile under XLA. `prefill`, `extend`, `rewind` and `logits` also convert to TFLite with
    builtin ops only.
    """

    @property
    def vocabulary_size(self) -> int:
        """Returns the number of token ids, V."""

    @property
    def context(self) -> int | None:
        """Returns the maximum number of tokens of a row; None if there is no maximum."""

    def fit(self, context: int) -> "LanguageModel":
        """Returns this model with states for rows of at most `context` tokens, for the same weights.

        Smaller states take less memory and time. A model whose states do not grow with the row returns itself.

        Raises:
          ValueError: `context` is not a positive integer, or more than the model's own.
        """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each weight by name, in sorted order and without a client axis."""

    def init(self, seed: int) -> Weights:
        """Draws new weights as NumPy float32 arrays; equal seeds give equal weights."""

    def token_losses(self, weights: Weights, tokens: Array) -> Array:
        """Returns the negative log-probability of each token after the first, given the tokens before it in its row.

        Every row starts from the initial state. The losses are differentiable once with respect to the weights.

        Args:
          weights: arrays of the shapes in `shapes()`, or all of them with a leading client axis `[U, ...]`.
          tokens: int32 `[B, T+1]`, or `[U, B, T+1]` if the weights have a client axis.

        Returns:
          float32 `[B, T]` or `[U, B, T]`, in nats.
        """

    def loss_sum(self, weights: Weights, tokens: Array, rows: Array | None = None) -> Array:
        """Returns the sum of `token_losses` over the targets that are not padding (id 0), for training.

        An implementation may skip the computation for padding. Its shapes then depend on the data, and it does not
        compile under XLA.

        Args:
          weights: as for `token_losses`.
          tokens: as for `token_losses`.
          rows: int32 `[U]`, only with a client axis: the number of real rows of each client. The rows after them
            are padding. None: all rows are real.

        Returns:
          float32 `[]` or `[U]`, in nats.
        """

    def loss_and_correct(self, weights: Weights, tokens: Array, rows: Array | None = None) -> tuple[Array, Array]:
        """Returns `loss_sum`, and how many of the same targets have the largest logit, each float32 `[]` or `[U]`."""

    def hidden_states(self, weights: Weights, tokens: Array) -> tuple[Array, Array, Array | None]:
        """Returns the hidden states of whole rows and the output layer that reads them, for training.

        The logits are hidden · tableᵀ + bias. All three are differentiable once with respect to the weights. Prediction
        heads are trained on them (`models.heads`).

        Args:
          weights: as for `token_losses`.
          tokens: as for `token_losses`.

        Returns:
          The hidden states `[(U,) B, T, E]` after each token but the last of a row, the table `[(U,) V, E]`, and the
          bias `[(U,) V]` or None. An implementation may skip, and set to zero, the hidden states after the last target
          of a row that is not padding (id 0). Its shapes then depend on the data, and it does not compile under XLA.
        """

    def logits(self, weights: Weights, hidden: Array) -> Array:
        """Returns the logits `[B, V]` of hidden states `[B, E]`; see `extend_with_hidden`.

        Args:
          weights: without a client axis; those of `equalized` too.
          hidden: hidden states.
        """

    def prefill(self, weights: Weights, tokens: Array, lengths: Array, state: State = None) -> tuple[Array, State]:
        """Reads one prompt, or the next part of one, per row.

        Args:
          weights: without a client axis.
          tokens: int32 `[B, T]`, padded at the end, with T known when the graph is built.
          lengths: int32 `[B]`, 0 to T: the number of real tokens of each row.
          state: the state before these tokens; None is the initial state.

        Returns:
          The logits `[B, V]` after the last real token of each row, and the state after it. A row without real tokens
          keeps its state, and its logits have no meaning. As for `extend`, a row
          longer than the model's context is an error or has NaN logits; T counts, not the real tokens.
        """

    def extend(
        self,
        weights: Weights,
        tokens: Array,
        state: State,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[Array, Trail]:
        """Reads G more tokens per row from `state`.

        Args:
          weights: without a client axis.
          tokens: int32 `[B, G]`, with G known when the graph is built.
          state: the state before these tokens.
          tree: the tree whose G nodes, with the root, the tokens are; each is read after its ancestors only. None: each
            token is read after all those before it.
          level: one of `tree.levels`: the tokens are its nodes only, and `state` is the trail of the levels before or,
            for the root, the state before the tree. None: the tokens are all nodes.

        Returns:
          The logits `[B, G, V]` after each token, and the trail, from which `rewind` takes a state. A row longer than
          the model's context is an error, or has NaN logits where nothing can be raised (XLA, TFLite); all G tokens
          count, those of other paths too.

        Raises:
          ValueError: G is not the number of nodes of `tree`, or of `level`.
        """

    def extend_with_hidden(
        self,
        weights: Weights,
        tokens: Array,
        state: State,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[Array, Array, Trail]:
        """Does the same as `extend`, and returns the hidden states `[B, G, E]` between the logits and the trail.

        Hidden states are the vectors that the output layer reads. Prediction heads read them too.
        """

    def rewind(self, trail: Trail, kept: Array, tree: TokenTree | None = None) -> State:
        """Returns the state after the kept ones of the tokens that `extend` read.

        Args:
          trail: from `extend`; with a tree, of all its nodes.
          kept: int32 `[B]`, 0 to G. Without a tree, the first `kept` tokens are kept. With a tree, the node
            `kept - 1` and its ancestors are kept; 0 keeps none. For a chain, both are the same.
          tree: the tree that `extend` was given.
        """

    def select(self, states: Sequence[State], kept: Array) -> State:
        """Returns for each row the state `states[kept]`.

        Args:
          states: the state before and after each of successive calls of `extend` with one token, all of it kept.
          kept: int32 `[B]`, 0 to the number of calls.
        """

    def equalized(self, weights: Weights) -> Weights:
        """Returns weights that compute the same, with less error once whole tensors are quantised to int8.

        The result may have more names than `shapes`. `prefill`, `extend` and `rewind` take it.
        """

    def initial_state(self, batch: int) -> State:
        """Returns the state before any token, for `batch` rows."""

    def config(self) -> dict[str, Any]:
        """Returns the JSON-serialisable dict from which `models.presets.from_config` builds this model again."""
