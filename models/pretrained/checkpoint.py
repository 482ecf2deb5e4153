"""Loads a pretrained language model from a GGUF file or a Hugging Face folder."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.language_model import Weights
from models.pretrained import gguf_file, hugging_face
from models.pretrained.tokenizer import PretrainedVocabulary
from models.transformer.decoder import TransformerLanguageModel


class Checkpoint(NamedTuple):
    """Holds an imported model.

    Attributes:
      model: the language model.
      weights: its weights by name, float32.
      vocabulary: its tokenizer, with the ids of padding, begin and end moved to 0, 1 and 2.
      description: name of the checkpoint's architecture and file format.
    """

    model: TransformerLanguageModel
    weights: Weights
    vocabulary: PretrainedVocabulary
    description: str


def load(path: str | os.PathLike[str], context: int | None = None) -> Checkpoint:
    """Loads a checkpoint of the Llama family: Llama, SmolLM2, TinyLlama, or Qwen2.

    Args:
      path: a GGUF file; or a folder with `config.json`, `tokenizer.json` and `*.safetensors`.
      context: maximum number of tokens of a row; None is the checkpoint's own.

    Raises:
      OSError: the path cannot be read.
      ValueError: the checkpoint is damaged, or has something that this library does not implement; one line names it.
      ModuleNotFoundError: the extra `pretrained` is not installed.
    """
    path = Path(path)
    try:
        parts = hugging_face.read(path) if path.is_dir() else gguf_file.read(path)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        # The readers check the fields that they use; this is what they have not thought of.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: the checkpoint is damaged ({reason}); download it again") from None
    vocabulary = parts.vocabulary
    options = parts.options
    if context is not None:
        if context > options["context"]:
            raise ValueError(f"context = {context}: {path} was trained for at most {options['context']} tokens")
        options = {**options, "context": context}
    try:
        model = TransformerLanguageModel(vocabulary_size=parts.rows, **options)
    except ValueError as error:
        raise ValueError(f"{path}: its settings cannot be imported: {error}") from None
    weights = dict(parts.weights)
    for name in ("embedding", "output"):
        if name in weights:
            weights[name] = weights[name][vocabulary.rows(parts.rows)]
    for name, shape in model.shapes().items():
        if weights[name].shape != shape:
            raise ValueError(
                f"{path}: weight {name} has shape {list(weights[name].shape)}, but its settings say {list(shape)}: "
                "the checkpoint is damaged; download it again"
            )
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"{path}: weight {name} is not finite: the checkpoint is damaged; download it again")
    return Checkpoint(model, dict(sorted(weights.items())), vocabulary, parts.description)
