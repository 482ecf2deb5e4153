"""Named model sizes. Importing this module does not load TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.language_model import LanguageModel
    from models.recurrent_lm import RecurrentLanguageModel

_DEFAULT_VOCABULARY_SIZE = 4000
# (cell, embedding E, units H). Parameters: V·E + 3(2E+1)H + H·E; with V = 4000 the sizes that the names tell,
# as in Ro et al. 2022 (https://arxiv.org/abs/2204.09715).
_SIZES = {
    "tiny": ("si-cifg", 96, 192),
    "cifg-4.7m": ("cifg", 256, 2048),
    "cifg-18.8m": ("cifg", 1024, 2048),
    "si-cifg-4.7m": ("si-cifg", 256, 2048),
    "si-cifg-18.8m": ("si-cifg", 1024, 2048),
}
NAMES = tuple(_SIZES)


def preset(name: str, vocabulary_size: int | None = None) -> RecurrentLanguageModel:
    """The model of that name.

    Args:
      name: one of `NAMES`.
      vocabulary_size: 4000 if None; "tiny" has no vocabulary size of its own and needs it.

    Raises:
      ValueError: unknown name, or no vocabulary size for "tiny".
    """
    from models.recurrent_lm import RecurrentLanguageModel

    if name not in _SIZES:
        raise ValueError(f"preset: {name!r} is not one of {', '.join(NAMES)}")
    if vocabulary_size is None:
        if name == "tiny":
            raise ValueError("preset: 'tiny' has no vocabulary size of its own: give vocabulary_size")
        vocabulary_size = _DEFAULT_VOCABULARY_SIZE
    cell, embedding, units = _SIZES[name]
    return RecurrentLanguageModel(cell, vocabulary_size, embedding, units)


def from_config(config: dict[str, Any]) -> LanguageModel:
    """The model whose `config()` this is.

    Raises:
      ValueError: unknown architecture, a missing, unknown or wrong entry.
    """
    from models.recurrent_lm import RecurrentLanguageModel

    entries = dict(config)
    architecture = entries.pop("architecture", None)
    if architecture != "recurrent":
        raise ValueError(f"model config: architecture {architecture!r} is not 'recurrent'")
    try:
        return RecurrentLanguageModel(**entries)
    except TypeError as error:
        raise ValueError(f"model config: {error}") from error
