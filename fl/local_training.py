"""Local training: what one client does with the model it receives.

Plain SGD on the client's own examples. Examples and their order are chosen on the host (`LocalSGD.batches`), so the
TensorFlow part (`client_update`) sees dense tensors: no `tf.data` inside a TFF computation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from fl.clients import PAD
from privacy import checks

Weights = dict[str, Any]
"""Named tensors, keys in sorted order."""

TokenLosses = Callable[[Weights, Any], Any]
"""(weights, tokens int32 [B, T+1]) -> float32 [B, T]: nats lost on predicting tokens[:, 1:]. A leading user axis that
stands on every weight and on tokens stands on the losses too."""


class Batches(NamedTuple):
    """A client's batches in the order of training."""

    examples: Any  # an array [steps, B, ...], or a tuple of such; rows after the real ones are zeros
    rows: np.ndarray  # int32 [steps]: real rows of each batch, the first ones, 1 to B (stacked: 0 after a user's last)


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
        checks.positive("learning_rate", self.learning_rate, "give one")
        for name in ("batch_size", "epochs", "sequence_length", "max_sequences"):
            checks.whole(name, getattr(self, name), 1, "give a whole number")

    def batches(self, examples: Any, seed: int, client: int) -> Batches:
        """The batches of one client in one round, shuffled anew for every epoch.

        Args:
          examples: all examples of the client: sequences, int32 [n, T+1], or a tuple of arrays [n, ...].
          seed: 128-bit seed of the round.
          client: index of the client; each draws from its own stream, whoever else takes part.

        Returns:
          The last batch of an epoch padded with rows of zeros; no step without data.

        Raises:
          ValueError: the arrays of a tuple are not equally long, or `client` is negative.
        """
        checks.whole("client", client, 0, "give its index")
        generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, client]))
        arrays = examples if isinstance(examples, tuple) else (examples,)
        count = len(arrays[0])
        if any(len(array) != count for array in arrays):
            raise ValueError(f"client {client} has arrays of {[*map(len, arrays)]} examples: equally many are needed")
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
        of_an_epoch = np.full(steps, self.batch_size, np.int32)
        of_an_epoch[steps - 1 :] -= steps * self.batch_size - chosen
        return Batches(tuple(padded) if isinstance(examples, tuple) else padded[0], np.tile(of_an_epoch, self.epochs))


class Loss(NamedTuple):
    """Of one batch, or [U] of one batch a user."""

    total: Any  # float32: sum of the losses
    count: Any  # float32: predictions summed over; SGD follows the gradient of total / count
    correct: Any = 0.0  # float32: how many of these were right; 0 where the task does not measure it


class Task(Protocol):
    """What is learned: a loss, and the form of one example."""

    @property
    def example(self) -> Any:
        """`tf.TensorSpec`s of one example, without batch axis, nested as `Batches.examples` is."""

    @property
    def stacks(self) -> bool:
        """Whether `loss` takes a leading user axis."""

    @property
    def measures_accuracy(self) -> bool:
        """Whether `loss` counts what is right."""

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """The batch in one or more forms of other shapes and the same loss, and which is computed, int32 [].

        `(0, [batch])` where there is but one.
        """

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """The loss of a batch `[b, ...]` of which the first `rows` int32 [] rows are real.

        Without a user axis all rows are real. With it, weights, batch and rows [U] all have it; a user's other rows
        repeat its last one and do not count. One without rows has a row of zeros, which may give no number.
        """


@dataclass(frozen=True)
class LanguageModelling:
    """Next-token prediction by a model of the kit, or by any function of this form.

    Attributes:
      token_losses: of the model, see `TokenLosses`.
      sequence_length: predicted tokens T of a sequence.
      stacks: whether `token_losses` takes a leading client axis, as those of `models` do. It is a promise: if one
        client's losses depended on another's weights or tokens, no clip norm would bound one client's contribution.
        `fl.engines.stacking` tries it on made-up data.
      lengths: below T, rising. A batch whose rows are all padding from one of these on is cut there: for sequences that
        are lines or sentences, and not text packed back to back. Each length adds to the size of the graph. Clients
        trained together are not cut: it would depend on the others.
      loss_sum: (weights, tokens) -> the sum of `token_losses` over the targets that are not padding, where the model
        has a faster way to it; with a user axis (weights, tokens, rows [U]), of each user's first rows alone.
      loss_and_correct: the same, and how many of these tokens were the likeliest: then the accuracy is measured too.
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
                f"lengths is {self.lengths}: rising numbers from 1 to below sequence_length, {self.sequence_length}, "
                "are needed"
            )

    @property
    def measures_accuracy(self) -> bool:
        """Whether `loss_and_correct` was given."""
        return self.loss_and_correct is not None

    @property
    def example(self) -> Any:
        """int32 [T+1]."""
        import tensorflow as tf

        return tf.TensorSpec([self.sequence_length + 1], tf.int32)

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """Cut to each of `lengths`, and whole."""
        import tensorflow as tf

        if batch.shape.rank == 3 or not self.lengths:
            return 0, [batch]
        cuts = (*self.lengths, self.sequence_length)
        position = tf.range(1, self.sequence_length + 1)
        longest = tf.reduce_max(tf.where(tf.not_equal(batch[..., 1:], PAD), position, 0))
        which = tf.reduce_sum(tf.cast(longest > tf.constant(cuts[:-1], tf.int32), tf.int32))
        return which, [batch[..., : length + 1] for length in cuts]

    def loss(self, weights: Weights, batch: Any, rows: Any) -> Loss:
        """Sum over the tokens that are not padding."""
        import tensorflow as tf

        real = tf.not_equal(batch[..., 1:], PAD)
        of_users: tuple[Any, ...] = ()
        if rows.shape.rank:
            real &= tf.sequence_mask(rows, tf.shape(batch)[-2])[..., tf.newaxis]
            of_users = (rows,)
        count = tf.reduce_sum(tf.cast(real, tf.float32), [-2, -1])
        if self.loss_and_correct is not None:
            loss, correct = self.loss_and_correct(weights, batch, *of_users)
            return Loss(loss, count, correct)
        if self.loss_sum is not None:
            return Loss(self.loss_sum(weights, batch, *of_users), count)
        losses = tf.where(real, self.token_losses(weights, batch), 0.0)
        return Loss(tf.reduce_sum(losses, [-2, -1]), count)


class ClientUpdate(NamedTuple):
    """What local training gives: the model's change and what the client saw on the way (before any clipping).

    Of one client, or of U clients with a leading user axis on everything.
    """

    delta: Weights  # trained weights minus received weights
    examples: Any  # float32 []: examples trained on, counted once an epoch
    tokens: Any  # float32 []: predictions (real target tokens) of all steps
    loss: Any  # float32 []: sum over those of the loss in nats, each before the step that used it
    computed: Any  # float32 []: rows computed, the padding of users trained together among them
    correct: Any  # float32 []: of the predictions, those that were right (0 if the task does not measure it)


def client_update(
    task: Task, weights: Weights, batches: Batches, learning_rate: float, steps: tuple[Any, Any] | None = None
) -> ClientUpdate:
    """Trains one client, or U clients at once: a TensorFlow graph function of (weights, batches).

    Args:
      task: what is learned.
      weights: the model as received, without a user axis.
      batches: examples [steps, B, ...] and rows int32 [steps], or [steps, U, B, ...] and [steps, U] for a task that
        stacks. There may be no step; their number need not be known when the graph is made.
      learning_rate: of SGD.
      steps: int32 scalars (first, last + 1): only these steps of `batches`. All if None.
    """
    import tensorflow as tf

    names = sorted(weights)
    examples, rows = tf.nest.map_structure(tf.convert_to_tensor, (batches.examples, batches.rows))
    users = rows.shape[1:]  # [] or [U]
    first, end = (0, tf.shape(rows)[0]) if steps is None else steps
    start = [tf.convert_to_tensor(weights[name]) for name in names]
    if users.rank:
        start = [tf.repeat(value[tf.newaxis], users[0], axis=0) for value in start]

    @tf.function(autograph=False, experimental_attributes={"_noinline": True})
    def step(
        index: Any, examples_seen: Any, tokens: Any, total: Any, computed: Any, correct: Any, *values: Any
    ) -> tuple[Any, ...]:
        real = rows[index]
        # Only as many rows as the fullest batch has: padding costs nothing.
        most = tf.reduce_max(real)
        batch = tf.nest.map_structure(lambda array: array[index], examples)
        if users.rank:
            # A user's rows of padding become its own last row, which is not counted: what padding would give could be
            # no number where the user's own rows are fine, and how much of it there is depends on the others.
            own = tf.minimum(tf.range(most), tf.maximum(real - 1, 0)[:, tf.newaxis])
            batch = tf.nest.map_structure(lambda array: tf.gather(array, own, axis=1, batch_dims=1), batch)
        else:
            batch = tf.nest.map_structure(lambda array: array[:most], batch)

        def trained(batch: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = task.loss(dict(zip(names, values, strict=True)), batch, real)
                # Users do not see each other's weights: the gradient of the sum holds each one's own. Scaled here,
                # where it is one number, and not in the gradients.
                mean = tf.reduce_sum(learning_rate * loss.total / tf.maximum(loss.count, 1.0))
            steps_down = tape.gradient(mean, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return loss, [_descend(value, down) for value, down in zip(values, steps_down, strict=True)]

        which, forms = task.forms(batch)
        branches = [functools.partial(trained, form) for form in forms]
        loss, updated = branches[0]() if len(branches) == 1 else tf.switch_case(which, branches)
        if users.rank:
            left = real > 0
            updated = _only(left, updated, values)
            loss = Loss(*(tf.where(left, part, 0.0) for part in loss))
        return (
            index + 1,
            examples_seen + tf.cast(real, tf.float32),
            tokens + loss.count,
            total + loss.total,
            computed + tf.cast(most, tf.float32),
            correct + loss.correct,
            *updated,
        )

    zeros = [tf.zeros(users)] * 5
    _, examples_seen, tokens, total, computed, correct, *trained = tf.while_loop(
        lambda index, *_: index < end,
        step,
        [tf.convert_to_tensor(first, tf.int32), *zeros, *start],
        parallel_iterations=1,
    )
    delta = {name: after - before for name, after, before in zip(names, trained, start, strict=True)}
    return ClientUpdate(delta, examples_seen, tokens, total, computed, correct)


def _only(left: Any, updated: Any, values: Any) -> Any:
    """Updated for the users that have rows left, bool [U]; the others stand still.

    Whatever their weights make of padding (it may be no number): what a user contributes may not depend on how long
    others go on.
    """
    import tensorflow as tf

    def chosen() -> list[Any]:
        return [tf.where(column(left, value), after, value) for after, value in zip(updated, values, strict=True)]

    return tf.cond(tf.reduce_all(left), lambda: updated, chosen)


def _descend(value: Any, down: Any) -> Any:
    """Value - down; only the rows that were looked up change where `down` is sparse."""
    import tensorflow as tf

    if isinstance(down, tf.IndexedSlices):
        return tf.tensor_scatter_nd_sub(value, down.indices[:, tf.newaxis], down.values)
    return value - down


def column(per_user: Any, value: Any) -> Any:
    """[] or [U], shaped to stand beside `value` [...] or [U, ...]."""
    import tensorflow as tf

    return tf.reshape(per_user, [-1] + [1] * (value.shape.rank - 1)) if per_user.shape.rank else per_user
