"""Trains the public model: the initial model of a federated run, trained centrally on the public text.

Production systems start federated training from a model of public data in the same way. No client's text is read, so
this costs no privacy; the privacy plan names the public text.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.config import WarmStartConfig
from fl.clients import PAD

_VALIDATION_STRIDE = 20  # every 20th public sequence is held out, for early stopping
_PATIENCE = 2  # training stops after this many epochs in a row without a lower validation loss


def train_on_public_text(
    model: Any,
    sequences: np.ndarray,
    config: WarmStartConfig,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, np.ndarray]:
    """Trains a model on public sequences with Adam and early stopping.

    A model with an output bias starts with the log frequencies of the public tokens as its bias, even without an epoch.

    Args:
      model: a `models.language_model.LanguageModel`.
      sequences: int32 [n, T+1], the public text; n ≥ 40 unless `config.epochs` is 0.
      config: number of epochs (0 returns the initial weights), learning rate and batch size.
      seed: seed of the initial weights and of the shuffles.
      on_epoch: called after each epoch with (epochs done, validation loss in nats per token).

    Returns:
      The weights by name, from before the first epoch or after one: those with the lowest loss on the held-out
      sequences.

    Raises:
      ValueError: there are fewer than 40 sequences, or fewer to train on than a batch holds.
    """
    weights = model.init(seed)
    if "output_bias" in weights:
        targets = sequences[:, 1:]
        counts = np.bincount(targets[targets != PAD], minlength=model.vocabulary_size) + 0.5
        weights["output_bias"] = np.log(counts / counts.sum()).astype(np.float32)
    if config.epochs == 0:
        return weights
    if len(sequences) < 2 * _VALIDATION_STRIDE:
        raise ValueError(
            f"data.public has {len(sequences)} sequences: {2 * _VALIDATION_STRIDE} are needed to train the public "
            "model; declare more text public, or set warm_start.epochs = 0"
        )
    held_out = np.arange(len(sequences)) % _VALIDATION_STRIDE == 0
    rows = sequences[~held_out]
    if config.batch_size > len(rows):
        raise ValueError(
            f"warm_start.batch_size = {config.batch_size}: must be at most {len(rows)}, the number of public sequences "
            "to train on; lower it"
        )
    import tensorflow_federated as tff
    import tensorflow as tf

    from fl.evaluation import Evaluator

    evaluate = Evaluator(model, [sequences[held_out]])
    optimizer = tff.learning.optimizers.build_adam(config.learning_rate)
    specs = {name: tf.TensorSpec(value.shape, tf.float32) for name, value in weights.items()}

    @tf.function(reduce_retracing=True)
    def step(state: Any, values: Any, batch: Any) -> Any:
        is_target = tf.cast(tf.not_equal(batch[:, 1:], PAD), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = model.loss_sum(values, batch) / tf.reduce_sum(is_target)
        return optimizer.next(state, values, tape.gradient(loss, values))

    generator = np.random.default_rng(seed)
    values = {name: tf.constant(value) for name, value in weights.items()}
    state = optimizer.initialize(specs)
    best, best_loss, epochs_without_gain = values, evaluate(weights).loss_per_token, 0
    for epoch in range(1, config.epochs + 1):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows) - config.batch_size + 1, config.batch_size):
            state, values = step(state, values, tf.constant(rows[order[start : start + config.batch_size]]))
        loss = evaluate(values).loss_per_token
        on_epoch(epoch, loss)
        if loss < best_loss:
            best, best_loss, epochs_without_gain = values, loss, 0
        else:
            epochs_without_gain += 1
            if epochs_without_gain == _PATIENCE:
                break
    return {name: np.asarray(value) for name, value in best.items()}
