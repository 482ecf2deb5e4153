"""Provides a small model and vocabulary for the tests of export and device."""

from typing import Any

import numpy as np

from models.recurrent_lm import RecurrentLanguageModel
from models.vocabulary import Vocabulary

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
