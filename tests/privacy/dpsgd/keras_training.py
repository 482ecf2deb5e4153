"""Builds small Keras models, data and settings for tests of private training, with weights from a seed.

`keras.utils.set_random_seed` is not used, since it would change what all later tests draw.
"""

import keras
import numpy as np
from keras import layers

from privacy.dpsgd import KerasDPSGD
from tests.tolerance import model_operations, rounding

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def randomise(model, seed=0):
    """Sets the trainable weights to normal numbers of variance 1 / rows, leaves scalars, and returns the model."""
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        if len(weight.shape):
            weight.assign(generator.normal(size=weight.shape) / np.sqrt(weight.shape[0]))
    return model


def compiled(*stack, loss=CROSS_ENTROPY, optimizer=None):
    """Returns a compiled model with four inputs; by default one Dense layer for three classes."""
    model = randomise(keras.Sequential([keras.Input((4,)), *(stack or [layers.Dense(3)])]))
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return model


def examples(count=20, seed=0):
    """Returns examples of four numbers and one of three classes each."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 4)).astype(np.float32), generator.integers(0, 3, count)


def settings(**changes):
    """Returns settings for one step on all of 20 records, with changes."""
    defaults = {"records": 20, "batch_size": 20, "epochs": 1, "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    return KerasDPSGD(**{**defaults, **changes})


def training_rounding(model, steps, examples, rate, largest=1.0):
    """Returns how far a weight may differ after steps of SGD between two ways to compute them.

    A step adds the rounding of a mean gradient, whose terms are at most `largest`, and of weights below 4. Each later
    step enlarges the difference by a factor of at most 1 + rate, since the curvature of these losses is below 1.
    """
    growth = (1 + rate) ** (steps - 1)
    of_gradient = rounding(steps * model_operations(model, examples), rate * largest)
    return growth * (of_gradient + rounding(2 * steps, 4.0))
