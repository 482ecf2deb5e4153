"""Implements a one-layer recurrent language model with a tied embedding: logits = r · embeddingᵀ (+ output bias).

Here r is the output of the recurrence (`models.cifg`). It is projected to the embedding size, so that one matrix is
both the input and the output embedding (Press & Wolf 2017, https://arxiv.org/abs/1608.05859). Shapes that begin with
`(U,)` may have a leading client axis of size U.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from models import output_layer
from models.cifg import CIFGState, Recurrence, matmul_rows
from models.language_model import Array, Weights
from models.tensors import to_tensors
from models.token_tree import TokenTree


@dataclass(frozen=True)
class RecurrentLanguageModel:
    """Implements `models.language_model.LanguageModel` with a CIFG or SI-CIFG cell.

    Its weights are float32 arrays: "bias" `[3H]`, "embedding" `[V, E]`, "input_kernel" `[E, 3H]`, "output_bias" `[V]`
    (only with `output_bias`), "projection" `[H, E]` and "recurrent_kernel" `[E, 3H]`.

    Attributes:
      cell: kind of the recurrence, "cifg" or "si-cifg".
      vocabulary_size: number of token ids V, >= 1.
      embedding: size E of the embedding and of the recurrent output, >= 1.
      units: size H of the cell state, >= 1.
      layer_norm: whether the hidden state is normalised (without scale and offset) before the projection.
      output_bias: whether a bias is added to the logits.

    Raises:
      ValueError: `cell` is unknown, or a size is not a positive integer.
    """

    cell: str
    vocabulary_size: int
    embedding: int
    units: int
    layer_norm: bool = False
    output_bias: bool = False

    def __post_init__(self) -> None:
        self._recurrence()  # raises ValueError if the cell is unknown
        for name in ("vocabulary_size", "embedding", "units"):
            object.__setattr__(self, name, _require_positive(name, getattr(self, name)))

    def _recurrence(self) -> Recurrence:
        return Recurrence(self.cell, self.layer_norm)

    @property
    def context(self) -> None:
        """Returns None: a row may have any number of tokens."""
        return None

    def fit(self, context: int) -> "RecurrentLanguageModel":
        """Returns the model itself, whose state has one size for rows of any length; see `LanguageModel.fit`."""
        _require_positive("context", context)
        return self

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each weight by name, in sorted order and without a client axis."""
        vocabulary, embedding, units = self.vocabulary_size, self.embedding, self.units
        shapes: dict[str, tuple[int, ...]] = {
            "bias": (3 * units,),
            "embedding": (vocabulary, embedding),
            "input_kernel": (embedding, 3 * units),
            "output_bias": (vocabulary,),
            "projection": (units, embedding),
            "recurrent_kernel": (embedding, 3 * units),
        }
        if not self.output_bias:
            del shapes["output_bias"]
        return shapes

    def init(self, seed: int) -> Weights:
        """Draws new weights: matrices from a normal distribution of variance 1 / fan-in, biases zero.

        The embedding has variance 1 / E. Plain SGD trains both kinds of cell from these weights.

        Args:
          seed: integer >= 0; equal seeds give equal weights.
        """
        rng = np.random.default_rng(seed)
        weights: Weights = {}
        for name, shape in self.shapes().items():
            if len(shape) == 1:
                weights[name] = np.zeros(shape, np.float32)
            else:
                fan_in = self.embedding if name == "embedding" else shape[0]
                weights[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        return weights

    def token_losses(self, weights: Weights, tokens: Array) -> tf.Tensor:
        """Returns losses in nats, `[(U,) B, T]`, of tokens int32 `[(U,) B, T+1]`; see `LanguageModel.token_losses`."""
        outputs, table, bias, targets = self._outputs(weights, tokens)
        return _time_major(output_layer.cross_entropy(outputs, table, bias, targets))

    def loss_sum(self, weights: Weights, tokens: Array, rows: Array | None = None) -> tf.Tensor:
        """Returns the summed loss in nats, float32 `[]` or `[U]`; see `LanguageModel.loss_sum`."""
        return self._sums(weights, tokens, rows, with_correct=False)[0]

    def loss_and_correct(
        self, weights: Weights, tokens: Array, rows: Array | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `loss_sum` and how many targets have the largest logit; see `LanguageModel.loss_and_correct`."""
        loss, correct = self._sums(weights, tokens, rows, with_correct=True)
        return loss, correct

    def _sums(self, weights: Weights, tokens: Array, rows: Array | None, with_correct: bool) -> list[tf.Tensor]:
        outputs, table, bias, targets = self._outputs(weights, tokens)
        if rows is not None:
            mask = tf.sequence_mask(rows, tf.shape(targets)[-1])[:, tf.newaxis]
            targets = tf.where(mask, targets, output_layer.PAD)
        return output_layer.sums(outputs, table, bias, targets, with_correct)

    def _outputs(self, weights: Weights, tokens: Array) -> tuple[Any, Any, Any, Any]:
        """Returns the recurrent outputs `[(U,) T, B, E]`, output table, output bias and targets `[(U,) T, B]`."""
        weights = to_tensors(weights)
        tokens = _time_major(tf.convert_to_tensor(tokens))
        inputs, table = output_layer.tied(weights["embedding"], tokens[..., :-1, :])
        outputs = self._recurrence().outputs(weights, inputs)
        return outputs, table, weights.get("output_bias"), tokens[..., 1:, :]

    def hidden_states(self, weights: Weights, tokens: Array) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns the recurrent outputs `[(U,) B, T, E]`, output table and bias; see `LanguageModel.hidden_states`."""
        outputs, table, bias, _ = self._outputs(weights, tokens)
        rank = outputs.shape.rank
        return tf.transpose(outputs, [*range(rank - 3), rank - 2, rank - 3, rank - 1]), table, bias

    def logits(self, weights: Weights, hidden: Array) -> tf.Tensor:
        """Returns the logits `[B, V]` of recurrent outputs `[B, E]`; see `LanguageModel.logits`."""
        return self._logits(to_tensors(weights), tf.convert_to_tensor(hidden)[tf.newaxis])[0]

    def prefill(
        self, weights: Weights, tokens: Array, lengths: Array, state: CIFGState | None = None
    ) -> tuple[tf.Tensor, CIFGState]:
        """Reads tokens int32 `[B, T]` and returns logits `[B, V]` and the state; see `LanguageModel.prefill`."""
        weights = to_tensors(weights)
        inputs = tf.gather(weights["embedding"], _time_major(tf.convert_to_tensor(tokens)))
        state = self._recurrence().last_state(weights, inputs, tf.convert_to_tensor(lengths), state)
        return self._logits(weights, state.output[tf.newaxis])[0], state

    def extend(
        self,
        weights: Weights,
        tokens: Array,
        state: CIFGState,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, CIFGState]:
        """Reads tokens int32 `[B, G]` and returns logits `[B, G, V]` and the trail; see `LanguageModel.extend`.

        The trail is a state with a time axis: output `[B, G+1, E]` and cell `[B, G+1, H]`. Its entry 0 is `state`.
        """
        logits, _, trail = self.extend_with_hidden(weights, tokens, state, tree, level)
        return logits, trail

    def extend_with_hidden(
        self,
        weights: Weights,
        tokens: Array,
        state: CIFGState,
        tree: TokenTree | None = None,
        level: range | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, CIFGState]:
        """Does the same as `extend`, and returns the outputs `[B, G, E]` between the logits and the trail."""
        weights = to_tensors(weights)
        inputs = tf.gather(weights["embedding"], _time_major(tf.convert_to_tensor(tokens)))
        begun = tree is None or level is None or level.start == 0
        before = CIFGState(*(part[tf.newaxis] if begun else tf.transpose(part, [1, 0, 2]) for part in state))
        if tree is None:
            after = self._recurrence().states(weights, inputs, state)
        else:
            after = self._recurrence().tree_states(weights, inputs, before, tree, level)
        logits = tf.transpose(self._logits(weights, after.output), [1, 0, 2])
        trail = (tf.transpose(tf.concat(parts, 0), [1, 0, 2]) for parts in zip(before, after, strict=True))
        return logits, tf.transpose(after.output, [1, 0, 2]), CIFGState(*trail)

    def rewind(self, trail: CIFGState, kept: Array, tree: TokenTree | None = None) -> CIFGState:
        """Returns the state after the tokens that are kept; see `LanguageModel.rewind`.

        It is the entry `kept` (int32 `[B]`, 0 to G) of the trail, with and without a tree.
        """
        return CIFGState(*(tf.gather(states, kept, axis=1, batch_dims=1) for states in trail))

    def select(self, states: Sequence[CIFGState], kept: Array) -> CIFGState:
        """Returns for each row the state `states[kept]`; see `LanguageModel.select`."""
        parts = (tf.stack(of_step, axis=1) for of_step in zip(*states, strict=True))
        return CIFGState(*(tf.gather(part, kept, axis=1, batch_dims=1) for part in parts))

    def equalized(self, weights: Weights) -> Weights:
        """Returns the weights as they are; see `LanguageModel.equalized`."""
        return weights

    def initial_state(self, batch: int) -> CIFGState:
        """Returns the zero state, float32: output `[batch, E]` and cell `[batch, H]`."""
        return CIFGState(tf.zeros([batch, self.embedding]), tf.zeros([batch, self.units]))

    def config(self) -> dict[str, Any]:
        """Returns the attributes and the architecture's name, for `models.presets.from_config` to rebuild the model."""
        return {"architecture": "recurrent", **asdict(self)}

    def _logits(self, weights: Weights, outputs: tf.Tensor) -> tf.Tensor:
        """Maps recurrent outputs `[T, B, E]` to logits `[T, B, V]`."""
        logits = matmul_rows(outputs, tf.linalg.matrix_transpose(weights["embedding"]))
        return logits + weights["output_bias"] if self.output_bias else logits


def _require_positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: {value!r} is not a positive integer")
    return int(value)


def _time_major(x: tf.Tensor) -> tf.Tensor:
    """Swaps the last two axes: `[..., B, T] <-> [..., T, B]`."""
    return tf.linalg.matrix_transpose(x)
