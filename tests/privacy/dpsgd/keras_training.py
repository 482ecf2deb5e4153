"""Small Keras models, data and settings for tests of private training; weights from a seed.

(`keras.utils.set_random_seed` would change what all later tests draw.)
"""

import keras
import numpy as np
from keras import layers

from privacy.dpsgd import KerasDPSGD

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def drawn(model, seed=0):
    """The model, its weights to be trained normal with variance 1 / rows; single numbers stay."""
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        if len(weight.shape):
            weight.assign(generator.normal(size=weight.shape) / np.sqrt(weight.shape[0]))
    return model


def compiled(*stack, loss=CROSS_ENTROPY, optimizer=None):
    """Of four numbers."""
    model = drawn(keras.Sequential([keras.Input((4,)), *(stack or [layers.Dense(3)])]))
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    return model


def examples(count=20, seed=0):
    """Four numbers and one of three classes each."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 4)).astype(np.float32), generator.integers(0, 3, count)


def settings(**changed):
    """One step on everybody of 20."""
    plain = {"records": 20, "batch_size": 20, "epochs": 1, "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    return KerasDPSGD(**{**plain, **changed})
