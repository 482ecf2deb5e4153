"""Trains a model centrally on public text, before or without federated training.

Production systems start federated training from a model of public data in the same way. No client's text is read, so
this costs no privacy; the privacy plan names the public text.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config import PretrainingConfig
from experiments.head_evaluation import HeadEvaluator
from fl import checkpoints
from fl.checkpoints import Checkpoint
from fl.clients import PAD

_VALIDATION_STRIDE = 20  # every 20th public sequence is held out, for early stopping
OnEvaluation = Callable[[int, int, float], None]
OnStep = Callable[[int, int], None]


def pretrain(
    model: Any,
    sequences: np.ndarray,
    config: PretrainingConfig,
    weights: dict[str, np.ndarray],
    seed: int,
    on_evaluation: OnEvaluation = lambda step, steps, loss: None,
    folder: Path | None = None,
    on_step: OnStep = lambda step, steps: None,
) -> dict[str, np.ndarray]:
    """Trains a model on public sequences with Adam, and stops early.

    Args:
      model: a `models.language_model.LanguageModel`; with prediction heads, all losses are sums over the heads.
      sequences: int32 [n, T+1], the public text; n ≥ 40 unless `config.epochs` is 0.
      config: the settings; with 0 epochs the initial weights are returned.
      weights: the initial weights by name.
      seed: seed of the shuffles.
      on_evaluation: called after each evaluation with (steps done, maximum number of steps, loss on the held-out
        sequences in nats per token), when the checkpoint has been saved.
      folder: where a checkpoint is saved after each evaluation. If the folder holds one, training goes on from it, to
        the same weights, bit for bit, as without an interruption (on the same kernels). None: nothing is saved.
      on_step: called after each step with (steps done, maximum number of steps).

    Returns:
      The weights by name, from before the first step or after an evaluation: those with the lowest held-out loss.

    Raises:
      OSError: a checkpoint cannot be written.
      ValueError: there are fewer than 40 sequences, fewer to train on than a batch holds, a checkpoint is damaged, or
        the loss is not finite before any evaluation found a lower one.
    """
    if config.epochs == 0:
        return weights
    held_out_rows, rows = _split(sequences, config)
    import tensorflow_federated as tff
    import tensorflow as tf

    from fl.evaluation import Evaluator
    from models.heads import HeadedLanguageModel

    build: Any = HeadEvaluator if isinstance(model, HeadedLanguageModel) else Evaluator
    evaluate = build(model, [held_out_rows])
    optimizer = tff.learning.optimizers.build_adam(config.learning_rate)
    specs = {name: tf.TensorSpec(value.shape, tf.float32) for name, value in weights.items()}

    @tf.function(reduce_retracing=True, autograph=False)
    def add_gradient(total: Any, values: Any, batch: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = model.loss_sum(values, batch) / targets
        gradient = tape.gradient(loss, values)
        return gradient if total is None else {name: total[name] + gradient[name] for name in gradient}

    @tf.function(reduce_retracing=True, autograph=False)
    def update(state: Any, values: Any, gradient: Any) -> Any:
        return optimizer.next(state, values, gradient)

    per_epoch = len(rows) // config.batch_size
    steps = config.epochs * per_epoch
    evaluate_every = config.evaluate_every or per_epoch
    values = {name: tf.constant(value) for name, value in weights.items()}
    # The optimizer's settings begin as Python floats, which checkpoints and graphs would take for another type.
    state = tf.nest.map_structure(
        tf.convert_to_tensor, {"optimizer": optimizer.initialize(specs), "values": values, "best": values}
    )
    found = None if folder is None else checkpoints.load_latest(folder, _to_numpy(state))
    if found is not None:
        done, state, document = found.round, _to_tensors(found.state), found.document
    else:
        loss = evaluate(weights).loss_per_token
        if not math.isfinite(loss):
            raise ValueError("the initial weights' loss on the held-out public text is not finite: start from others")
        done, document = 0, {"best_loss": loss, "without_gain": 0, "has_gained": False}
    generator, order = np.random.default_rng(seed), np.zeros(0, np.int64)
    for _ in range(done // per_epoch + (done % per_epoch > 0)):  # the shuffles of the epochs that have begun
        order = generator.permutation(len(rows))
    while done < steps and document["without_gain"] < config.patience:
        place = done % per_epoch
        if place == 0:
            order = generator.permutation(len(rows))
        batch = rows[order[place * config.batch_size : (place + 1) * config.batch_size]]
        targets, gradient = tf.constant(np.count_nonzero(batch[:, 1:] != PAD), tf.float32), None
        for part in np.array_split(batch, config.accumulate):
            gradient = add_gradient(gradient, state["values"], tf.constant(part), targets)
        rate = config.learning_rate * learning_rate_factor(done, steps, config)
        hparams = optimizer.set_hparams(state["optimizer"], {"learning_rate": tf.constant(rate, tf.float32)})
        state["optimizer"], state["values"] = update(hparams, state["values"], gradient)
        done += 1
        on_step(done, steps)
        if done % evaluate_every and done < steps:
            continue
        loss = evaluate(state["values"]).loss_per_token
        if loss < document["best_loss"]:
            document, state["best"] = {"best_loss": loss, "without_gain": 0, "has_gained": True}, state["values"]
        elif not (math.isfinite(loss) or document["has_gained"]):
            raise ValueError(
                f"pretraining.learning_rate = {config.learning_rate:g}: after {done} steps the loss on the held-out "
                "public text is not finite: lower it"
            )
        else:
            document = {**document, "without_gain": document["without_gain"] + 1}
        if folder is not None:
            checkpoints.save(folder, Checkpoint(done, _to_numpy(state), document), keep=1)
        on_evaluation(done, steps, loss)
    return {name: np.asarray(value) for name, value in state["best"].items()}


def learning_rate_factor(step: int, steps: int, config: PretrainingConfig) -> float:
    """Returns what the learning rate is multiplied by in a step, counted from 0: warm-up, then constant or a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / max(1, steps - config.warmup_steps)))


def initial_weights(model: Any, sequences: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Draws new weights; an output bias is the log frequencies of the tokens in the sequences int32 [n, T+1]."""
    weights: dict[str, np.ndarray] = model.init(seed)
    if "output_bias" in weights:
        targets = sequences[:, 1:]
        counts = np.bincount(targets[targets != PAD], minlength=model.vocabulary_size) + 0.5
        weights["output_bias"] = np.log(counts / counts.sum()).astype(np.float32)
    return weights


def _split(sequences: np.ndarray, config: PretrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out sequences and those to train on."""
    if len(sequences) < 2 * _VALIDATION_STRIDE:
        raise ValueError(
            f"data.public has {len(sequences)} sequences: {2 * _VALIDATION_STRIDE} are needed to train the public "
            "model; declare more text public, or set pretraining.epochs = 0"
        )
    rows = np.delete(sequences, np.s_[::_VALIDATION_STRIDE], axis=0)
    if config.batch_size > len(rows):
        raise ValueError(
            f"pretraining.batch_size = {config.batch_size}: must be at most {len(rows)}, the number of public "
            "sequences to train on; lower it"
        )
    return held_out(sequences), rows


def held_out(sequences: np.ndarray) -> np.ndarray:
    """Returns those of the public sequences int32 [n, T+1] that are not trained on, for early stopping."""
    return sequences[::_VALIDATION_STRIDE]


def _to_numpy(state: Any) -> Any:
    if hasattr(state, "items"):
        return {name: _to_numpy(value) for name, value in state.items()}
    return np.asarray(state)


def _to_tensors(state: Any) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(tf.constant, state)
