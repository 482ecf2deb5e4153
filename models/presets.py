"""Builds language models from named sizes or a configuration. Importing the module does not load TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.language_model import LanguageModel

_DEFAULT_VOCABULARY_SIZE = 4000
# Name → options of `RecurrentLanguageModel`. A model has V·E + 3(2E+1)H + H·E parameters. The name of a large preset
# states this number for V = 4000. The large sizes are those of Ro et al. 2022 (https://arxiv.org/abs/2204.09715).
_RECURRENT: dict[str, dict[str, Any]] = {
    "tiny": {"cell": "si-cifg", "embedding": 96, "units": 192},
    "cifg-4.7m": {"cell": "cifg", "embedding": 256, "units": 2048},
    "cifg-18.8m": {"cell": "cifg", "embedding": 1024, "units": 2048},
    "si-cifg-4.7m": {"cell": "si-cifg", "embedding": 256, "units": 2048},
    "si-cifg-18.8m": {"cell": "si-cifg", "embedding": 1024, "units": 2048},
}
_4M: dict[str, Any] = {"embedding": 128, "blocks": 6, "heads": 4, "feed_forward": 2048}
_21M: dict[str, Any] = {"embedding": 512, "blocks": 6, "heads": 8, "feed_forward": 2048}
_SCALE_INVARIANT: dict[str, Any] = {"attention": "relu", "norm_epsilon": 0.0, "degree_two_embedding": True}
# Name → options of `TransformerLanguageModel`. A model has V·E + blocks·(4E² + 2E·F) parameters, a scale-invariant one
# E² more. The sizes are those of Ro et al. 2022; positions are rotary, which needs no parameters.
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "transformer-4m": _4M,
    "transformer-21m": _21M,
    "si-transformer-4m": {**_4M, **_SCALE_INVARIANT},
    "si-transformer-21m": {**_21M, **_SCALE_INVARIANT},
}
RECURRENT = tuple(_RECURRENT)
TRANSFORMERS = tuple(_TRANSFORMERS)
NAMES = RECURRENT + TRANSFORMERS
MAX_HEADS = 16
"""Maximum number of prediction heads of a model."""


def preset(name: str, vocabulary_size: int | None = None, **changes: Any) -> LanguageModel:
    """Builds the language model of a preset, without weights.

    Args:
      name: one of `NAMES`.
      vocabulary_size: number of token ids, >= 1. None means 4000, except for "tiny", which needs a value.
      **changes: attributes of `RecurrentLanguageModel` or `TransformerLanguageModel` that replace the preset's.

    Raises:
      ValueError: `name` or a change is unknown, a size is out of range, or the vocabulary size of "tiny" is missing.
    """
    if name not in NAMES:
        raise ValueError(f"preset: {name!r} is not one of {', '.join(NAMES)}")
    if vocabulary_size is None:
        if name == "tiny":
            raise ValueError("preset: 'tiny' has no default vocabulary size: give vocabulary_size")
        vocabulary_size = _DEFAULT_VOCABULARY_SIZE
    architecture = "recurrent" if name in _RECURRENT else "transformer"
    options = {**_RECURRENT, **_TRANSFORMERS}[name]
    return _build(architecture, {"vocabulary_size": vocabulary_size, **options, **changes}, "preset")


def from_config(config: dict[str, Any]) -> LanguageModel:
    """Builds a language model, without weights, from the dict that `LanguageModel.config` returned.

    Raises:
      ValueError: the architecture is unknown, or an entry is missing, unknown or out of range.
    """
    entries = dict(config)
    architecture, heads = entries.pop("architecture", None), entries.pop("prediction_heads", None)
    if architecture not in ("recurrent", "transformer"):
        raise ValueError(
            f"model config: architecture {architecture!r} is unknown; the known ones are 'recurrent' and 'transformer'"
        )
    model = _build(architecture, entries, "model config")
    return model if heads is None else with_heads(model, heads)


def with_heads(model: LanguageModel, prediction_heads: int) -> LanguageModel:
    """Adds prediction heads to a language model.

    Args:
      model: the base model.
      prediction_heads: number of heads, the base model included, 1 to `MAX_HEADS`.

    Raises:
      ValueError: the number is out of range, or the model has heads already.
    """
    from models.heads import HeadedLanguageModel

    return HeadedLanguageModel(model, prediction_heads)


def _build(architecture: str, options: dict[str, Any], what: str) -> LanguageModel:
    try:
        if architecture == "recurrent":
            from models.recurrent_lm import RecurrentLanguageModel

            return RecurrentLanguageModel(**options)
        from models.transformer.decoder import TransformerLanguageModel

        return TransformerLanguageModel(**options)
    except TypeError as error:
        raise ValueError(f"{what}: {error}") from error
