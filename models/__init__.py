"""Holds language models for devices: recurrent cells, transformers, the protocol, presets, vocabulary, TFLite export.

Importing the package loads no other module. Each name below loads its module on first use, and most of these modules
load TensorFlow. The modules `models.device`, `models.export`, `models.parity` and `models.vocabulary`, and those of
`models.decoding`, are public too: import them by their path.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CIFG": "models.keras_layers",
    "CIFGCell": "models.keras_layers",
    "SICIFG": "models.keras_layers",
    "SICIFGCell": "models.keras_layers",
    "HeadedLanguageModel": "models.heads",
    "LanguageModel": "models.language_model",
    "RecurrentLanguageModel": "models.recurrent_lm",
    "TransformerDecoder": "models.transformer.keras_layer",
    "TransformerLanguageModel": "models.transformer.decoder",
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
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"models.{name} needs {error.name}, which is not installed: pip install 'fedspeak[models]'", name=error.name
        ) from None


def __dir__() -> list[str]:
    return __all__
