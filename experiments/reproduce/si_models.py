"""Builds the models that `fedspeak reproduce si` compares, all with the same number of weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments import assembly
from experiments.config import Config, ModelConfig
from experiments.display import no_notices

PAIRS = {"cifg": "si-cifg", "transformer": "si-transformer"}
"""Maps each standard model to its scale-invariant form."""


class Model(NamedTuple):
    """Describes a model of the study.

    Attributes:
      kind: a key or a value of `PAIRS`.
      cell: kind of cell, if it is not `kind`.
      layer_norm: whether the cell normalises its hidden state.
      embedding: factor of the initial embedding, which is the output layer too.
      projection: factor of the initial projection of a cell.
      others: factor of the other initial weights, those of the cell's gates or of the transformer's blocks.
      weight_decay: weight decay of the clients' training.
      blocks: number of blocks of a transformer; None: that of the study's scale.
    """

    kind: str
    cell: str | None = None
    layer_norm: bool = False
    embedding: float = 1.0
    projection: float = 1.0
    others: float = 1.0
    weight_decay: float = 0.0
    blocks: int | None = None


STANDARD = {name: Model(name) for pair in PAIRS.items() for name in pair}
VARIANTS = {
    **{f"{name}, layer norm": Model(name, layer_norm=True) for name in ("cifg", "si-cifg")},
    **{f"{name}, embedding x 3": Model(name, embedding=3.0) for name in ("cifg", "si-cifg")},
    "si-cifg, tanh": Model("si-cifg", "si-cifg-tanh"),
    "si-cifg, gates' activation only": Model("si-cifg", "si-cifg-gates"),
    "si-cifg, gates x 3": Model("si-cifg", others=3.0),
    "si-cifg, projection x 0.3": Model("si-cifg", projection=0.3),
    "si-transformer, blocks x 3": Model("si-transformer", others=3.0),
    **{f"{name}, weight decay": Model(name, weight_decay=0.01) for name in ("si-cifg", "si-transformer")},
    **{f"{name}, 1 block": Model(name, blocks=1) for name in ("transformer", "si-transformer")},
}
"""Changes of the models that may explain why one of them is better."""
MODELS = STANDARD | VARIANTS


def model_section(config: Config, model: Model, blocks: int) -> ModelConfig:
    """Returns the section `model` of a model's config.

    A transformer has the embedding size E of the recurrent models, and feed-forward layers of the size F with which the
    number of weights is that of a cell of H units: blocks · (4E² + 2EF) = 3(2E + 1)H + HE. The scale-invariant
    transformer has a matrix of E² weights more, and F smaller by that. F is rounded to an integer.

    Args:
      config: the study's config; its `model.embedding` is E and its `model.units` is H.
      model: the model.
      blocks: number of blocks of a transformer, unless the model has its own.

    Raises:
      ValueError: the config describes no recurrent model, or one that is too small.
    """
    size, units = _sizes(config.model)
    if "transformer" not in model.kind:
        cell: Any = model.cell or model.kind
        return ModelConfig(preset="tiny", cell=cell, embedding=size, units=units, layer_norm=model.layer_norm)
    blocks = model.blocks or blocks
    others = 4 * size**2 * blocks + (size**2 if model.kind == "si-transformer" else 0)
    feed_forward = round((_recurrent_weights(size, units) - others) / (2 * size * blocks))
    if feed_forward < 1:
        raise ValueError(
            f"model.units = {units} with model.embedding = {size}: a transformer of {blocks} block"
            f"{'s' * (blocks > 1)} and as many weights has no room for feed-forward layers, raise model.units"
        )
    return ModelConfig(
        preset="si-transformer-4m" if model.kind == "si-transformer" else "transformer-4m",
        embedding=size,
        blocks=blocks,
        heads=4 if size % 8 == 0 else 1,
        feed_forward=feed_forward,
        context=config.clients.sequence_length,
    )


def count_weights(config: Config, vocabulary_size: int) -> int:
    """Returns the number of weights of every model: V·E + 3(2E + 1)H + HE."""
    size, units = _sizes(config.model)
    return vocabulary_size * size + _recurrent_weights(size, units)


def _recurrent_weights(size: int, units: int) -> int:
    return 3 * (2 * size + 1) * units + units * size


def initial_weights(model: Model, language_model: Any, seed: int, scale: float) -> dict[str, np.ndarray]:
    """Returns the initial weights of a model, with its factors; those of gates or blocks are multiplied by `scale` too.

    The factor of a cell's projection is one of its own: like the embedding, it multiplies the logits whatever the
    activations are.
    """
    factors = {"embedding": model.embedding, "projection": model.projection}
    return {
        name: (value * np.float32(factors.get(name, model.others * scale))).astype(np.float32)
        for name, value in language_model.init(seed).items()
    }


def _sizes(section: ModelConfig) -> tuple[int, int]:
    for key in ("init", "layer_norm", "output_bias", "blocks", "heads", "feed_forward", "context"):
        if getattr(section, key) is not None:
            raise ValueError(
                f"model.{key} has no effect: the study builds its models of model.embedding and model.units, remove it"
            )
    if section.prediction_heads != 1:
        raise ValueError(f"model.prediction_heads = {section.prediction_heads}: the study trains one head, remove it")
    if section.preset not in (None, "tiny"):
        raise ValueError(
            f"model.preset = {section.preset!r}: the study builds its own models, give model.embedding and model.units"
        )
    with no_notices():  # loads TensorFlow
        model: Any = assembly.build_model(Config(model=section), 1)
    return model.embedding, model.units
