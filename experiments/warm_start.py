"""The public model: centralised training on the public text, before any client takes part.

Production systems start federated training from a model of public data. No client's text is touched here, so it costs
no privacy; the plan names the public text.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.config import WarmStartConfig
from fl.clients import PAD

_VALIDATION_STRIDE = 20  # every 20th sequence of the public text is for early stopping
_PATIENCE = 2  # epochs without a better validation loss


def train_on_public_text(
    model: Any,
    sequences: np.ndarray,
    config: WarmStartConfig,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, np.ndarray]:
    """Adam on the public sequences; the weights of the epoch with the least loss on the part kept aside.

    A model with an output bias starts with the public text's log frequencies in it, also without any epoch.

    Args:
      model: answers `models.language_model.LanguageModel`.
      sequences: int32 [n, T+1], at least 40 of them.
      config: epochs (0 returns the initial weights), learning rate, batch size.
      seed: of the initial weights and of the shuffles.
      on_epoch: called with (epochs done, validation loss in nats a token).
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
            f"the public text has {len(sequences)} sequences: {2 * _VALIDATION_STRIDE} are needed to train on it; "
            "declare more text public or set warm_start.epochs=0"
        )
    aside = np.arange(len(sequences)) % _VALIDATION_STRIDE == 0
    rows = sequences[~aside]
    if config.batch_size > len(rows):
        raise ValueError(
            f"warm_start.batch_size is {config.batch_size} and the public text has {len(rows)} sequences to train on: "
            "lower it"
        )
    import tensorflow_federated as tff
    import tensorflow as tf

    from fl.evaluation import Evaluator

    evaluate = Evaluator(model, [sequences[aside]])
    optimizer = tff.learning.optimizers.build_adam(config.learning_rate)
    specs = {name: tf.TensorSpec(value.shape, tf.float32) for name, value in weights.items()}

    @tf.function(reduce_retracing=True)
    def step(state: Any, values: Any, batch: Any) -> Any:
        real = tf.cast(tf.not_equal(batch[:, 1:], PAD), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = model.loss_sum(values, batch) / tf.reduce_sum(real)
        return optimizer.next(state, values, tape.gradient(loss, values))

    generator = np.random.default_rng(seed)
    values = {name: tf.constant(value) for name, value in weights.items()}
    state = optimizer.initialize(specs)
    best, best_loss, worse = values, evaluate(weights).loss_per_token, 0
    for epoch in range(1, config.epochs + 1):
        order = generator.permutation(len(rows))
        for start in range(0, len(rows) - config.batch_size + 1, config.batch_size):
            state, values = step(state, values, tf.constant(rows[order[start : start + config.batch_size]]))
        loss = evaluate(values).loss_per_token
        on_epoch(epoch, loss)
        if loss < best_loss:
            best, best_loss, worse = values, loss, 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return {name: np.asarray(value) for name, value in best.items()}
