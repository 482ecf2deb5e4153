"""Keras models with weights from a seed. (`keras.utils.set_random_seed` would change what all later tests draw.)"""

import numpy as np


def drawn(model, seed=0):
    """The model, its weights to be trained normal with variance 1 / rows."""
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(generator.normal(size=weight.shape) / np.sqrt(weight.shape[0]))
    return model
