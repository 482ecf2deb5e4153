"""Local training: what one client does with the model it receives.

Plain SGD on the client's own sequences. Sequences and their order are chosen on the host (`LocalSGD.batches`), so the
TensorFlow part (`client_update`) sees one dense tensor: no `tf.data` inside a TFF computation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fl.clients import PAD

Weights = dict[str, Any]
"""Named tensors, keys in sorted order."""

TokenLosses = Callable[[Weights, Any], Any]
"""(weights, tokens int32 [B, T+1]) -> float32 [B, T]: nats lost on predicting tokens[:, 1:]."""


@dataclass(frozen=True)
class LocalSGD:
    """Local training of a client: `epochs` passes of SGD over at most `max_sequences` of its sequences.

    Attributes:
      learning_rate: of SGD, > 0; the gradient is of the mean loss over a batch's real tokens.
      batch_size: sequences a step.
      epochs: passes over the chosen sequences.
      sequence_length: predicted tokens T of a sequence (sentences are packed back to back).
      max_sequences: most sequences of a client in a round; a client with more gets a fresh random choice each round.
    """

    learning_rate: float
    batch_size: int = 16
    epochs: int = 1
    sequence_length: int = 20
    max_sequences: int = 64

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate is {self.learning_rate}: a positive number is needed")
        for name in ("batch_size", "epochs", "sequence_length", "max_sequences"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1 is needed")

    def batches(self, sequences: np.ndarray, seed: int, client: int) -> np.ndarray:
        """The batches of one client in one round, shuffled anew for every epoch.

        Args:
          sequences: int32 [n, T+1], all sequences of the client.
          seed: 128-bit seed of the round.
          client: index of the client; each draws from its own stream, whoever else takes part.

        Returns:
          int32 [steps, batch_size, T+1], the last batch of an epoch padded with PAD rows; steps = 0 without data.
        """
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, client]))
        chosen = min(len(sequences), self.max_sequences)
        steps = -(-chosen // self.batch_size)
        out = np.full((self.epochs, steps * self.batch_size, self.sequence_length + 1), PAD, np.int32)
        rows = generator.permutation(len(sequences))[:chosen]
        for epoch in range(self.epochs):
            out[epoch, :chosen] = sequences[rows if epoch == 0 else generator.permutation(rows)]
        return out.reshape(self.epochs * steps, self.batch_size, self.sequence_length + 1)


class ClientUpdate(NamedTuple):
    """What local training gives: the model's change and what the client saw on the way (before any clipping)."""

    delta: Weights  # trained weights minus received weights
    examples: Any  # float32 scalar: sequences trained on, counted once an epoch
    tokens: Any  # float32 scalar: real target tokens of all steps
    loss: Any  # float32 scalar: sum over those tokens of the loss in nats, each before the step that used it


def client_update(token_losses: TokenLosses, weights: Weights, batches: Any, learning_rate: float) -> ClientUpdate:
    """Trains one client: a TensorFlow graph function of (weights, batches).

    Args:
      token_losses: loss of the model, see `TokenLosses`.
      weights: the model as received.
      batches: int32 [steps, B, T+1]; steps may be 0 and unknown when the graph is made.
      learning_rate: of SGD.
    """
    import tensorflow as tf

    names = sorted(weights)

    def step(index: Any, examples: Any, tokens: Any, loss: Any, *values: Any) -> tuple[Any, ...]:
        batch = batches[index]
        real = tf.cast(tf.not_equal(batch[:, 1:], PAD), tf.float32)
        count = tf.reduce_sum(real)
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(token_losses(dict(zip(names, values, strict=True)), batch) * real)
            mean = total / tf.maximum(count, 1.0)
        gradients = tape.gradient(mean, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        updated = [value - learning_rate * tf.convert_to_tensor(g) for value, g in zip(values, gradients, strict=True)]
        examples += tf.reduce_sum(tf.reduce_max(real, axis=1))
        return (index + 1, examples, tokens + count, loss + total, *updated)

    start = [tf.convert_to_tensor(weights[name]) for name in names]
    _, examples, tokens, loss, *trained = tf.while_loop(
        lambda index, *_: index < tf.shape(batches)[0],
        step,
        [tf.constant(0), tf.constant(0.0), tf.constant(0.0), tf.constant(0.0), *start],
        parallel_iterations=1,
    )
    delta = {name: after - before for name, after, before in zip(names, trained, start, strict=True)}
    return ClientUpdate(delta, examples, tokens, loss)
