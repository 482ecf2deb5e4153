"""The one protocol that every language model answers, with its weights as an explicit argument."""

from typing import Any, Protocol

Array = Any  # a NumPy array or a tf.Tensor
State = Any  # whatever one model carries from token to token; a nest of arrays with the batch axis first
Trail = Any  # the states after each of the last few tokens, in a form that `rewind` understands
Weights = dict[str, Array]  # keys in sorted order


class LanguageModel(Protocol):
    """Pure functions of (weights, inputs). B is the batch, T and G count tokens, V is the vocabulary size.

    All work in eager mode and `tf.function`, all but the sums in XLA, all but the losses in TFLite with builtin ops.
    """

    @property
    def vocabulary_size(self) -> int: ...

    def init(self, seed: int) -> Weights:
        """New NumPy float32 weights, a function of the seed alone."""

    def token_losses(self, weights: Weights, tokens: Array) -> Array:
        """Negative log-probability in nats of each token after the first, given those before it in its row.

        tokens int32 `[B, T+1]` gives float32 `[B, T]`; with one leading *user* axis on every weight and on
        tokens, `[U, B, T+1]` gives `[U, B, T]`. The state starts at zero in every row. Differentiable in the
        weights, once.
        """

    def loss_sum(self, weights: Weights, tokens: Array, rows: Array | None = None) -> Array:
        """The sum of `token_losses` where the target is not padding (id 0), float32 [] (or `[U]`): for training.

        It skips what padding would cost, so that it is not for XLA.

        rows int32 `[U]`, with a user axis only: each user's rows from there on do not count.
        """

    def loss_and_correct(self, weights: Weights, tokens: Array, rows: Array | None = None) -> tuple[Array, Array]:
        """`loss_sum`, and how many of the same tokens had the largest logit, float32 [] or `[U]`."""

    def prefill(self, weights: Weights, tokens: Array, lengths: Array) -> tuple[Array, State]:
        """Reads prompts: tokens int32 `[B, T]`, of which the first lengths int32 `[B]` (1 to T) are real.

        Returns the logits `[B, V]` after the last real token of each row, and the state after it.
        """

    def extend(self, weights: Weights, tokens: Array, state: State) -> tuple[Array, Trail]:
        """Reads G more tokens, int32 `[B, G]` with G static: logits `[B, G, V]` after each, and the trail."""

    def rewind(self, trail: Trail, kept: Array) -> State:
        """The state after the first kept int32 `[B]` (0 to G) of the tokens that `extend` read."""

    def initial_state(self, batch: int) -> State:
        """The state before any token."""

    def config(self) -> dict[str, Any]:
        """What `models.presets.from_config` needs to make this model again; JSON-able."""
