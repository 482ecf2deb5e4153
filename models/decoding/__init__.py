"""Draws tokens from logits: keyed random numbers, temperature and top-k, integer sampling, verifiers, the loop.

`models.decoding.numpy_ops` needs NumPy alone and runs on devices. The other modules compute the same bits with
TensorFlow ops. Importing the package loads neither NumPy nor TensorFlow.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Drafter": "models.decoding.drafters",
    "LookupDrafter": "models.decoding.lookup_drafter",
    "ModelDrafter": "models.decoding.drafters",
    "NGramDrafter": "models.decoding.ngram_drafter",
    "SharedVocabularyDrafter": "models.decoding.shared_vocabulary",
    "Stream": "models.decoding.numpy_ops",
    "block_rule": "models.decoding.verification",
    "check_lossless": "models.decoding.lossless",
    "process": "models.decoding.processing",
    "quantized": "models.decoding.quantized",
    "random_words": "models.decoding.prng",
    "sample": "models.decoding.sampling",
    "token_rule": "models.decoding.verification",
    "uniforms": "models.decoding.prng",
    "verify": "models.decoding.verification",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models.decoding' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"models.decoding.{name} needs {error.name}, which is not installed: pip install 'fedspeak[models]'",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return __all__
