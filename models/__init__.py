"""Language models for devices: cells, the language-model protocol, presets, the vocabulary and TFLite export.

Importing this package is instant: the names below load their module, and with it TensorFlow, on first use.
"""

from contextlib import suppress
from importlib import import_module
from typing import Any

with suppress(ImportError):  # names the extra that is missing; all else here works without it
    import privacy.extras  # noqa: F401

_HOME = {
    "CIFG": "models.keras_layers",
    "CIFGCell": "models.keras_layers",
    "SICIFG": "models.keras_layers",
    "SICIFGCell": "models.keras_layers",
    "LanguageModel": "models.language_model",
    "RecurrentLanguageModel": "models.recurrent_lm",
    "Vocabulary": "models.vocabulary",
    "Weights": "models.language_model",
    "from_config": "models.presets",
    "from_keras": "models.keras_model",
    "load_into_keras": "models.keras_model",
    "load_keras": "models.keras_model",
    "preset": "models.presets",
    "scale_invariant_sigmoid": "models.activations",
    "scale_invariant_tanh": "models.activations",
    "to_keras": "models.keras_model",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
