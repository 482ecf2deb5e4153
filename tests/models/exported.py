"""Provides a small model and vocabulary for the tests of export and device."""

from typing import Any

import numpy as np

from models.recurrent_lm import RecurrentLanguageModel
from models.vocabulary import Vocabulary
from tests.tolerance import FUNCTION, condition, rounding

MERGED = [b"th", b"the", b" the", b"in", b"er", b"an", b" a", b"and", "é".encode(), "😀".encode()[:2]]


def vocabulary() -> Vocabulary:
    return Vocabulary((b"",) * 3 + tuple(bytes([byte]) for byte in range(256)) + tuple(MERGED))


def model(**changes: Any) -> RecurrentLanguageModel:
    arguments = {
        "cell": "si-cifg",
        "vocabulary_size": 259 + len(MERGED),
        "embedding": 24,
        "units": 32,
        **changes,
    }
    return RecurrentLanguageModel(**arguments)


def weights(language_model: RecurrentLanguageModel, seed: int = 0) -> dict[str, np.ndarray]:
    """Draws weights that give logits with a spread of some 15 nats, like those of a trained model."""
    values = language_model.init(seed)
    return {**values, "embedding": 3 * values["embedding"], "projection": 3 * values["projection"]}


def operations(language_model: RecurrentLanguageModel) -> int:
    """Operations of a step and its logits; each weight is used once in them.

    The products and bias of a gate, two functions, the new cell and output, layer normalisation, the projection, the
    products and bias of a logit.
    """
    size, units = language_model.embedding, language_model.units
    normalisation = 3 * units + FUNCTION if language_model.layer_norm else 0
    return (2 * size + 1) + 2 * FUNCTION + 5 + normalisation + units + (size + 1)


def logit_rounding(language_model: RecurrentLanguageModel, values: dict[str, np.ndarray], length: int) -> float:
    """Largest difference of a logit between two runtimes in float32, over contexts of up to `length` tokens."""
    tokens = np.random.default_rng(0).integers(3, language_model.vocabulary_size, (16, length)).astype(np.int32)
    start = language_model.initial_state(16)
    of_logits = condition(lambda changed: [language_model.extend(changed, tokens, start)[0]], values)
    return rounding(operations(language_model), of_logits)
