"""Adds prediction heads to a language model, which then drafts its own next tokens (blockwise parallel decoding).

Head i predicts the token i places after the last one that was read. Head 1 is the base model itself. Each further head
has one hidden layer with a residual connection on the last hidden state, x + silu(x · inner) · outer, and then the base
model's own output layer (Stern et al. 2018, https://arxiv.org/abs/1811.03115; Kim et al. 2024,
https://arxiv.org/abs/2404.09221; the activation is that of Cai et al. 2024, https://arxiv.org/abs/2401.10774). Shapes
that begin with `(U,)` may have a leading client axis of size U.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from models import output_layer
from models.language_model import Array, LanguageModel, State, Trail, Weights
from models.presets import MAX_HEADS
from models.tensors import shape_of, to_tensors
from models.token_tree import TokenTree
from models.transformer import layers


@dataclass(frozen=True)
class HeadedLanguageModel:
    """Implements `models.language_model.LanguageModel` as a base model with prediction heads.

    All that decodes (`prefill`, `extend`, `rewind`, …) and `token_losses` is the base model's, to the bit. The training
    loss is the sum of all heads' losses. With E the size of the base's hidden states, the weights are those of the base
    and for each head i from 2: "head_i.inner" and "head_i.outer", float32 `[E, E]`.

    Attributes:
      base: the language model that the heads read.
      prediction_heads: number of heads h, the base model included, 1 to 16; 1 adds none.
      base_weights: weights of a frozen base, without a client axis. The model's own weights are then the heads' only,
        and training them leaves the base as it is. Functions that are traced hold tensors by reference, and NumPy
        arrays as a copy. None: the base's weights are trained together with the heads.

    Raises:
      ValueError: `prediction_heads` is out of range, the base has heads already, or `base_weights` are another model's.
    """

    base: LanguageModel
    prediction_heads: int
    base_weights: Weights | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        heads = self.prediction_heads
        if isinstance(heads, bool) or not isinstance(heads, Integral) or not 1 <= heads <= MAX_HEADS:
            raise ValueError(f"prediction_heads: {heads!r} is not an integer from 1 to {MAX_HEADS}")
        object.__setattr__(self, "prediction_heads", int(heads))
        if isinstance(self.base, HeadedLanguageModel):
            raise ValueError(f"base: the model has {self.base.prediction_heads} prediction heads already")
        if self.base_weights is not None:
            found = {name: tuple(weight.shape) for name, weight in self.base_weights.items()}
            wrong = sorted(name for name, _ in found.items() ^ self.base.shapes().items())
            if wrong:
                raise ValueError(
                    f"base_weights: {wrong[0]!r} is missing, unknown or of another shape than the base model's: give "
                    "the weights that were trained with it"
                )

    @property
    def vocabulary_size(self) -> int:
        """Returns the number of token ids, V."""
        return self.base.vocabulary_size

    @property
    def context(self) -> int | None:
        """Returns the maximum number of tokens of a row; None if there is no maximum."""
        return self.base.context

    def fit(self, context: int) -> "HeadedLanguageModel":
        """Returns this model with states for rows of at most `context` tokens; see `LanguageModel.fit`."""
        return replace(self, base=self.base.fit(context))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each weight by name, in sorted order and without a client axis."""
        base = self.base.shapes()
        size = base["embedding"][1]
        heads = {f"head_{head}.{part}": (size, size) for head in self._extra_heads for part in ("inner", "outer")}
        return dict(sorted(((base if self.base_weights is None else {}) | heads).items()))

    @property
    def _extra_heads(self) -> range:
        return range(2, self.prediction_heads + 1)

    def init(self, seed: int) -> Weights:
        """Draws new weights: the base's, unless it is frozen, and those of `init_heads`."""
        base = self.base.init(seed) if self.base_weights is None else {}
        return dict(sorted((base | self.init_heads(seed)).items()))

    def init_heads(self, seed: int) -> Weights:
        """Draws new weights of the heads after the first, with which each of them gives the base's logits.

        "inner" is drawn from a normal distribution of variance 1 / E, and "outer" is zero.

        Args:
          seed: integer >= 0; equal seeds give equal weights.
        """
        size = self.base.shapes()["embedding"][1]
        generator = np.random.default_rng([seed, 1])  # another stream than the base's own
        weights: Weights = {}
        for head in self._extra_heads:
            weights[f"head_{head}.inner"] = (generator.standard_normal((size, size)) * size**-0.5).astype(np.float32)
            weights[f"head_{head}.outer"] = np.zeros((size, size), np.float32)
        return weights

    def token_losses(self, weights: Weights, tokens: Array) -> tf.Tensor:
        """Returns the losses of head 1 in nats, `[(U,) B, T]`; see `LanguageModel.token_losses`."""
        tokens = tf.convert_to_tensor(tokens)
        if self.base_weights is None:
            return self.base.token_losses(weights, tokens)
        losses = self.base.token_losses(self.base_weights, _join_clients(tokens))
        return tf.reshape(losses, [*shape_of(tokens)[:-1], shape_of(losses)[-1]])

    def loss_sum(self, weights: Weights, tokens: Array, rows: Array | None = None) -> tf.Tensor:
        """Returns the sum over all heads of their losses in nats, float32 `[]` or `[U]`; see `LanguageModel.loss_sum`.

        A head's targets that are padding (id 0), or would lie beyond the row's end, do not count.
        """
        return self._sums(weights, tokens, rows, with_correct=False)[0]

    def loss_and_correct(
        self, weights: Weights, tokens: Array, rows: Array | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `loss_sum` and how many targets of head 1 have the largest logit of head 1."""
        loss, correct = self._sums(weights, tokens, rows, with_correct=True)
        return loss, correct

    def _sums(self, weights: Weights, tokens: Array, rows: Array | None, with_correct: bool) -> list[tf.Tensor]:
        weights, tokens = to_tensors(weights), tf.convert_to_tensor(tokens)
        hidden, table, bias = self.hidden_states(weights, tokens)
        if rows is not None:
            tokens = tf.where(tf.sequence_mask(rows, tf.shape(tokens)[-2])[..., tf.newaxis], tokens, output_layer.PAD)
        outputs = [self.head_hidden(weights, hidden, 1)]
        # The hidden states whose targets would lie beyond the row are cut off; of a short row, all of them.
        outputs += [self.head_hidden(weights, hidden[..., : 1 - head, :], head) for head in self._extra_heads]
        targets = [tokens[..., head:] for head in range(1, self.prediction_heads + 1)]
        is_frozen = self.base_weights is not None
        clients = tf.shape(tokens)[0] if tokens.shape.rank == 3 else None
        return output_layer.sums_in_turn(outputs, table, bias, targets, with_correct, is_frozen, clients)

    def hidden_states(self, weights: Weights, tokens: Array) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns the base's hidden states `[(U,) B, T, E]` and output layer; see `LanguageModel.hidden_states`.

        With a frozen base, they have no gradient, and the output layer has no client axis.
        """
        if self.base_weights is None:
            return self.base.hidden_states(weights, tokens)
        tokens = tf.convert_to_tensor(tokens)
        hidden, table, bias = self.base.hidden_states(self.base_weights, _join_clients(tokens))
        hidden = tf.reshape(hidden, [*shape_of(tokens)[:-1], *shape_of(hidden)[-2:]])
        return tf.stop_gradient(hidden), table, bias

    def head_hidden(self, weights: Weights, hidden: Array, head: int) -> tf.Tensor:
        """Returns the vectors that the output layer reads for one head.

        Args:
          weights: the weights, with a client axis or without; those of `equalized` too.
          hidden: hidden states of the base, `[(U,) ..., E]`.
          head: number of the head, 1 to h; for head 1, the result is `hidden`.
        """
        hidden = tf.convert_to_tensor(hidden)
        if head == 1:
            return hidden
        weights = to_tensors({name: weight for name, weight in weights.items() if name.startswith(f"head_{head}.")})
        inner = layers.matmul(weights, f"head_{head}.inner", hidden)
        return hidden + layers.matmul(weights, f"head_{head}.outer", inner * tf.sigmoid(inner))

    def head_logits(self, weights: Weights, hidden: Array, heads: range | None = None) -> tf.Tensor:
        """Returns the logits `[B, heads, V]` of several heads, with TFLite's builtin ops only.

        Those of head 1 are the base's. They come out of one matrix product with the other heads', so that they may
        differ from the logits of `extend` by rounding: take those where head 1 must be equal to the bit.

        Args:
          weights: without a client axis; those of `equalized` too.
          hidden: hidden states `[B, E]`, which `extend_with_hidden` gives.
          heads: numbers of the heads, from 1; None: all.
        """
        hidden = tf.convert_to_tensor(hidden)
        chosen = heads or range(1, self.prediction_heads + 1)
        vectors = tf.stack([self.head_hidden(weights, hidden, head) for head in chosen], axis=1)
        batch, count, size = shape_of(vectors)
        return tf.reshape(self.logits(weights, tf.reshape(vectors, [-1, size])), [batch, count, self.vocabulary_size])

    def logits(self, weights: Weights, hidden: Array) -> tf.Tensor:
        """Returns the base's logits `[B, V]` of hidden states `[B, E]`; see `LanguageModel.logits`."""
        return self.base.logits(self._with_base(weights), hidden)

    def prefill(self, weights: Weights, tokens: Array, lengths: Array, state: State = None) -> tuple[tf.Tensor, State]:
        """Does what the base's `prefill` does."""
        return self.base.prefill(self._with_base(weights), tokens, lengths, state)

    def extend(
        self,
        weights: Weights,
        tokens: Array,
        state: State,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, Trail]:
        """Does what the base's `extend` does."""
        return self.base.extend(self._with_base(weights), tokens, state, tree, level)

    def extend_with_hidden(
        self,
        weights: Weights,
        tokens: Array,
        state: State,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, Trail]:
        """Does what the base's `extend_with_hidden` does; `head_logits` takes the hidden states."""
        return self.base.extend_with_hidden(self._with_base(weights), tokens, state, tree, level)

    def rewind(self, trail: Trail, kept: Array, tree: TokenTree | None = None) -> State:
        """Does what the base's `rewind` does."""
        return self.base.rewind(trail, kept, tree)

    def select(self, states: Sequence[State], kept: Array) -> State:
        """Does what the base's `select` does."""
        return self.base.select(states, kept)

    def initial_state(self, batch: int) -> State:
        """Returns the base's state before any token, for `batch` rows."""
        return self.base.initial_state(batch)

    def equalized(self, weights: Weights) -> Weights:
        """Returns weights that compute the same with less error in int8; see `LanguageModel.equalized`.

        They hold the base's weights too, also if it is frozen. `head_hidden` and `head_logits` take them.
        """
        base, heads = self.split(weights)
        equalized = self.base.equalized(base)
        for name, weight in heads.items():
            equalized[name], equalized[f"{name}_scale"] = layers.equalize(np.asarray(weight))
        return dict(sorted(equalized.items()))

    def split(self, weights: Weights) -> tuple[Weights, Weights]:
        """Returns the base's weights, also those of a frozen base, and the heads'."""
        names = self.base.shapes()
        base = {name: weight for name, weight in self._with_base(weights).items() if name in names}
        return base, {name: weight for name, weight in weights.items() if name not in names}

    def _with_base(self, weights: Weights) -> Weights:
        return weights if self.base_weights is None else {**self.base_weights, **weights}

    def config(self) -> dict[str, Any]:
        """Returns the base's config and the number of heads, for `models.presets.from_config` to rebuild the model.

        The model that it rebuilds has no frozen base: its weights are both parts of `split`.
        """
        return {**self.base.config(), "prediction_heads": self.prediction_heads}


def without_heads(model: LanguageModel, weights: Weights) -> tuple[LanguageModel, Weights]:
    """Returns the base of a model with prediction heads, and its weights; another model as it is."""
    return (model.base, model.split(weights)[0]) if isinstance(model, HeadedLanguageModel) else (model, weights)


def _join_clients(tokens: tf.Tensor) -> tf.Tensor:
    """Returns the rows of all clients, `[(U,) B, T]` -> `[(U ·) B, T]`."""
    return tf.reshape(tokens, [-1, shape_of(tokens)[-1]])
