"""Measures how large the gradients of untrained models are, which decides which learning rates suit plain SGD."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments import assembly, data
from experiments.config import Config
from experiments.reproduce.si_arms import MOMENTUM, Cell, Scale, arms, configure
from experiments.reproduce.si_models import STANDARD, initial_weights

PARTS = ("embedding", "projection", "others")
_CLIENTS, _ROWS = 64, 4


def initial_gradients(config: Config, scale: Scale, prepared: data.Data) -> dict[str, dict[str, float]]:
    """Returns for each standard model what decides the first step of SGD.

    "hidden" is the root of the mean square of what the output layer reads. For the embedding, the projection (cells
    only) and all other weights there is the norm of the gradient relative to that of the weights. The loss is the mean
    over some sequences of validation clients, and the weights are those of seed 0.
    """
    import tensorflow as tf

    clients = prepared.splits.validation[:_CLIENTS]
    rows = np.concatenate([prepared.whole(client)[:_ROWS] for client in clients])
    count = np.count_nonzero(rows[:, 1:])
    (momentum,) = (arm for arm in arms(config, scale) if arm.name == MOMENTUM)
    found = {}
    for name, model in STANDARD.items():
        own = configure(config, scale, momentum, Cell(MOMENTUM, name, 1.0, 1.0))
        language_model: Any = assembly.build_model(own, prepared.vocabulary.size)
        weights = {key: tf.constant(value) for key, value in initial_weights(model, language_model, 0, 1.0).items()}
        hidden, _, _ = language_model.hidden_states(weights, tf.constant(rows))
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = language_model.loss_sum(weights, tf.constant(rows)) / count
        gradients = tape.gradient(loss, weights)
        found[name] = {"hidden": math.sqrt(float(tf.reduce_mean(tf.square(hidden))))}
        for part in PARTS:
            keys = [key for key in weights if (key if key in PARTS else "others") == part]
            if keys:
                size, norm = (_norm(tensors, keys) for tensors in (gradients, weights))
                found[name][part] = size / norm
    return found


def _norm(tensors: dict[str, Any], keys: list[str]) -> float:
    import tensorflow as tf

    return math.sqrt(sum(float(tf.reduce_sum(tf.square(tf.convert_to_tensor(tensors[key])))) for key in keys))
