"""Builds language models from named sizes or a configuration. Importing the module does not load TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.language_model import LanguageModel
    from models.recurrent_lm import RecurrentLanguageModel

_DEFAULT_VOCABULARY_SIZE = 4000
# Name → (cell, embedding size E, units H). A model has V·E + 3(2E+1)H + H·E parameters. The name of a large preset
# states this number for V = 4000. The large sizes are those of Ro et al. 2022 (https://arxiv.org/abs/2204.09715).
_SIZES = {
    "tiny": ("si-cifg", 96, 192),
    "cifg-4.7m": ("cifg", 256, 2048),
    "cifg-18.8m": ("cifg", 1024, 2048),
    "si-cifg-4.7m": ("si-cifg", 256, 2048),
    "si-cifg-18.8m": ("si-cifg", 1024, 2048),
}
NAMES = tuple(_SIZES)


def preset(name: str, vocabulary_size: int | None = None) -> RecurrentLanguageModel:
    """Builds the language model of a preset, without weights.

    Args:
      name: one of `NAMES`.
      vocabulary_size: number of token ids, >= 1. None means 4000, except for "tiny", which needs a value.

    Raises:
      ValueError: `name` is unknown, or `vocabulary_size` is not a positive integer or is missing for "tiny".
    """
    from models.recurrent_lm import RecurrentLanguageModel

    if name not in _SIZES:
        raise ValueError(f"preset: {name!r} is not one of {', '.join(NAMES)}")
    if vocabulary_size is None:
        if name == "tiny":
            raise ValueError("preset: 'tiny' has no default vocabulary size: give vocabulary_size")
        vocabulary_size = _DEFAULT_VOCABULARY_SIZE
    cell, embedding, units = _SIZES[name]
    return RecurrentLanguageModel(cell, vocabulary_size, embedding, units)


def from_config(config: dict[str, Any]) -> LanguageModel:
    """Builds a language model, without weights, from the dict that `LanguageModel.config` returned.

    Raises:
      ValueError: the architecture is unknown, or an entry is missing, unknown or out of range.
    """
    from models.recurrent_lm import RecurrentLanguageModel

    entries = dict(config)
    architecture = entries.pop("architecture", None)
    if architecture != "recurrent":
        raise ValueError(f"model config: architecture {architecture!r} is unknown; the only one is 'recurrent'")
    try:
        return RecurrentLanguageModel(**entries)
    except TypeError as error:
        raise ValueError(f"model config: {error}") from error
