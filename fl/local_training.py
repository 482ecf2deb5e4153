"""Trains a client's copy of the model by SGD on the client's own examples.

The examples and their order are chosen on the host (`LocalSGD.batches`). So the TensorFlow part (`client_update`) sees
dense tensors, and there is no `tf.data` inside a TFF computation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from fl.clients import PAD
from privacy import checks

Weights = dict[str, Any]
"""A model's named tensors, with keys in sorted order."""

TokenLosses = Callable[[Weights, Any], Any]
"""A function (weights, tokens int32 [B, T+1]) -> float32 [B, T]: the losses in nats on predicting tokens[:, 1:]. If
every weight and the tokens have a leading client axis, so have the losses."""


class Batches(NamedTuple):
    """Holds the batches of one client, in the order of training."""

    examples: Any  # an array [steps, B, ...], or a tuple of such; rows after the real ones are zeros (padding)
    rows: np.ndarray  # int32 [steps]: number of real rows, which come first: 1 to B (stacked clients: 0 after the last)


OPTIMIZERS = ("sgd", "adam")
_ADAM = 0.9, 0.999, 1e-7  # decay of the mean gradient and of the mean square, and what is added to the root


@dataclass(frozen=True)
class LocalSGD:
    """Describes a client's local training: passes of SGD over at most `max_sequences` of its sequences.

    Attributes:
      learning_rate: step size of SGD, > 0; the gradient is that of the mean loss over a batch's real tokens.
      batch_size: sequences in one step, >= 1.
      epochs: passes over the chosen sequences, >= 1.
      sequence_length: predicted tokens T of a sequence, >= 1 (sentences are packed back to back).
      max_sequences: maximum number of a client's sequences in a round, >= 1; if a client has more, each round chooses
        anew at random.
      proximal: μ >= 0 of FedProx: μ/2 times the squared distance from the received weights is added to the loss.
        Reference: Li et al. 2020, https://arxiv.org/abs/1812.06127.
      weight_decay: λ >= 0: λ/2 times the squared norm of the weights is added to the loss.
      optimizer: "sgd"; or "adam", which holds two more copies of the weights on the device, and begins anew with every
        client. Reference: Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, with β₁ = 0.9, β₂ = 0.999, ε = 1e-7.

    Raises:
      ValueError: a value is out of range.
    """

    learning_rate: float
    batch_size: int = 16
    epochs: int = 1
    sequence_length: int = 20
    max_sequences: int = 64
    proximal: float = 0.0
    weight_decay: float = 0.0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        checks.positive("learning_rate", self.learning_rate, "choose a step size such as 0.5")
        for name in ("batch_size", "epochs", "sequence_length", "max_sequences"):
            checks.whole(name, getattr(self, name), 1, "choose an integer")
        for name in ("proximal", "weight_decay"):
            checks.non_negative(name, getattr(self, name), "choose a number such as 0.01, or 0 for none")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}: choose {' or '.join(OPTIMIZERS)}")

    def batches(self, examples: Any, seed: int, client: int) -> Batches:
        """Returns the batches of one client in one round, shuffled anew for every epoch.

        Args:
          examples: all examples of the client: sequences, int32 [n, T+1], or a tuple of arrays [n, ...].
          seed: 128-bit seed of the round.
          client: index of the client, >= 0; each client draws from its own stream, whoever else takes part.

        Returns:
          The batches. The last one of an epoch is padded with rows of zeros. Without examples there is no step.

        Raises:
          ValueError: the arrays of a tuple differ in length, or `client` is negative.
        """
        checks.whole("client", client, 0, "give the client's index")
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, client]))
        arrays = examples if isinstance(examples, tuple) else (examples,)
        count = len(arrays[0])
        if any(len(array) != count for array in arrays):
            raise ValueError(f"client {client} has arrays of {[*map(len, arrays)]} examples: give each the same number")
        chosen = min(count, self.max_sequences)
        steps = -(-chosen // self.batch_size)
        rows = generator.permutation(count)[:chosen]
        order = [rows if epoch == 0 else generator.permutation(rows) for epoch in range(self.epochs)]
        padded = []
        for array in arrays:
            out = np.zeros((self.epochs, steps * self.batch_size, *array.shape[1:]), array.dtype)
            for epoch, positions in enumerate(order):
                out[epoch, :chosen] = array[positions]
            padded.append(out.reshape(self.epochs * steps, self.batch_size, *array.shape[1:]))
        epoch_rows = np.full(steps, self.batch_size, np.int32)
        epoch_rows[steps - 1 :] -= steps * self.batch_size - chosen
        return Batches(tuple(padded) if isinstance(examples, tuple) else padded[0], np.tile(epoch_rows, self.epochs))


class Loss(NamedTuple):
    """Holds the loss of one batch. Every field has shape [], or [U] if U clients have one batch each."""

    total: Any  # float32: sum of the losses
    count: Any  # float32: number of predictions in the sum; SGD follows the gradient of total / count
    correct: Any = 0.0  # float32: how many of these were correct; 0 if the task does not measure it


class Task(Protocol):
    """Describes a learning task: a loss, and the specs of one example."""

    @property
    def example(self) -> Any:
        """Returns the `tf.TensorSpec`s of one example, without batch axis, nested as `Batches.examples` is."""

    @property
    def stacks(self) -> bool:
        """Returns whether `loss` accepts a leading client axis."""

    @property
    def measures_accuracy(self) -> bool:
        """Returns whether `loss` counts correct predictions."""

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """Returns (which, forms): the batch in shapes that all have the same loss, and which of them to compute.

        `which` is an index in `forms`, int32 []. A task with only one form returns `(0, [batch])`.
        """

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """Returns the loss of a batch `[b, ...]` whose first `rows` rows, int32 [], are real.

        Without a client axis all b rows are real. With a client axis, weights, batch and rows [U] all have it. A
        client's rows after its real ones repeat the last real row and must not count. A client without real rows has
        rows of zeros. Its loss may be NaN, because it is discarded.
        """


@dataclass(frozen=True)
class LanguageModelling:
    """Defines the task of next-token prediction, for one of fedspeak's models or any other `TokenLosses` function.

    Attributes:
      token_losses: the model's losses, see `TokenLosses`.
      sequence_length: predicted tokens T of a sequence.
      stacks: whether `token_losses` accepts a leading client axis, as those of `models` do, and keeps the clients
        independent. The privacy guarantee relies on this: if one client's losses depended on another's weights or
        tokens, no clip norm would bound one client's contribution. `fl.engines.stacking` tests it on synthetic data.
      lengths: shorter lengths in increasing order, each from 1 to below T. A batch whose rows are all padding after the
        first L predicted tokens is cut to the shortest such length L. This pays for sequences that are lines or
        sentences, not for text packed back to back. Each length makes the graph larger. Batches of clients trained
        together are never cut, because the cut would depend on the other clients.
      loss_sum: function (weights, tokens) -> sum of `token_losses` over the targets that are not padding, for a model
        that computes the sum faster; with a client axis (weights, tokens, rows [U]) -> [U], over each client's first
        `rows` rows.
      loss_and_correct: function like `loss_sum` that also returns how many of these tokens were the most likely
        prediction; if it is given, the accuracy is measured, too.

    Raises:
      ValueError: `lengths` is out of order or range.
    """

    token_losses: TokenLosses
    sequence_length: int
    stacks: bool = False
    lengths: tuple[int, ...] = ()
    loss_sum: Callable[..., Any] | None = None
    loss_and_correct: Callable[..., tuple[Any, Any]] | None = None

    def __post_init__(self) -> None:
        if list(self.lengths) != sorted({length for length in self.lengths if 0 < length < self.sequence_length}):
            raise ValueError(
                f"lengths is {self.lengths}: give increasing integers from 1 to below sequence_length, "
                f"{self.sequence_length}"
            )

    @property
    def measures_accuracy(self) -> bool:
        """Returns whether `loss_and_correct` was given."""
        return self.loss_and_correct is not None

    @property
    def example(self) -> Any:
        """Returns the spec of one sequence, int32 [T+1]."""
        import tensorflow as tf

        return tf.TensorSpec([self.sequence_length + 1], tf.int32)

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """Returns (which, forms): the batch cut to each of `lengths`, and whole; `which` keeps all real tokens."""
        import tensorflow as tf

        if batch.shape.rank == 3 or not self.lengths:
            return 0, [batch]
        cuts = (*self.lengths, self.sequence_length)
        position = tf.range(1, self.sequence_length + 1)
        longest = tf.reduce_max(tf.where(tf.not_equal(batch[..., 1:], PAD), position, 0))
        which = tf.reduce_sum(tf.cast(longest > tf.constant(cuts[:-1], tf.int32), tf.int32))
        return which, [batch[..., : length + 1] for length in cuts]

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """Returns the sum over the target tokens that are not padding."""
        import tensorflow as tf

        real = tf.not_equal(batch[..., 1:], PAD)
        client_rows: tuple[Any, ...] = ()
        if rows.shape.rank:
            real &= tf.sequence_mask(rows, tf.shape(batch)[-2])[..., tf.newaxis]
            client_rows = (rows,)
        count = tf.reduce_sum(tf.cast(real, tf.float32), [-2, -1])
        if self.loss_and_correct is not None:
            loss, correct = self.loss_and_correct(weights, batch, *client_rows)
            return Loss(loss, count, correct)
        if self.loss_sum is not None:
            return Loss(self.loss_sum(weights, batch, *client_rows), count)
        losses = tf.where(real, self.token_losses(weights, batch), 0.0)
        return Loss(tf.reduce_sum(losses, [-2, -1]), count)


class ClientUpdate(NamedTuple):
    """Holds the result of local training: the model's change before any clipping, and counts of the training data.

    It is the result of one client, or that of U clients; then every field has a leading client axis.
    """

    delta: Weights  # trained weights minus received weights
    examples: Any  # float32 []: examples trained on, counted once per epoch
    tokens: Any  # float32 []: predictions (real target tokens) of all steps
    loss: Any  # float32 []: sum of their losses in nats, each taken before the step that used it
    computed: Any  # float32 []: rows computed, including the padding of clients trained together
    correct: Any  # float32 []: number of correct predictions (0 if the task does not measure it)


def client_update(
    task: Task, weights: Weights, batches: Batches, local: LocalSGD, steps: tuple[Any, Any] | None = None
) -> ClientUpdate:
    """Trains one client, or U clients at once, as a TensorFlow graph function of (weights, batches).

    Args:
      task: the learning task.
      weights: the weights as received, without a client axis.
      batches: examples [steps, B, ...] and rows int32 [steps], or [steps, U, B, ...] and [steps, U] for a task that
        stacks. The number of steps may be 0 and need not be known when the graph is built.
      local: learning rate, penalties and optimizer.
      steps: int32 scalars (first, last + 1): the range of steps of `batches` to train on; None: all steps.

    Returns:
      The update, with a leading client axis U if `batches` has one.
    """
    import tensorflow as tf

    names = sorted(weights)
    examples, rows = tf.nest.map_structure(tf.convert_to_tensor, (batches.examples, batches.rows))
    client_axis = rows.shape[1:]  # [] or [U]
    first, end = (0, tf.shape(rows)[0]) if steps is None else steps
    start = [tf.convert_to_tensor(weights[name]) for name in names]
    if client_axis.rank:
        start = [tf.repeat(value[tf.newaxis], client_axis[0], axis=0) for value in start]

    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def step(
        index: Any, examples_seen: Any, tokens: Any, total: Any, computed: Any, correct: Any, *state: Any
    ) -> tuple[Any, ...]:
        values, slots = state[: len(names)], state[len(names) :]
        real = rows[index]
        # Computes only as many rows as the fullest batch has, so that most padding costs nothing.
        row_count = tf.reduce_max(real)
        batch = tf.nest.map_structure(lambda array: array[index], examples)
        if client_axis.rank:
            # A client's padding is replaced by copies of its own last row, which do not count. Rows of zeros could give
            # NaN where the client's own rows do not, and the number of such rows depends on the other clients.
            own = tf.minimum(tf.range(row_count), tf.maximum(real - 1, 0)[:, tf.newaxis])
            batch = tf.nest.map_structure(lambda array: tf.gather(array, own, axis=1, batch_dims=1), batch)
        else:
            batch = tf.nest.map_structure(lambda array: array[:row_count], batch)

        def train(batch: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = task.loss(dict(zip(names, values, strict=True)), batch, real)
                # No client's loss depends on another's weights, so the gradient of the sum holds each client's own
                # gradient. SGD's learning rate scales this one number, which is cheaper than scaling the gradients.
                scale = local.learning_rate if local.optimizer == "sgd" else 1.0
                mean = tf.reduce_sum(scale * loss.total / tf.maximum(loss.count, 1.0))
            gradients = tape.gradient(mean, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            if local.optimizer == "sgd":
                return loss, [_descend(local, *parts) for parts in zip(values, start, gradients, strict=True)]
            return loss, _adam(local, values, start, gradients, slots, tf.cast(index - first + 1, tf.float32))

        which, forms = task.forms(batch)
        branches = [functools.partial(train, form) for form in forms]
        loss, updated = branches[0]() if len(branches) == 1 else tf.switch_case(which, branches)
        if client_axis.rank:
            active = real > 0
            updated = _keep_inactive(active, updated, state)
            loss = Loss(*(tf.where(active, part, 0.0) for part in loss))
        return (
            index + 1,
            examples_seen + tf.cast(real, tf.float32),
            tokens + loss.count,
            total + loss.total,
            computed + tf.cast(row_count, tf.float32),
            correct + loss.correct,
            *updated,
        )

    zeros, slots = [tf.zeros(client_axis)] * 5, [] if local.optimizer == "sgd" else 2 * [*map(tf.zeros_like, start)]
    _, examples_seen, tokens, total, computed, correct, *trained = tf.while_loop(
        lambda index, *_: index < end,
        step,
        [tf.convert_to_tensor(first, tf.int32), *zeros, *start, *slots],
        parallel_iterations=1,
    )
    delta = {name: after - before for name, after, before in zip(names, trained[: len(names)], start, strict=True)}
    return ClientUpdate(delta, examples_seen, tokens, total, computed, correct)


def _keep_inactive(active: Any, updated: Any, values: Any) -> Any:
    """Returns `updated` for the clients with rows left, `active` bool [U], and the old `values` for the others.

    The others keep their values even if their updates on padding are NaN: a client's contribution must not depend on
    how many steps the other clients take.
    """
    import tensorflow as tf

    def select() -> list[Any]:
        return [tf.where(column(active, value), after, value) for after, value in zip(updated, values, strict=True)]

    return tf.cond(tf.reduce_all(active), lambda: updated, select)


def _descend(local: LocalSGD, value: Any, start: Any, decrement: Any) -> Any:
    """Returns the weights after a step of SGD, whose `decrement` is the learning rate times the loss' gradient.

    If it is sparse and there are no penalties, only the rows that were looked up change.
    """
    import tensorflow as tf

    if local.proximal or local.weight_decay:
        value -= local.learning_rate * (local.proximal * (value - start) + local.weight_decay * value)
    if isinstance(decrement, tf.IndexedSlices):
        return tf.tensor_scatter_nd_sub(value, decrement.indices[:, tf.newaxis], decrement.values)
    return value - decrement


def _adam(local: LocalSGD, values: Any, start: Any, gradients: Any, slots: Any, count: Any) -> list[Any]:
    """Returns the weights after a step of Adam, the step's number being `count`, and the new slots."""
    import tensorflow as tf

    first, second, epsilon = _ADAM
    rate = local.learning_rate * tf.sqrt(1 - second**count) / (1 - first**count)
    after, means, squares = [], [], []
    half = len(values)
    for value, begin, gradient, mean, square in zip(values, start, gradients, slots[:half], slots[half:], strict=True):
        whole = tf.convert_to_tensor(gradient) + local.proximal * (value - begin) + local.weight_decay * value
        means.append(first * mean + (1 - first) * whole)
        squares.append(second * square + (1 - second) * tf.square(whole))
        after.append(value - rate * means[-1] / (tf.sqrt(squares[-1]) + epsilon))
    return [*after, *means, *squares]


def column(per_client: Any, value: Any) -> Any:
    """Reshapes `per_client`, [] or [U], so that it broadcasts against `value`, [...] or [U, ...]."""
    import tensorflow as tf

    return tf.reshape(per_client, [-1] + [1] * (value.shape.rank - 1)) if per_client.shape.rank else per_client
